//! Sink levels (l_start, lifetime) and their frequencies (paper Fig. 2).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Sink;

/// A sink level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Level {
    /// First layer.
    pub l_start: usize,
    /// Number of layers.
    pub lifetime: usize,
    /// Number of sinks of this level.
    pub count: usize,
}

/// Levels of the given sinks, ordered by l_start, then lifetime.
pub fn levels<'a>(sinks: impl IntoIterator<Item = &'a Sink>) -> Vec<Level> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for sink in sinks {
        *counts.entry((sink.l_start(), sink.lifetime())).or_default() += 1;
    }
    let level = |((l_start, lifetime), count)| Level { l_start, lifetime, count };
    counts.into_iter().map(level).collect()
}
