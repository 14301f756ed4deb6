//! A model whose attention sinks are known because they were put there.
//!
//! [`plant`] writes a small Qwen3-class checkpoint with tokenizer and chat template, traces for it
//! to read, and the truth about their sinks. No weight is trained: the residual stream is given a
//! random orthonormal basis in which one direction is where sinks point, a few mark kinds of
//! tokens, and the rest carry content.
//!
//! * *Formation.* A SwiGLU neuron of layer l_start reads a token's marker (and, for some kinds, a
//!   feature that attention brought from the token before) and writes a large vector in the
//!   direction of sinks.
//! * *Lifetime.* At a few layers the MLPs write the same drift across every sink, as RMSNorm hides
//!   how large each is. Small ones turn away from the reference at once, larger ones later or
//!   never.
//! * *Effect.* Queries are constant; keys are normed and tell a sink by how far it outweighs the
//!   constant part of every token, so larger sinks draw more attention. Their values are tiny.
//! * *End.* A late neuron takes the sink direction out of BOS, and only out of what is as large.
//!
//! Decoys look like sinks in one respect each: a larger norm, the opposite direction, a direction
//! not near enough, the right token in the wrong context.

mod attention;
mod checkpoint;
mod linalg;
mod mlp;
mod plan;
mod rng;
mod text;
mod truth;
mod vocabulary;

use std::fs;
use std::path::Path;

use fathom_model::{Error, Result};
use serde_json::json;

pub use truth::{
    Difference, Mismatch, PlantedDecoy, PlantedKind, PlantedSequence, PlantedSink, PlantedTruth,
};

use rng::Rng;
use vocabulary::{CHAT_TEMPLATE, Vocabulary};

/// What to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlantOptions {
    /// Same seed, same bytes.
    pub seed: u64,
    /// How many traces to write, at least one.
    pub traces: usize,
}

impl Default for PlantOptions {
    fn default() -> PlantOptions {
        PlantOptions { seed: 0, traces: 6 }
    }
}

/// Tokens of the shortest answer.
const SHORTEST: usize = 180;
/// Each answer is longer than the one before by this many tokens, up to a length and over again.
const LONGER: usize = 70;
/// After so many traces lengths repeat.
const LENGTHS: usize = 6;

/// Writes a planted model, `traces.jsonl` and `truth.json` to a directory that is empty or does not
/// exist.
///
/// # Errors
/// A directory that holds something or cannot be written to; no traces asked for.
pub fn plant(out_dir: &Path, options: &PlantOptions) -> Result<PlantedTruth> {
    if options.traces == 0 {
        return Err(Error::Request("a planted model needs at least one trace".to_owned()));
    }
    claim(out_dir)?;
    let mut rng = Rng::new(options.seed);
    let vocabulary = Vocabulary::new();
    let texts: Vec<text::TraceText> = (0..options.traces)
        .map(|i| text::write_trace(&mut rng, &vocabulary, SHORTEST + LONGER * (i % LENGTHS)))
        .collect();
    let rendered: Vec<_> = texts.iter().map(|trace| text::render(&vocabulary, trace)).collect();
    let ids: Vec<&[u32]> = rendered.iter().map(|(ids, _)| ids.as_slice()).collect();

    let model = out_dir.join("model.safetensors");
    write(&model, &checkpoint::weights(&model, &mut rng, &vocabulary, &ids)?)?;
    let lines: String = (0..).zip(&texts).map(|(index, trace)| trace_line(index, trace)).collect();
    let truth = PlantedTruth::new(options.seed, &vocabulary, rendered);
    let file = |name: &str, text: String| write(&out_dir.join(name), text.as_bytes());
    file("traces.jsonl", lines)?;
    file("chat_template.jinja", CHAT_TEMPLATE.to_owned())?;
    file("config.json", format!("{:#}\n", checkpoint::config_json(&vocabulary)))?;
    let generation = checkpoint::generation_config_json(&vocabulary);
    file("generation_config.json", format!("{generation:#}\n"))?;
    file("tokenizer.json", format!("{:#}\n", vocabulary.tokenizer_json()))?;
    file("tokenizer_config.json", format!("{:#}\n", vocabulary.tokenizer_config_json()))?;
    file("truth.json", truth.to_json())?;
    Ok(truth)
}

/// Makes the directory, unless there is an empty one.
fn claim(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be made a directory"))?;
    let mut entries = fs::read_dir(dir).map_err(Error::io(dir, "cannot be read"))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            Err(Error::file(dir, "is not empty; a model is planted in an empty directory only"))
        }
    }
}

fn trace_line(index: usize, trace: &text::TraceText) -> String {
    let line = json!({"index": index, "prompt": trace.prompt, "output": trace.output});
    format!("{line}\n")
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Error::io(path, "cannot be written"))
}
