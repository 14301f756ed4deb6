//! The true sinks of a planted model, and their comparison with detections.

use std::fmt;
use std::path::Path;

use fathom_model::{Error, Result};
use serde::{Deserialize, Serialize};

use super::plan::{CLIP, Context, KINDS, LAYERS, OUT_OF_CONTEXT, Outcome, TRIGGERS};
use super::vocabulary::{BOS, Vocabulary};
use crate::{Class, Clip, Detection};

/// The contents of `truth.json`, which come from the plan and are not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedTruth {
    /// Seed of the model and its traces.
    pub seed: u64,
    /// Number of decoder layers.
    pub layers: usize,
    /// The layers at which BOS, the reference, is a sink.
    pub clip: Clip,
    /// The planted kinds of tokens.
    pub kinds: Vec<PlantedKind>,
    /// One per line of `traces.jsonl`.
    pub sequences: Vec<PlantedSequence>,
}

/// A planted kind of token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedKind {
    /// Its name in [`PlantedSink::kind`] and [`PlantedDecoy::kind`].
    pub kind: String,
    /// The texts of the tokens.
    pub tokens: Vec<String>,
    /// The texts of the previous tokens that make a token count as this kind; empty if any does.
    pub after: Vec<String>,
    /// The layer whose MLP converts them.
    pub layer: usize,
    /// Planned norm of that MLP's output. The measured norm differs by a few percent, depending on
    /// the previous tokens.
    pub mlp_out_norm: f64,
    /// Class as a sink; `None` for a decoy.
    pub class: Option<Class>,
}

/// The sinks and decoys of one trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedSequence {
    /// The ids of the prompt, as rendered by the chat template, and of the answer.
    pub input_ids: Vec<u32>,
    /// How many of the ids belong to the prompt.
    pub prompt_len: usize,
    /// All sinks, by position.
    pub sinks: Vec<PlantedSink>,
    /// Tokens that resemble sinks, by position.
    pub decoys: Vec<PlantedDecoy>,
}

/// A planted sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedSink {
    /// Position in the trace.
    pub position: usize,
    /// Its token id.
    pub token_id: u32,
    /// Name of its [`PlantedKind`].
    pub kind: String,
    /// Its class under the preset `paper`.
    pub class: Class,
    /// Its first layer.
    pub l_start: usize,
    /// The number of its layers.
    pub lifetime: usize,
    /// The layers at which it is a sink.
    pub layers: Vec<usize>,
}

/// A token that resembles a sink but is not one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedDecoy {
    /// Position in the trace.
    pub position: usize,
    /// Its token id.
    pub token_id: u32,
    /// Name of its [`PlantedKind`].
    pub kind: String,
    /// Why it is not a sink.
    pub reason: String,
}

impl PlantedTruth {
    /// Reads a `truth.json`.
    ///
    /// # Errors
    /// The file cannot be read or has other contents.
    pub fn read(path: &Path) -> Result<PlantedTruth> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot be read"))?;
        serde_json::from_str(&text).map_err(|error| {
            Error::file(path, format!("is not the truth of a planted model: {error}"))
        })
    }

    /// The contents of `truth.json`.
    pub(super) fn to_json(&self) -> String {
        // Strings and finite numbers always have a JSON form.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// The truth for traces given as ids and length of the prompt.
    pub(super) fn new(
        seed: u64,
        vocabulary: &Vocabulary,
        traces: Vec<(Vec<u32>, usize)>,
    ) -> PlantedTruth {
        let sequence = |(ids, prompt_len)| PlantedSequence::new(vocabulary, ids, prompt_len);
        PlantedTruth {
            seed,
            layers: LAYERS,
            clip: CLIP,
            kinds: KINDS.iter().map(PlantedKind::new).collect(),
            sequences: traces.into_iter().map(sequence).collect(),
        }
    }

    /// Compares detections under the preset `paper`, one per sequence in order, with the truth. The
    /// result is empty if they agree in clip, positions, tokens, classes and layers.
    pub fn compare(&self, detections: &[Detection]) -> Vec<Mismatch> {
        let mut mismatches = Vec::new();
        for (trace, sequence) in self.sequences.iter().enumerate() {
            let differences = match detections.get(trace) {
                Some(detection) => sequence.differences(self.clip, detection),
                None => vec![Difference::NotScanned],
            };
            mismatches.extend(differences.into_iter().map(|what| Mismatch { trace, what }));
        }
        let unplanted = self.sequences.len()..detections.len();
        mismatches.extend(unplanted.map(|trace| Mismatch { trace, what: Difference::NotPlanted }));
        mismatches
    }
}

impl PlantedKind {
    fn new(kind: &super::plan::Kind) -> PlantedKind {
        let after: &[&str] = match kind.context {
            Context::Anywhere => &[],
            Context::AfterBos => &[BOS],
            Context::AfterTrigger => &TRIGGERS,
        };
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        PlantedKind {
            kind: kind.name.to_owned(),
            tokens: owned(kind.tokens),
            after: owned(after),
            layer: kind.layer,
            mlp_out_norm: kind.norm(),
            class: match kind.outcome {
                Outcome::Sink { class, .. } => Some(class),
                Outcome::Decoy { .. } => None,
            },
        }
    }
}

impl PlantedSequence {
    fn new(vocabulary: &Vocabulary, input_ids: Vec<u32>, prompt_len: usize) -> PlantedSequence {
        let is_one_of =
            |id: u32, texts: &[&str]| texts.iter().any(|text| vocabulary.id(text) == Some(id));
        let (mut sinks, mut decoys) = (Vec::new(), Vec::new());
        let mut before = None;
        for (position, &token_id) in input_ids.iter().enumerate() {
            let previous = before.replace(token_id);
            let Some(plan) = KINDS.iter().find(|kind| is_one_of(token_id, kind.tokens)) else {
                continue;
            };
            let kind = plan.name.to_owned();
            let in_context = match plan.context {
                Context::Anywhere => true,
                Context::AfterBos => previous.is_some_and(|id| is_one_of(id, &[BOS])),
                Context::AfterTrigger => previous.is_some_and(|id| is_one_of(id, &TRIGGERS)),
            };
            match &plan.outcome {
                Outcome::Sink { class, layers } if in_context => sinks.push(PlantedSink {
                    position,
                    token_id,
                    kind,
                    class: *class,
                    l_start: layers.start,
                    lifetime: layers.len(),
                    layers: layers.clone().collect(),
                }),
                Outcome::Sink { .. } => {
                    let reason = OUT_OF_CONTEXT.to_owned();
                    decoys.push(PlantedDecoy { position, token_id, kind, reason });
                }
                Outcome::Decoy { reason } => {
                    let reason = (*reason).to_owned();
                    decoys.push(PlantedDecoy { position, token_id, kind, reason });
                }
            }
        }
        PlantedSequence { input_ids, prompt_len, sinks, decoys }
    }

    fn differences(&self, clip: Clip, detection: &Detection) -> Vec<Difference> {
        let mut differences = Vec::new();
        if detection.clip != Some(clip) {
            differences.push(Difference::Clip { planted: clip, found: detection.clip });
        }
        for planted in &self.sinks {
            match detection.sinks.iter().find(|sink| sink.position == planted.position) {
                None => differences.push(Difference::Missed { planted: planted.clone() }),
                Some(found) => {
                    let agrees = found.token_id == planted.token_id
                        && found.class == planted.class
                        && found.layers == planted.layers;
                    if !agrees {
                        differences.push(Difference::Differs {
                            planted: planted.clone(),
                            token_id: found.token_id,
                            class: found.class,
                            layers: found.layers.clone(),
                        });
                    }
                }
            }
        }
        let planted = |position| self.sinks.iter().any(|sink| sink.position == position);
        for found in detection.sinks.iter().filter(|sink| !planted(sink.position)) {
            let decoy = self.decoys.iter().find(|decoy| decoy.position == found.position);
            differences.push(Difference::Extra {
                position: found.position,
                token_id: found.token_id,
                class: found.class,
                decoy: decoy.cloned(),
            });
        }
        differences
    }
}

/// A difference between a detection and the truth. Its `Display` is a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// 0-based line of `traces.jsonl`.
    pub trace: usize,
    /// What differs.
    pub what: Difference,
}

/// The kind of a [`Mismatch`].
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// There is no detection for the trace.
    NotScanned,
    /// There is a detection for a trace that was not planted.
    NotPlanted,
    /// The reference rises or falls at other layers.
    Clip {
        /// The planted layers.
        planted: Clip,
        /// The detected layers.
        found: Option<Clip>,
    },
    /// A planted sink was not found.
    Missed {
        /// The sink.
        planted: PlantedSink,
    },
    /// A planted sink was found, but with another token, class or layers.
    Differs {
        /// The sink as planted.
        planted: PlantedSink,
        /// The detected token id.
        token_id: u32,
        /// The detected class.
        class: Class,
        /// The detected layers.
        layers: Vec<usize>,
    },
    /// A sink was found where none was planted.
    Extra {
        /// Position in the trace.
        position: usize,
        /// Its token id.
        token_id: u32,
        /// The detected class.
        class: Class,
        /// The decoy at this position, if any.
        decoy: Option<PlantedDecoy>,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trace {}: ", self.trace)?;
        match &self.what {
            Difference::NotScanned => write!(f, "not scanned"),
            Difference::NotPlanted => write!(f, "not planted"),
            Difference::Clip { planted, found: None } => {
                write!(f, "no reference sink, planted at layers {}..{}", planted.start, planted.end)
            }
            Difference::Clip { planted, found: Some(found) } => write!(
                f,
                "reference sink at layers {}..{}, planted at {}..{}",
                found.start, found.end, planted.start, planted.end
            ),
            Difference::Missed { planted } => {
                write!(f, "`{}` at position {} was not found", planted.kind, planted.position)
            }
            Difference::Differs { planted, class, layers, .. } => write!(
                f,
                "`{}` at position {} is {} at layers {layers:?}, planted {} at {:?}",
                planted.kind,
                planted.position,
                class.name(),
                planted.class.name(),
                planted.layers
            ),
            Difference::Extra { position, class, decoy: None, .. } => {
                write!(f, "position {position} is {}, nothing was planted there", class.name())
            }
            Difference::Extra { position, class, decoy: Some(decoy), .. } => write!(
                f,
                "position {position} is {}, but a decoy (`{}`: {})",
                class.name(),
                decoy.kind,
                decoy.reason
            ),
        }
    }
}
