//! The results of a scan as analyses see them, and the choice of tokens that analyses use.

use std::collections::{BTreeMap, BTreeSet};

use fathom_model::{Error, Result, TokenizedTrace};
use serde::{Deserialize, Serialize};

use super::ExplainOptions;
use crate::{Class, ScanOptions, Sink, TraceDetection};

/// The sink a result is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkNote {
    /// 0-based number of the trace in the run: its line in `detections.jsonl`.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// Position in the trace.
    pub position: usize,
    /// The token there.
    pub token_id: u32,
    /// The token's text, if the run has it.
    pub token_text: Option<String>,
    /// Its class.
    pub class: Class,
    /// First layer at which it is a sink.
    pub l_start: usize,
    /// Number of layers at which it is one.
    pub lifetime: usize,
}

/// The results of a scan: what an analysis knows before any pass.
pub(super) struct ScannedRun<'a> {
    /// Its traces, in order.
    pub traces: Vec<ScannedTrace<'a>>,
    /// Layers of the model.
    pub layers: usize,
    /// Attention heads of each layer.
    pub heads: usize,
    /// How it was scanned.
    pub scan: &'a ScanOptions,
    /// Limits, seed and settings of the analyses.
    pub options: ExplainOptions,
}

/// One trace of a run.
pub(super) struct ScannedTrace<'a> {
    /// 0-based number of the trace in the run.
    pub number: usize,
    /// The tokens that were scanned; empty if no pass is made.
    pub ids: &'a [u32],
    /// Prompt tokens; 0 if not known.
    pub prompt_len: usize,
    /// The sinks found.
    pub detection: &'a TraceDetection,
    /// Position of the reference.
    pub reference: usize,
}

impl<'a> ScannedTrace<'a> {
    /// The traces of a run, without their tokens.
    pub fn without_tokens(detections: &'a [TraceDetection]) -> Vec<ScannedTrace<'a>> {
        let trace = |(number, detection): (usize, &'a TraceDetection)| ScannedTrace {
            number,
            ids: &[],
            prompt_len: detection.prompt_len,
            detection,
            reference: detection.scan.map_or(0, |note| note.reference),
        };
        detections.iter().enumerate().map(trace).collect()
    }

    /// The traces of a run, with their tokens.
    ///
    /// # Errors
    /// Detections that do not belong to these traces.
    pub fn with_tokens(
        traces: &'a [TokenizedTrace],
        detections: &'a [TraceDetection],
    ) -> Result<Vec<ScannedTrace<'a>>> {
        if traces.len() < detections.len() {
            let (given, scanned) = (traces.len(), detections.len());
            let problem = format!("the run scanned {scanned} traces, but there are only {given}");
            return Err(Error::Request(problem));
        }
        let scanned = |(number, (trace, detection)): (usize, (&'a TokenizedTrace, _))| {
            let detection: &TraceDetection = detection;
            let ids = detection.scan.and_then(|note| trace.ids.get(..note.tokens));
            let same = |ids: &[u32]| {
                detection.sinks.iter().all(|sink| ids.get(sink.position) == Some(&sink.token_id))
            };
            match (ids, detection.scan) {
                (Some(ids), Some(note)) if !ids.is_empty() && same(ids) => Ok(ScannedTrace {
                    number,
                    ids,
                    prompt_len: trace.prompt_len,
                    detection,
                    reference: note.reference,
                }),
                _ => Err(Error::Request(format!(
                    "the detections of trace {number} do not belong to the tokens of its text"
                ))),
            }
        };
        traces.iter().zip(detections).enumerate().map(scanned).collect()
    }

    /// Number of its tokens.
    pub fn tokens(&self) -> usize {
        self.detection.scanned_tokens()
    }

    /// Its secondary sinks, without the reference.
    pub fn secondary(&self) -> impl Iterator<Item = &'a Sink> {
        self.detection.of_class(Class::Secondary).filter(|sink| sink.position != self.reference)
    }

    /// Whether a token is a sink of any class, or the reference.
    pub fn is_sink(&self, position: usize) -> bool {
        position == self.reference
            || self.detection.sinks.binary_search_by_key(&position, |sink| sink.position).is_ok()
    }

    /// The note by which results identify a sink of this trace.
    pub fn note(&self, sink: &Sink) -> SinkNote {
        SinkNote {
            trace: self.number,
            sample_index: self.detection.sample_index,
            position: sink.position,
            token_id: sink.token_id,
            token_text: sink.token_text.clone(),
            class: sink.class,
            l_start: sink.l_start(),
            lifetime: sink.lifetime(),
        }
    }
}

/// A token: the trace's number and the position.
pub(super) type Token = (usize, usize);

/// The secondary sinks of all traces.
pub(super) fn secondary_tokens(traces: &[ScannedTrace<'_>]) -> Vec<Token> {
    let of = |trace: &ScannedTrace<'_>| {
        let number = trace.number;
        trace.secondary().map(move |sink| (number, sink.position)).collect::<Vec<Token>>()
    };
    traces.iter().flat_map(of).collect()
}

/// The secondary sinks of all traces whose first layer is `layer`.
pub(super) fn created_at(traces: &[ScannedTrace<'_>], layer: usize) -> Vec<Token> {
    let of = |trace: &ScannedTrace<'_>| {
        let number = trace.number;
        let created = trace.secondary().filter(|sink| sink.l_start() == layer);
        created.map(|sink| (number, sink.position)).collect::<Vec<Token>>()
    };
    traces.iter().flat_map(of).collect()
}

/// At most `n` of the tokens, ascending. The same seed always chooses the same ones.
pub(super) fn sample(tokens: impl IntoIterator<Item = Token>, n: usize, seed: u64) -> Vec<Token> {
    let mut chosen: Vec<(u64, Token)> =
        tokens.into_iter().map(|token| (shuffle_key(seed, token), token)).collect();
    chosen.sort_unstable();
    chosen.truncate(n);
    let mut tokens: Vec<Token> = chosen.into_iter().map(|(_, token)| token).collect();
    tokens.sort_unstable();
    tokens
}

/// SplitMix64 over seed, trace and position.
pub(super) fn shuffle_key(seed: u64, (trace, position): Token) -> u64 {
    let mix = |x: u64, y: u64| {
        let mut z = x.wrapping_add(y.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(mix(seed, trace as u64), position as u64)
}

/// The layers at which the most secondary sinks start: at most three, ascending.
pub(super) fn creation_layers(traces: &[ScannedTrace<'_>]) -> Vec<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for sink in traces.iter().flat_map(ScannedTrace::secondary) {
        *counts.entry(sink.l_start()).or_default() += 1;
    }
    let mut layers: Vec<(usize, usize)> = counts.into_iter().collect();
    layers.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: lower layers first
    layers.truncate(3);
    let mut layers: Vec<usize> = layers.into_iter().map(|(layer, _)| layer).collect();
    layers.sort_unstable();
    layers
}

/// Tokens that are not sinks, to compare sinks with; preferably tokens with the same ids.
pub(super) struct Others {
    /// The tokens, ascending.
    pub tokens: Vec<Token>,
    /// How many have the id of one of the sinks.
    pub of_same_ids: usize,
}

impl Others {
    /// Chooses as many tokens of `traces`, which are in order, as there are `sinks`, if there are
    /// that many.
    pub fn of(traces: &[ScannedTrace<'_>], sinks: &[Token], seed: u64) -> Others {
        let id = |(number, position): &Token| {
            let trace = traces.binary_search_by_key(number, |trace| trace.number).ok()?;
            traces[trace].ids.get(*position).copied()
        };
        let ids: BTreeSet<u32> = sinks.iter().filter_map(id).collect();
        let of_ids = |same: bool| {
            let ids = &ids;
            traces.iter().flat_map(move |trace| {
                let wanted =
                    move |t: &usize| !trace.is_sink(*t) && ids.contains(&trace.ids[*t]) == same;
                (0..trace.ids.len()).filter(wanted).map(|t| (trace.number, t))
            })
        };
        let mut tokens = sample(of_ids(true), sinks.len(), seed);
        let of_same_ids = tokens.len();
        tokens.extend(sample(of_ids(false), sinks.len() - of_same_ids, seed));
        tokens.sort_unstable();
        Others { tokens, of_same_ids }
    }
}
