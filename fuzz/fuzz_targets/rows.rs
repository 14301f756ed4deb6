//! The bytes of a data set's file, of whatever kind they make it: rows or an error, in bounded memory.
#![no_main]

use std::io::Write;

use fathom_model::TraceReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
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
