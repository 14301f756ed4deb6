//! A safetensors file: parsing returns an error, or tensors that are inside the file and do not
//! overlap.
#![no_main]

use std::path::Path;

use fathom_model::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Ok(tensors) = parse_header(Path::new("model.safetensors"), file) {
        let mut end = 0;
        for tensor in tensors {
            assert!(end <= tensor.range.start && tensor.range.start <= tensor.range.end);
            end = tensor.range.end;
        }
        assert!(end <= file.len());
    }
});
