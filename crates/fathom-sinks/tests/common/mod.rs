//! The planted model of the fixtures, and a progress observer that counts tokens.
// Each test binary uses only a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fathom_model::{TextEncoder, TokenizedTrace, TraceReader};
use fathom_sinks::explain::ExplainProgress;

/// Directory of the planted model.
pub fn planted() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/planted/basic")
}

/// Traces of the planted model.
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

/// Counts the tokens that the model processes.
#[derive(Default)]
pub struct Tokens(pub usize);

impl ExplainProgress for Tokens {
    fn start(&mut self, _: &'static str, unit: &'static str, steps: usize) {
        self.0 += if unit == "tokens" { steps } else { 0 };
    }

    fn advance(&mut self, _: usize) {}
}
