//! The phases of a run's traces, for figures.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use fathom_sinks::{Class, Clip, Finding, Phases, Sink, TraceDetection};

use crate::number::ranges;

/// The phases of a run if at least one trace has several; otherwise there is nothing to tell apart,
/// and it is empty.
#[derive(Clone, Debug, Default)]
pub struct RunPhases {
    /// By descending number of traces, then by layer.
    all: Vec<RunPhase>,
    /// Of each trace, by first layer.
    of_traces: Vec<Vec<Clip>>,
}

/// A phase of the same layers in some traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunPhase {
    /// The layers.
    pub clip: Clip,
    /// Number of traces.
    pub traces: usize,
    /// Whether its sinks are listed.
    pub listed: bool,
}

impl RunPhases {
    /// The phases of traces whose sinks are those of the largest phase. `listed` are the phases
    /// whose sinks the run lists.
    pub fn new(traces: &[TraceDetection], listed: Phases) -> RunPhases {
        let mut counts: BTreeMap<(usize, usize, bool), usize> = BTreeMap::new();
        let mut of_traces = Vec::new();
        for trace in traces {
            let has_primary =
                |finding| !matches!(finding, Finding::TooShort | Finding::NoPrimarySink);
            let note = trace.scan.filter(|note| has_primary(note.finding));
            let largest = note.and_then(|note| note.clip).map(|clip| (clip, true));
            let others = trace.other_phases.iter().map(|phase| (phase.clip, listed == Phases::All));
            let mut clips = Vec::new();
            for (clip, listed) in largest.into_iter().chain(others) {
                *counts.entry((clip.start, clip.end, listed)).or_default() += 1;
                clips.push(clip);
            }
            clips.sort_by_key(|clip| clip.start);
            of_traces.push(clips);
        }
        if of_traces.iter().all(|clips| clips.len() < 2) {
            return RunPhases::default();
        }
        let phase =
            |((start, end, listed), traces)| RunPhase { clip: Clip { start, end }, traces, listed };
        let mut all: Vec<RunPhase> = counts.into_iter().map(phase).collect();
        all.sort_by_key(|phase| Reverse(phase.traces)); // stable: by layer
        RunPhases { all, of_traces }
    }

    /// The most frequent phases, at most `most`, by layer.
    pub fn most_frequent(&self, most: usize) -> Vec<RunPhase> {
        let mut phases: Vec<RunPhase> = self.all.iter().copied().take(most).collect();
        phases.sort_by_key(|phase| phase.clip.start);
        phases
    }

    /// The phases of a trace.
    pub fn of_trace(&self, trace: usize) -> &[Clip] {
        self.of_traces.get(trace).map_or(&[], Vec::as_slice)
    }

    /// The most frequent phase that contains a layer.
    pub fn containing(&self, layer: usize) -> Option<Clip> {
        let contains = |phase: &&RunPhase| phase.clip.layers().contains(&layer);
        self.all.iter().find(contains).map(|phase| phase.clip)
    }
}

/// The secondary sinks of phases that are not listed, with the number of their trace.
pub fn unlisted(traces: &[TraceDetection]) -> impl Iterator<Item = (usize, Clip, &Sink)> {
    traces.iter().enumerate().flat_map(|(t, trace)| {
        trace.other_phases.iter().flat_map(move |phase| {
            let secondary = phase.sinks.iter().filter(|sink| sink.class == Class::Secondary);
            secondary.map(move |sink| (t, phase.clip, sink))
        })
    })
}

/// `layers 3–7`
pub fn layers_of(clip: Clip) -> String {
    let s = if clip.end - clip.start == 1 { "" } else { "s" };
    format!("layer{s} {}", range_of(clip))
}

/// `3–7`
pub fn range_of(clip: Clip) -> String {
    ranges(&clip.layers().collect::<Vec<_>>())
}
