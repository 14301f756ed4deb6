//! Collects the activation rows of chosen tokens.

use std::collections::BTreeMap;
use std::mem;

use fathom_model::Site;

use super::pass::Rows;
use super::scanned::{ScannedTrace, Token};

/// Collects the rows of chosen tokens at chosen places: pairs (site, layer).
pub(super) struct Collector {
    /// Ascending, the order in which passes reach them.
    tokens: Vec<Token>,
    /// `[tokens]`, each `[width]`.
    rows: BTreeMap<(Site, usize), Vec<Vec<f32>>>,
    current: CurrentTrace,
}

/// The trace that is being run.
#[derive(Default)]
struct CurrentTrace {
    /// Positions of its chosen tokens.
    positions: Vec<usize>,
    rows: BTreeMap<(Site, usize), Vec<Vec<f32>>>,
}

/// The rows of one trace, `[places][tokens][width]`.
pub(super) type TraceRows = Vec<Vec<Vec<f32>>>;

impl Collector {
    pub fn new(
        mut tokens: Vec<Token>,
        places: impl IntoIterator<Item = (Site, usize)>,
    ) -> Collector {
        tokens.sort_unstable();
        let rows = places.into_iter().map(|place| (place, Vec::new())).collect();
        Collector { tokens, rows, current: CurrentTrace::default() }
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
    pub fn begin(&mut self, trace: &ScannedTrace<'_>) {
        let here = self.tokens.iter().filter(|(number, _)| *number == trace.number);
        let positions = here.map(|(_, position)| *position).collect();
        let rows = self.rows.keys().map(|place| (*place, Vec::new())).collect();
        self.current = CurrentTrace { positions, rows };
    }

    /// Whether this trace has chosen tokens, and rows of this place are collected.
    pub fn wants(&self, site: Site, layer: usize) -> bool {
        !self.current.positions.is_empty() && self.rows.contains_key(&(site, layer))
    }

    /// Collects the rows of chosen tokens.
    pub fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Some(kept) = self.current.rows.get_mut(&(site, layer)) else { return };
        let rows = self.current.positions.iter().filter_map(|position| rows.get(*position));
        kept.extend(rows.map(<[f32]>::to_vec));
    }

    /// The rows of this trace.
    pub fn part(&mut self) -> TraceRows {
        mem::take(&mut self.current.rows).into_values().collect()
    }

    /// Adds a trace's rows.
    pub fn add(&mut self, part: TraceRows) {
        self.rows.values_mut().zip(part).for_each(|(rows, part)| rows.extend(part));
    }
}
