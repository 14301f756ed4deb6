//! The planted model of the fixtures.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fathom_model::{TextEncoder, TokenizedTrace, TraceReader};

/// Its directory.
pub fn planted() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/planted/basic")
}

/// Its traces.
pub fn traces() -> Vec<TokenizedTrace> {
    let encoder = TextEncoder {
        tokenizer: None,
        template: None,
        render: Default::default(),
        vocab_size: 300,
    };
    let traces = TraceReader::open(&planted().join("traces.jsonl")).unwrap();
    traces.map(|trace| trace.unwrap().token_ids(&encoder).unwrap()).collect()
}
