//! Phases (docs/definitions.md): runs of layers in which the norm of the reference is large.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Clip, Sink};

/// The phases whose sinks are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phases {
    /// That of the largest rise, as in the paper and its published scripts.
    #[default]
    Largest,
    /// All of them.
    All,
}

/// A phase other than that of the largest rise.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// The layers, `start..end`.
    pub clip: Clip,
    /// Rise of the reference's norm into `clip.start`, as [`crate::Detection::rise`].
    pub rise: f32,
    /// The largest ratio of the reference's norm to the mean norm of the tokens not aligned with it
    /// at the same layer.
    pub peak: f32,
    /// Its sinks by position, classified within the phase, including the reference.
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

    /// For `serde(skip_serializing_if)`: manifests of default scans keep their bytes.
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

/// The sinks of all phases of a trace, by position, then first layer.
pub(crate) fn merged(largest: &[Sink], others: &[Phase]) -> Vec<Sink> {
    let others = others.iter().flat_map(|phase| &phase.sinks);
    let mut all: Vec<Sink> = largest.iter().chain(others).cloned().collect();
    all.sort_by_key(|sink| (sink.position, sink.l_start()));
    all
}
