//! A model whose attention sinks are known by construction.
//!
//! [`plant`] writes a small Qwen3-class checkpoint with tokenizer and chat template, traces, and
//! the true sinks of those traces. The weights are not trained. They are built on a random
//! orthonormal basis of the residual stream: one direction is that of sinks, a few mark kinds of
//! tokens, and the others carry random content.
//!
//! * *Formation.* A SwiGLU neuron of layer l_start reads a token's marker (for some kinds also a
//!   feature that attention copied from the previous token) and writes a large vector along the
//!   sink direction.
//! * *Lifetime.* At a few layers the MLPs add the same drift vector, orthogonal to the sink
//!   direction, to every sink. It cannot depend on the sink's norm, which RMSNorm hides. Small
//!   sinks turn away from the reference at once, larger ones later or never.
//! * *Effect.* Queries are constant. Keys are normed, and their component along the query grows
//!   with the ratio of a token's sink component to its constant component. So larger sinks draw
//!   more attention. Their values are tiny.
//! * *End.* A neuron of a late layer removes the sink direction from BOS and from sinks as large as
//!   BOS.
//!
//! Options add:
//!
//! * *Two phases.* The same happens in seven layers before, with smaller norms: all sinks of the
//!   early phase have the same norm and are erased together, so their lifetimes follow from their
//!   first layers.
//! * *Attention-only tokens.* At some layers, the keys of the second key/value head read the marker
//!   of a token that occurs once in a trace.
//! * *Massive activations.* A neuron writes a large vector along one or two coordinates that no
//!   other direction uses, so queries, keys and the sink direction do not see it.
//!
//! Each decoy resembles a sink in one respect: a larger norm, the opposite direction, a similar but
//! not close enough direction, or the right token in the wrong context.

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
    Difference, Mismatch, PlantedAttention, PlantedDecoy, PlantedKind, PlantedMassive,
    PlantedSequence, PlantedSink, PlantedTruth,
};

use plan::Plan;
use rng::Rng;
use vocabulary::{CHAT_TEMPLATE, Vocabulary};

/// Options of [`plant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlantOptions {
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Number of traces, at least one.
    pub traces: usize,
    /// Whether BOS is a sink twice: in an early phase, with sinks of its own, and in the late one.
    pub two_phases: bool,
    /// Whether some tokens draw attention although they are not aligned with BOS.
    pub attention_only: bool,
    /// Whether some tokens have massive activations although they are not sinks.
    pub massive: bool,
}

impl Default for PlantOptions {
    fn default() -> PlantOptions {
        PlantOptions {
            seed: 0,
            traces: 6,
            two_phases: false,
            attention_only: false,
            massive: false,
        }
    }
}

/// Minimum length of the shortest answer, in tokens.
const SHORTEST: usize = 180;
/// Difference in length between an answer and the next, in tokens.
const LONGER: usize = 70;
/// Number of different lengths, after which they repeat.
const LENGTHS: usize = 6;

/// Writes a planted model, `traces.jsonl` and `truth.json` to a directory that is empty or does not
/// exist.
///
/// # Errors
/// The directory is not empty or cannot be written, or `options.traces` is 0.
pub fn plant(out_dir: &Path, options: &PlantOptions) -> Result<PlantedTruth> {
    if options.traces == 0 {
        return Err(Error::Request("a planted model needs at least one trace".to_owned()));
    }
    create_empty_dir(out_dir)?;
    let plan = Plan::new(options);
    let mut rng = Rng::new(options.seed);
    let vocabulary = Vocabulary::new();
    let texts: Vec<text::TraceText> = (0..options.traces)
        .map(|i| text::write_trace(&mut rng, &vocabulary, SHORTEST + LONGER * (i % LENGTHS)))
        .collect();
    let rendered: Vec<_> = texts.iter().map(|trace| text::render(&vocabulary, trace)).collect();
    let ids: Vec<&[u32]> = rendered.iter().map(|(ids, _)| ids.as_slice()).collect();

    let model = out_dir.join("model.safetensors");
    write(&model, &checkpoint::weights(&model, &plan, &mut rng, &vocabulary, &ids)?)?;
    let lines: String = (0..).zip(&texts).map(|(index, trace)| trace_line(index, trace)).collect();
    let truth = PlantedTruth::new(options.seed, &plan, &vocabulary, rendered);
    let file = |name: &str, text: String| write(&out_dir.join(name), text.as_bytes());
    file("traces.jsonl", lines)?;
    file("chat_template.jinja", CHAT_TEMPLATE.to_owned())?;
    file("config.json", format!("{:#}\n", checkpoint::config_json(&plan, &vocabulary)))?;
    let generation = checkpoint::generation_config_json(&vocabulary);
    file("generation_config.json", format!("{generation:#}\n"))?;
    file("tokenizer.json", format!("{:#}\n", vocabulary.tokenizer_json()))?;
    file("tokenizer_config.json", format!("{:#}\n", vocabulary.tokenizer_config_json()))?;
    file("truth.json", truth.to_json())?;
    Ok(truth)
}

/// Creates the directory, or checks that it is empty.
fn create_empty_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
    let mut entries = fs::read_dir(dir).map_err(Error::io(dir, "cannot be read"))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            Err(Error::file(dir, "is not empty; a model can only be planted in an empty directory"))
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
