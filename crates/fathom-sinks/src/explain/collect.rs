//! Keeping the rows of chosen tokens.

use std::collections::BTreeMap;

use fathom_kernels::Backend;
use fathom_model::Site;

use super::pass::{Observer, Rows};
use super::subjects::{Subject, Token};

/// Keeps the rows of chosen tokens at chosen places.
pub(super) struct Collector {
    /// In order of trace and position, as they pass.
    tokens: Vec<Token>,
    /// `[tokens]`, each `[width]`.
    rows: BTreeMap<(Site, usize), Vec<Vec<f32>>>,
    number: usize,
}

impl Collector {
    pub fn new(
        mut tokens: Vec<Token>,
        places: impl IntoIterator<Item = (Site, usize)>,
    ) -> Collector {
        tokens.sort_unstable();
        let rows = places.into_iter().map(|place| (place, Vec::new())).collect();
        Collector { tokens, rows, number: 0 }
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
}

impl<B: Backend> Observer<B> for Collector {
    fn begin(&mut self, subject: &Subject<'_>) {
        self.number = subject.number;
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.rows.contains_key(&(site, layer))
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Some(kept) = self.rows.get_mut(&(site, layer)) else { return };
        let here = self.tokens.iter().filter(|(trace, _)| *trace == self.number);
        let rows = here.filter_map(|(_, position)| rows.get(*position));
        kept.extend(rows.map(<[f32]>::to_vec));
    }
}
