//! What is known of a planted model, and how a detection compares with it.

use std::fmt;
use std::path::Path;

use fathom_model::{Error, Result};
use serde::{Deserialize, Serialize};

use super::plan::{CLIP, Context, Fate, KINDS, LAYERS, OUT_OF_CONTEXT, TRIGGERS};
use super::vocabulary::{BOS, Vocabulary};
use crate::{Class, Clip, Detection};

/// What `truth.json` says: written from the plan, not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedTruth {
    /// Seed the model and its traces were made from.
    pub seed: u64,
    /// Decoder layers of the model.
    pub layers: usize,
    /// Where BOS, the reference, is a sink.
    pub clip: Clip,
    /// The kinds of tokens that were planted.
    pub kinds: Vec<PlantedKind>,
    /// One per line of `traces.jsonl`.
    pub sequences: Vec<PlantedSequence>,
}

/// One kind of token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedKind {
    /// Its name in [`PlantedSink::kind`] and [`PlantedDecoy::kind`].
    pub kind: String,
    /// The tokens, as they read in text.
    pub tokens: Vec<String>,
    /// What they must directly follow to be of this kind, as it reads in text; nothing when empty.
    pub after: Vec<String>,
    /// The layer whose MLP converts them.
    pub layer: usize,
    /// Norm of what that MLP writes; a few percent more or less, depending on the tokens before.
    pub mlp_out_norm: f64,
    /// Class as a sink; absent of a decoy.
    pub class: Option<Class>,
}

/// What is planted in one trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedSequence {
    /// Prompt, as the chat template renders it, and answer.
    pub input_ids: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
    /// All its sinks by position.
    pub sinks: Vec<PlantedSink>,
    /// Tokens that might be taken for sinks, by position.
    pub decoys: Vec<PlantedDecoy>,
}

/// A token that is a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedSink {
    /// Position in the trace.
    pub position: usize,
    /// The token there.
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

/// A token that is no sink although something about it may suggest one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedDecoy {
    /// Position in the trace.
    pub position: usize,
    /// The token there.
    pub token_id: u32,
    /// Name of its [`PlantedKind`].
    pub kind: String,
    /// Why it is none.
    pub reason: String,
}

impl PlantedTruth {
    /// Reads a `truth.json`.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<PlantedTruth> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot be read"))?;
        serde_json::from_str(&text).map_err(|error| {
            Error::file(path, format!("is not the truth of a planted model: {error}"))
        })
    }

    /// `truth.json`
    pub(super) fn to_json(&self) -> String {
        // Strings and finite numbers always have a JSON form.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// The truth about these traces (ids, length of the prompt).
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

    /// Holds detections under the preset `paper`, one per sequence and in their order, against the
    /// truth. Nothing is returned where they agree in clip, positions, tokens, classes and layers.
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
            class: match kind.fate {
                Fate::Sink { class, .. } => Some(class),
                Fate::Decoy { .. } => None,
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
            match &plan.fate {
                Fate::Sink { class, layers } if in_context => sinks.push(PlantedSink {
                    position,
                    token_id,
                    kind,
                    class: *class,
                    l_start: layers.start,
                    lifetime: layers.len(),
                    layers: layers.clone().collect(),
                }),
                Fate::Sink { .. } => {
                    let reason = OUT_OF_CONTEXT.to_owned();
                    decoys.push(PlantedDecoy { position, token_id, kind, reason });
                }
                Fate::Decoy { reason } => {
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

/// Where a detection differs from the truth; reads as a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// 0-based line of `traces.jsonl`.
    pub trace: usize,
    /// What differs.
    pub what: Difference,
}

/// What differs between a detection and the truth.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// There is no detection for the trace.
    NotScanned,
    /// There is a detection for a trace that was not planted.
    NotPlanted,
    /// The reference rises or falls elsewhere.
    Clip {
        /// Where it was planted.
        planted: Clip,
        /// Where it was found.
        found: Option<Clip>,
    },
    /// A planted sink was not found.
    Missed {
        /// The sink.
        planted: PlantedSink,
    },
    /// A planted sink was found otherwise than planted.
    Differs {
        /// The sink.
        planted: PlantedSink,
        /// The token it was found to be.
        token_id: u32,
        /// The class it was found to have.
        class: Class,
        /// The layers it was found at.
        layers: Vec<usize>,
    },
    /// A sink was found where none was planted.
    Extra {
        /// Position in the trace.
        position: usize,
        /// The token there.
        token_id: u32,
        /// The class it was found to have.
        class: Class,
        /// What was planted there to mislead.
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
