//! The true sinks of a planted model, and their comparison with detections.

use std::fmt;
use std::path::Path;

use fathom_model::{Error, Result};
use serde::{Deserialize, Serialize};

use super::plan::{
    Context, Direction, Kind, MASSIVE_DIMS, OUT_OF_CONTEXT, Outcome, Plan, TRIGGERS, Write,
};
use super::vocabulary::{BOS, Vocabulary};
use crate::{Class, Clip, Detection, Sink};

/// The contents of `truth.json`, which come from the plan and are not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedTruth {
    /// Seed of the model and its traces.
    pub seed: u64,
    /// Number of decoder layers.
    pub layers: usize,
    /// The layers at which BOS, the reference, is a sink: the phase of the largest rise.
    pub clip: Clip,
    /// All phases, ascending; empty if `clip` is the only one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub phases: Vec<Clip>,
    /// The planted kinds of tokens.
    pub kinds: Vec<PlantedKind>,
    /// One per line of `traces.jsonl`.
    pub sequences: Vec<PlantedSequence>,
}

/// A planted kind of token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedKind {
    /// Its name in [`PlantedSink::kind`] and [`PlantedDecoy::kind`]. A kind of two phases is listed
    /// twice.
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
    /// Index in [`PlantedTruth::phases`] of the phase it is converted in; `None` if there is one
    /// phase.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub phase: Option<usize>,
}

/// The sinks and decoys of one trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlantedSequence {
    /// The ids of the prompt, as rendered by the chat template, and of the answer.
    pub input_ids: Vec<u32>,
    /// How many of the ids belong to the prompt.
    pub prompt_len: usize,
    /// The sinks of all phases, by position, then first layer. A position occurs once per phase.
    pub sinks: Vec<PlantedSink>,
    /// Tokens that resemble sinks, by position.
    pub decoys: Vec<PlantedDecoy>,
    /// Tokens that draw attention and are not sinks, by position.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub attention_only: Vec<PlantedAttention>,
    /// Tokens with massive activations that are not sinks, by position.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub massive: Vec<PlantedMassive>,
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
    /// Index of its phase in [`PlantedTruth::phases`]; `None` if there is one phase.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub phase: Option<usize>,
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

/// A token that draws attention without being aligned with the reference. Its norm is ordinary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedAttention {
    /// Position in the trace.
    pub position: usize,
    /// Its token id.
    pub token_id: u32,
    /// Name of its kind.
    pub kind: String,
    /// The layers at which its sink score is above 0.3.
    pub layers: Vec<usize>,
    /// The heads of these layers whose score of it is above 0.3.
    pub heads: Vec<usize>,
}

/// A token with massive activations: components of `resid_post` above 100, and above 1000 times
/// the median of its components, in absolute value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlantedMassive {
    /// Position in the trace.
    pub position: usize,
    /// Its token id.
    pub token_id: u32,
    /// Name of its kind.
    pub kind: String,
    /// The layers at whose output it has them.
    pub layers: Vec<usize>,
    /// The indices of the components, ascending.
    pub dims: Vec<usize>,
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
        plan: &Plan,
        vocabulary: &Vocabulary,
        traces: Vec<(Vec<u32>, usize)>,
    ) -> PlantedTruth {
        let sequence = |(ids, prompt_len)| PlantedSequence::new(plan, vocabulary, ids, prompt_len);
        let phases = match plan.phases.len() {
            1 => Vec::new(),
            _ => plan.phases.iter().map(|phase| phase.clip).collect(),
        };
        PlantedTruth {
            seed,
            layers: plan.layers,
            clip: plan.largest().clip,
            phases,
            kinds: plan.kinds.iter().flat_map(|kind| PlantedKind::all(plan, kind)).collect(),
            sequences: traces.into_iter().map(sequence).collect(),
        }
    }

    /// Index of a phase in [`PlantedTruth::phases`]; `None` if there is one phase.
    fn index_of(&self, clip: Clip) -> Option<usize> {
        self.phases.iter().position(|phase| *phase == clip)
    }

    /// Compares detections under the preset `paper`, one per sequence in order, with the truth. The
    /// result is empty if they agree in clip, other phases, positions, tokens, classes and layers.
    pub fn compare(&self, detections: &[Detection]) -> Vec<Mismatch> {
        let mut mismatches = Vec::new();
        for (trace, sequence) in self.sequences.iter().enumerate() {
            let differences = match detections.get(trace) {
                Some(detection) => sequence.differences(self, detection),
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
    /// The entries of a kind: one per conversion, none if it is neither sink nor decoy.
    fn all(plan: &Plan, kind: &Kind) -> Vec<PlantedKind> {
        let after: &[&str] = match kind.context {
            Context::Anywhere => &[],
            Context::AfterBos => &[BOS],
            Context::AfterTrigger => &TRIGGERS,
        };
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let classes: Vec<Option<Class>> = match &kind.outcome {
            Outcome::Sink(spans) => spans.iter().map(|(class, _)| Some(*class)).collect(),
            Outcome::Decoy { .. } => vec![None],
            Outcome::AttentionOnly { .. } | Outcome::Massive { .. } => Vec::new(),
        };
        let entry = |(write, class): (&Write, Option<Class>)| PlantedKind {
            kind: kind.name.to_owned(),
            tokens: owned(kind.tokens),
            after: owned(after),
            layer: write.layer,
            mlp_out_norm: write.norm(),
            class,
            phase: plan.phase_index(write.layer),
        };
        kind.writes.iter().zip(classes).map(entry).collect()
    }
}

impl PlantedSequence {
    fn new(
        plan: &Plan,
        vocabulary: &Vocabulary,
        input_ids: Vec<u32>,
        prompt_len: usize,
    ) -> PlantedSequence {
        let is_one_of =
            |id: u32, texts: &[&str]| texts.iter().any(|text| vocabulary.id(text) == Some(id));
        let (mut sinks, mut decoys) = (Vec::new(), Vec::new());
        let (mut attention_only, mut massive) = (Vec::new(), Vec::new());
        let mut before = None;
        for (position, &token_id) in input_ids.iter().enumerate() {
            let previous = before.replace(token_id);
            let Some(planted) = plan.kinds.iter().find(|kind| is_one_of(token_id, kind.tokens))
            else {
                continue;
            };
            let kind = planted.name.to_owned();
            let in_context = match planted.context {
                Context::Anywhere => true,
                Context::AfterBos => previous.is_some_and(|id| is_one_of(id, &[BOS])),
                Context::AfterTrigger => previous.is_some_and(|id| is_one_of(id, &TRIGGERS)),
            };
            match &planted.outcome {
                Outcome::Sink(spans) if in_context => {
                    sinks.extend(spans.iter().map(|(class, layers)| PlantedSink {
                        position,
                        token_id,
                        kind: kind.clone(),
                        class: *class,
                        l_start: layers.start,
                        lifetime: layers.len(),
                        layers: layers.clone().collect(),
                        phase: plan.phase_index(layers.start),
                    }));
                }
                Outcome::Sink(_) => {
                    let reason = OUT_OF_CONTEXT.to_owned();
                    decoys.push(PlantedDecoy { position, token_id, kind, reason });
                }
                Outcome::Decoy { reason } => {
                    let reason = (*reason).to_owned();
                    decoys.push(PlantedDecoy { position, token_id, kind, reason });
                }
                Outcome::AttentionOnly { layers, heads } => {
                    let (layers, heads) = (layers.clone(), heads.clone());
                    let token = PlantedAttention { position, token_id, kind, layers, heads };
                    attention_only.push(token);
                }
                Outcome::Massive { layers } => {
                    let (layers, dims) = (layers.clone().collect(), massive_dims(planted));
                    massive.push(PlantedMassive { position, token_id, kind, layers, dims });
                }
            }
        }
        PlantedSequence { input_ids, prompt_len, sinks, decoys, attention_only, massive }
    }

    fn differences(&self, truth: &PlantedTruth, detection: &Detection) -> Vec<Difference> {
        let mut differences = Vec::new();
        if detection.clip != Some(truth.clip) {
            let (planted, found) = (truth.clip, detection.clip);
            differences.push(Difference::Clip { planted, found });
        }
        self.sink_differences(truth.index_of(truth.clip), &detection.sinks, &mut differences);

        let others = truth.phases.iter().copied().filter(|clip| *clip != truth.clip);
        for planted in others.clone() {
            match detection.other_phases.iter().find(|phase| phase.clip == planted) {
                None => differences.push(Difference::PhaseMissed { planted }),
                Some(phase) => {
                    self.sink_differences(truth.index_of(planted), &phase.sinks, &mut differences);
                }
            }
        }
        let found = detection.other_phases.iter().map(|phase| phase.clip);
        let extra = found.filter(|clip| !others.clone().any(|planted| planted == *clip));
        differences.extend(extra.map(|found| Difference::PhaseExtra { found }));
        differences
    }

    /// Compares the sinks found in one phase with those planted in it.
    fn sink_differences(
        &self,
        phase: Option<usize>,
        found: &[Sink],
        differences: &mut Vec<Difference>,
    ) {
        let planted_here = || self.sinks.iter().filter(|sink| sink.phase == phase);
        for planted in planted_here() {
            match found.iter().find(|sink| sink.position == planted.position) {
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
        let planted = |position| planted_here().any(|sink| sink.position == position);
        for found in found.iter().filter(|sink| !planted(sink.position)) {
            let decoy = self.decoys.iter().find(|decoy| decoy.position == found.position);
            differences.push(Difference::Extra {
                position: found.position,
                token_id: found.token_id,
                class: found.class,
                decoy: decoy.cloned(),
            });
        }
    }
}

/// The coordinates along which a kind's massive activations are written, ascending.
fn massive_dims(kind: &Kind) -> Vec<usize> {
    let written = kind.writes.iter().flat_map(|write| &write.along);
    let dims = written.filter_map(|(direction, _)| match direction {
        Direction::Massive(i) => Some(MASSIVE_DIMS[*i]),
        _ => None,
    });
    dims.collect()
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
    /// A planted phase other than that of the largest rise was not found at its layers.
    PhaseMissed {
        /// Its layers.
        planted: Clip,
    },
    /// A phase was found at layers at which none was planted.
    PhaseExtra {
        /// Its layers.
        found: Clip,
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
            Difference::PhaseMissed { planted } => {
                write!(f, "no phase at layers {}..{}, planted there", planted.start, planted.end)
            }
            Difference::PhaseExtra { found } => {
                write!(f, "a phase at layers {}..{}, not planted", found.start, found.end)
            }
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
