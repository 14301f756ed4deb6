//! The bytes of a data set's file, of whatever kind they make it: rows or an error, in bounded
//! memory.
//!
//! But for Parquet: the library underneath panics on some faults of a file. That is caught where it
//! is called, but a panic is what ends a fuzzer; `crates/fathom-model/tests/rows.rs` spoils such
//! files.
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
