//! Counts the four measures of tokens, which come in the order of the run.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use super::{Agreement, Combination, MassiveDim, MeasuredToken, SinkRates};
use crate::{Measure, MeasureSet, TokenMeasures, TraceDetection};

/// The tokens that come first in an order, of any number.
struct Strongest {
    most: usize,
    order: fn(&MeasuredToken, &MeasuredToken) -> Ordering,
    tokens: Vec<MeasuredToken>,
}

impl Strongest {
    fn new(most: usize, order: fn(&MeasuredToken, &MeasuredToken) -> Ordering) -> Strongest {
        Strongest { most, order, tokens: Vec::new() }
    }

    fn add(&mut self, token: &MeasuredToken) {
        self.tokens.push(token.clone());
        if self.tokens.len() > 2 * self.most + 64 {
            self.cut();
        }
    }

    /// Sorting is stable: of equal tokens the first ones of the run stay.
    fn cut(&mut self) {
        self.tokens.sort_by(self.order);
        self.tokens.truncate(self.most);
    }

    fn finish(mut self) -> Vec<MeasuredToken> {
        self.cut();
        self.tokens
    }
}

/// First those that are aligned at no layer, then by descending score of a head.
fn unaligned_order(a: &MeasuredToken, b: &MeasuredToken) -> Ordering {
    let score = |token: &MeasuredToken| token.score(TokenMeasures::draws_unaligned);
    let aligned = |token: &MeasuredToken| token.is_aligned_anywhere();
    aligned(a).cmp(&aligned(b)).then(score(b).total_cmp(&score(a)))
}

/// By descending score, then by descending number of layers, then of measures.
fn strongest_order(a: &MeasuredToken, b: &MeasuredToken) -> Ordering {
    let scores = b.mean_score().total_cmp(&a.mean_score());
    let measures = |token: &MeasuredToken| token.holds().iter().count();
    scores.then(b.layers.len().cmp(&a.layers.len())).then(measures(b).cmp(&measures(a)))
}

/// What was counted so far.
pub(super) struct Counter<'a> {
    traces: &'a [TraceDetection],
    layers: usize,
    heads: usize,
    combinations: BTreeMap<MeasureSet, Combination>,
    /// Number of traces, `[layers · heads]`.
    reference: Vec<usize>,
    anywhere: Vec<usize>,
    /// The layers and heads that are counted in `anywhere` for the trace `current`.
    seen: BTreeSet<(usize, usize)>,
    current: usize,
    massive: BTreeMap<usize, MassiveDim>,
    unaligned_count: usize,
    never_aligned_count: usize,
    unaligned: Strongest,
    strongest: Strongest,
}

impl<'a> Counter<'a> {
    pub fn new(
        traces: &'a [TraceDetection],
        (layers, heads): (usize, usize),
        most: usize,
    ) -> Counter<'a> {
        Counter {
            traces,
            layers,
            heads,
            combinations: BTreeMap::new(),
            reference: vec![0; layers * heads],
            anywhere: vec![0; layers * heads],
            seen: BTreeSet::new(),
            current: 0,
            massive: BTreeMap::new(),
            unaligned_count: 0,
            never_aligned_count: 0,
            unaligned: Strongest::new(most, unaligned_order),
            strongest: Strongest::new(most, strongest_order),
        }
    }

    pub fn add(&mut self, token: MeasuredToken) {
        for at in &token.layers {
            let combination = self.combination(at.holds());
            combination.pairs += 1;
            combination.near_end += usize::from(token.near_end);
        }
        self.combination(token.holds()).tokens += 1;
        self.add_rates(&token);
        self.add_massive(&token);
        if token.draws_unaligned() {
            self.unaligned_count += 1;
            self.never_aligned_count += usize::from(!token.is_aligned_anywhere());
            self.unaligned.add(&token);
        }
        let trivial = |at: &TokenMeasures| at.holds().iter().eq([Measure::Attention]);
        if !(token.near_end && token.layers.iter().all(trivial)) {
            self.strongest.add(&token);
        }
    }

    fn combination(&mut self, set: MeasureSet) -> &mut Combination {
        let none = Combination { set, pairs: 0, near_end: 0, tokens: 0 };
        self.combinations.entry(set).or_insert(none)
    }

    fn add_rates(&mut self, token: &MeasuredToken) {
        if token.trace != self.current {
            self.current = token.trace;
            self.seen.clear();
        }
        let is_reference =
            self.traces[token.trace].scan.is_some_and(|note| note.reference == token.position);
        for at in &token.layers {
            for head in at.scores.iter().flat_map(|scores| &scores.heads_above) {
                let place = at.layer * self.heads + head;
                self.reference[place] += usize::from(is_reference);
                if !token.near_end && self.seen.insert((at.layer, *head)) {
                    self.anywhere[place] += 1;
                }
            }
        }
    }

    fn add_massive(&mut self, token: &MeasuredToken) {
        let mut dims = BTreeSet::new();
        for at in &token.layers {
            for (dim, value) in &at.massive.largest {
                let none = || MassiveDim { dim: *dim, tokens: 0, layers: BTreeMap::new() };
                let of_dim = self.massive.entry(*dim).or_insert_with(none);
                of_dim.tokens += usize::from(dims.insert(*dim));
                let layer = of_dim.layers.entry(at.layer).or_default();
                layer.tokens += 1;
                if value.abs() > layer.largest.abs() {
                    layer.largest = *value;
                }
            }
        }
    }

    pub fn finish(mut self, attention: bool) -> Agreement {
        let tokens: usize = self.traces.iter().map(TraceDetection::scanned_tokens).sum();
        let near_end = |trace: &TraceDetection| trace.scanned_tokens().min(Agreement::FEW_LATER);
        let last: usize = self.traces.iter().map(near_end).sum();
        let others = self.combinations.values();
        let counted = others
            .fold((0, 0, 0), |sum, c| (sum.0 + c.pairs, sum.1 + c.near_end, sum.2 + c.tokens));
        let layers = self.layers;
        let none = self.combination(MeasureSet::default());
        none.pairs = (tokens * layers).saturating_sub(counted.0);
        none.near_end = (last * layers).saturating_sub(counted.1);
        none.tokens = tokens.saturating_sub(counted.2);
        let mut combinations: Vec<Combination> = self.combinations.into_values().collect();
        combinations.sort_by_key(|c| (c.set.is_empty(), Reverse(c.pairs)));

        let traces = self.traces.len();
        let share = |count: &usize| *count as f64 / traces.max(1) as f64;
        let by_layer = |counts: &[usize]| -> Vec<Vec<f64>> {
            let layers = counts.chunks(self.heads.max(1));
            layers.map(|heads| heads.iter().map(share).collect()).collect()
        };
        let rates = attention.then(|| SinkRates {
            heads: self.heads,
            reference: by_layer(&self.reference),
            anywhere: by_layer(&self.anywhere),
        });
        let mut massive: Vec<MassiveDim> = self.massive.into_values().collect();
        massive.sort_by_key(|dim| Reverse(dim.tokens)); // stable: by index
        Agreement {
            attention,
            traces,
            tokens,
            layers,
            combinations,
            rates,
            massive,
            unaligned_count: self.unaligned_count,
            never_aligned_count: self.never_aligned_count,
            unaligned: self.unaligned.finish(),
            strongest: self.strongest.finish(),
        }
    }
}
