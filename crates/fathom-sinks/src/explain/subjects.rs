//! The tokens that are looked at.

use std::collections::{BTreeMap, BTreeSet};

use fathom_model::{Error, Result, TokenizedTrace};
use serde::{Deserialize, Serialize};

use crate::{Class, Sink, TraceDetection};

/// Which sink a result is about.
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
    /// The token's text, where the run knows it.
    pub token_text: Option<String>,
    /// Class.
    pub class: Class,
    /// First layer at which it is a sink.
    pub l_start: usize,
    /// Number of layers at which it is one.
    pub lifetime: usize,
}

/// One trace of a run, as it was scanned.
pub(super) struct Subject<'a> {
    /// 0-based number of the trace in the run.
    pub number: usize,
    /// The tokens that were scanned.
    pub ids: &'a [u32],
    /// Prompt tokens; 0 where not known.
    pub prompt_len: usize,
    /// What was found.
    pub detection: &'a TraceDetection,
    /// Position of the reference.
    pub reference: usize,
}

impl<'a> Subject<'a> {
    /// The traces of a run without their tokens.
    pub fn scanned(detections: &'a [TraceDetection]) -> Vec<Subject<'a>> {
        let subject = |(number, detection): (usize, &'a TraceDetection)| Subject {
            number,
            ids: &[],
            prompt_len: detection.prompt_len,
            detection,
            reference: detection.scan.map_or(0, |note| note.reference),
        };
        detections.iter().enumerate().map(subject).collect()
    }

    /// Puts traces and detections together.
    ///
    /// # Errors
    /// Detections that do not belong to these traces.
    pub fn all(
        traces: &'a [TokenizedTrace],
        detections: &'a [TraceDetection],
    ) -> Result<Vec<Subject<'a>>> {
        if traces.len() < detections.len() {
            let (given, scanned) = (traces.len(), detections.len());
            let problem = format!("the run scanned {scanned} traces, but there are only {given}");
            return Err(Error::Request(problem));
        }
        let subject = |(number, (trace, detection)): (usize, (&'a TokenizedTrace, _))| {
            let detection: &TraceDetection = detection;
            let ids = detection.scan.and_then(|note| trace.ids.get(..note.tokens));
            let same = |ids: &[u32]| {
                detection.sinks.iter().all(|sink| ids.get(sink.position) == Some(&sink.token_id))
            };
            match (ids, detection.scan) {
                (Some(ids), Some(note)) if !ids.is_empty() && same(ids) => Ok(Subject {
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
        traces.iter().zip(detections).enumerate().map(subject).collect()
    }

    /// Its secondary sinks, the reference left out.
    pub fn secondary(&self) -> impl Iterator<Item = &'a Sink> {
        self.detection.of_class(Class::Secondary).filter(|sink| sink.position != self.reference)
    }

    /// Whether a token is a sink of any class, or the reference.
    pub fn is_sink(&self, position: usize) -> bool {
        position == self.reference
            || self.detection.sinks.binary_search_by_key(&position, |sink| sink.position).is_ok()
    }

    /// Whether the scan measured the sink score of its reference, and so of all its sinks.
    pub fn is_measured(&self) -> bool {
        let mut sinks = self.detection.sinks.iter();
        sinks.any(|sink| sink.position == self.reference && sink.sink_score.is_some())
    }

    /// What results say of a sink of this trace.
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
pub(super) fn secondary_tokens(subjects: &[Subject<'_>]) -> Vec<Token> {
    let of = |subject: &Subject<'_>| {
        let number = subject.number;
        subject.secondary().map(move |sink| (number, sink.position)).collect::<Vec<Token>>()
    };
    subjects.iter().flat_map(of).collect()
}

/// Those that are made at a layer.
pub(super) fn created_at(subjects: &[Subject<'_>], layer: usize) -> Vec<Token> {
    let of = |subject: &Subject<'_>| {
        let number = subject.number;
        let created = subject.secondary().filter(|sink| sink.l_start() == layer);
        created.map(|sink| (number, sink.position)).collect::<Vec<Token>>()
    };
    subjects.iter().flat_map(of).collect()
}

/// `n` of the tokens, or all, in their order: the same for the same seed, whatever else is done.
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
fn shuffle_key(seed: u64, (trace, position): Token) -> u64 {
    let mix = |x: u64, y: u64| {
        let mut z = x.wrapping_add(y.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(mix(seed, trace as u64), position as u64)
}

/// The layers that create most secondary sinks, at most three, ascending.
pub(super) fn creation_layers(subjects: &[Subject<'_>]) -> Vec<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for sink in subjects.iter().flat_map(Subject::secondary) {
        *counts.entry(sink.l_start()).or_default() += 1;
    }
    let mut layers: Vec<(usize, usize)> = counts.into_iter().collect();
    layers.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: lower layers first
    layers.truncate(3);
    let mut layers: Vec<usize> = layers.into_iter().map(|(layer, _)| layer).collect();
    layers.sort_unstable();
    layers
}

/// Tokens that are no sinks, as many as `sinks` where there are: those with a sink's id first.
pub(super) struct Others {
    /// The tokens, in their order.
    pub tokens: Vec<Token>,
    /// How many have the id of one of the sinks.
    pub of_same_ids: usize,
}

impl Others {
    /// Chooses them.
    pub fn of(subjects: &[Subject<'_>], sinks: &[Token], seed: u64) -> Others {
        let id = |(trace, position): &Token| subjects[*trace].ids[*position];
        let ids: BTreeSet<u32> = sinks.iter().map(id).collect();
        let of_ids = |same: bool| {
            let ids = &ids;
            subjects.iter().flat_map(move |subject| {
                let wanted =
                    move |t: &usize| !subject.is_sink(*t) && ids.contains(&subject.ids[*t]) == same;
                (0..subject.ids.len()).filter(wanted).map(|t| (subject.number, t))
            })
        };
        let mut tokens = sample(of_ids(true), sinks.len(), seed);
        let of_same_ids = tokens.len();
        tokens.extend(sample(of_ids(false), sinks.len() - of_same_ids, seed));
        tokens.sort_unstable();
        Others { tokens, of_same_ids }
    }
}
