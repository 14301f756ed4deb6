//! Phases: a reference may be large more than once (docs/definitions.md, "Phases").

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Clip, Sink};

/// Which phases' sinks count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phases {
    /// Those of the reference's largest rise, as in the paper and its published scripts.
    #[default]
    Largest,
    /// Those of every phase.
    All,
}

/// Layers at which the reference is large, other than those of its largest rise.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// The layers, `start..end`.
    pub clip: Clip,
    /// By how much the norm of the reference rises into `clip.start`, in mean norms of the tokens
    /// not aligned with it there, as [`crate::Detection::rise`].
    pub rise: f32,
    /// The largest norm of the reference in the phase, in the same unit at its layer.
    pub peak: f32,
    /// Its sinks by position, classed within the phase, the reference among them.
    pub sinks: Vec<Sink>,
}

impl Phases {
    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Phases::Largest => "largest",
            Phases::All => "all",
        }
    }

    /// For `serde(skip_serializing_if)`: runs of the default look as they always did.
    pub(crate) fn is_default(&self) -> bool {
        *self == Phases::default()
    }
}

/// The maximal runs of layers at which `ratios` is at least `factor`.
pub(crate) fn runs(ratios: &[f32], factor: f32) -> Vec<Range<usize>> {
    let large = |l: usize| ratios[l] >= factor;
    let mut runs: Vec<Range<usize>> = Vec::new();
    for l in (0..ratios.len()).filter(|l| large(*l)) {
        match runs.last_mut() {
            Some(run) if run.end == l => run.end = l + 1,
            _ => runs.push(l..l + 1),
        }
    }
    runs
}

/// All sinks of a trace, those of the phase of the largest rise given, by position, then first
/// layer.
pub(crate) fn merged(largest: &[Sink], others: &[Phase]) -> Vec<Sink> {
    let others = others.iter().flat_map(|phase| &phase.sinks);
    let mut all: Vec<Sink> = largest.iter().chain(others).cloned().collect();
    all.sort_by_key(|sink| (sink.position, sink.l_start()));
    all
}
