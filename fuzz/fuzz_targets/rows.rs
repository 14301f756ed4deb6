//! A data file of any format: reading returns rows or errors, in bounded memory.
//!
//! Parquet is excluded because the `parquet` crate panics on some malformed files. Fathom catches
//! such a panic, but it would end the fuzzer. `crates/fathom-model/tests/rows.rs` tests corrupt
//! Parquet files.
#![no_main]

use std::io::Write;

use fathom_model::TraceReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"PAR1") {
        return;
    }
    let Ok(mut file) = tempfile::NamedTempFile::new() else { panic!("no temporary file") };
    if file.write_all(bytes).is_err() {
        panic!("a temporary file cannot be written");
    }
    let Ok(reader) = TraceReader::open(file.path()) else { return };
    for trace in reader.take(100) {
        if let Err(error) = trace {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
});
