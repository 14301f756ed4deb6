//! Keeping the rows of chosen tokens.

use std::collections::BTreeMap;
use std::mem;

use fathom_model::Site;

use super::pass::Rows;
use super::subjects::{Subject, Token};

/// Keeps the rows of chosen tokens at chosen places.
pub(super) struct Collector {
    /// In order of trace and position, as they pass.
    tokens: Vec<Token>,
    /// `[tokens]`, each `[width]`.
    rows: BTreeMap<(Site, usize), Vec<Vec<f32>>>,
    trace: Trace,
}

/// The trace that is passing.
#[derive(Default)]
struct Trace {
    /// Positions of its chosen tokens.
    positions: Vec<usize>,
    rows: BTreeMap<(Site, usize), Vec<Vec<f32>>>,
}

/// The rows of one trace, by place.
pub(super) type TraceRows = Vec<Vec<Vec<f32>>>;

impl Collector {
    pub fn new(
        mut tokens: Vec<Token>,
        places: impl IntoIterator<Item = (Site, usize)>,
    ) -> Collector {
        tokens.sort_unstable();
        let rows = places.into_iter().map(|place| (place, Vec::new())).collect();
        Collector { tokens, rows, trace: Trace::default() }
    }

    /// The tokens, in the order of their rows.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The rows of a place, `[tokens]`.
    pub fn rows(&self, site: Site, layer: usize) -> Vec<&[f32]> {
        let rows = self.rows.get(&(site, layer));
        rows.map_or(Vec::new(), |rows| rows.iter().map(Vec::as_slice).collect())
    }

    /// A trace begins.
    pub fn begin(&mut self, subject: &Subject<'_>) {
        let here = self.tokens.iter().filter(|(trace, _)| *trace == subject.number);
        let positions = here.map(|(_, position)| *position).collect();
        let rows = self.rows.keys().map(|place| (*place, Vec::new())).collect();
        self.trace = Trace { positions, rows };
    }

    /// Whether rows of this place are kept.
    pub fn wants(&self, site: Site, layer: usize) -> bool {
        !self.trace.positions.is_empty() && self.rows.contains_key(&(site, layer))
    }

    /// Keeps those of these rows that are chosen.
    pub fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Some(kept) = self.trace.rows.get_mut(&(site, layer)) else { return };
        let rows = self.trace.positions.iter().filter_map(|position| rows.get(*position));
        kept.extend(rows.map(<[f32]>::to_vec));
    }

    /// The rows of the trace that passed.
    pub fn part(&mut self) -> TraceRows {
        mem::take(&mut self.trace.rows).into_values().collect()
    }

    /// Adds a trace's rows.
    pub fn add(&mut self, part: TraceRows) {
        self.rows.values_mut().zip(part).for_each(|(rows, part)| rows.extend(part));
    }
}
