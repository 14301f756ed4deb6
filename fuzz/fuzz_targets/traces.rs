//! A line of a trace file: parsing returns an error, or a trace whose ids are in the vocabulary.
#![no_main]

use std::path::Path;

use fathom_model::{RenderOptions, TextEncoder, Trace};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    let encoder = TextEncoder {
        tokenizer: None,
        template: None,
        render: RenderOptions::default(),
        vocab_size: 300,
    };
    if let Ok(trace) = Trace::parse(Path::new("traces.jsonl"), 1, line)
        && let Ok(trace) = trace.token_ids(&encoder)
    {
        assert!(!trace.ids.is_empty() && trace.prompt_len <= trace.ids.len());
        assert!(trace.ids.iter().all(|id| *id < 300));
    }
});
