//! Four measures of a sink (docs/definitions.md), for each token and layer.

use std::collections::HashSet;

use fathom_backend::Massive;

use crate::detect::ratio;
use crate::{Detection, LayerScores, Phases, TraceScalars, TraceScores};

/// A criterion by which a token is a sink at a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measure {
    /// It is aligned with the reference within a phase: Sink tokens.
    Alignment,
    /// Its sink score at some head is above [`Measure::SCORE_ABOVE`].
    Attention,
    /// Its hidden state has massive activations.
    Massive,
    /// Its norm is at least the factor times the mean norm of the other tokens.
    Norm,
}

impl Measure {
    /// All measures, in order.
    pub const ALL: [Measure; 4] =
        [Measure::Alignment, Measure::Attention, Measure::Massive, Measure::Norm];

    /// ε: a head attends to a token as to a sink if its sink score is above this.
    pub const SCORE_ABOVE: f32 = 0.3;

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Alignment => "alignment",
            Measure::Attention => "attention",
            Measure::Massive => "massive",
            Measure::Norm => "norm",
        }
    }
}

/// The measures that hold for a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeasureSet(u8);

impl MeasureSet {
    /// Whether the measure holds.
    pub fn contains(self, measure: Measure) -> bool {
        self.0 & (1 << measure as u8) != 0
    }

    /// Whether no measure holds.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The measures that hold, in order.
    pub fn iter(self) -> impl Iterator<Item = Measure> {
        Measure::ALL.into_iter().filter(move |measure| self.contains(*measure))
    }

    /// The measures of either set.
    #[must_use]
    pub fn union(self, other: MeasureSet) -> MeasureSet {
        MeasureSet(self.0 | other.0)
    }
}

impl FromIterator<Measure> for MeasureSet {
    fn from_iter<I: IntoIterator<Item = Measure>>(measures: I) -> MeasureSet {
        MeasureSet(measures.into_iter().fold(0, |set, measure| set | (1 << measure as u8)))
    }
}

/// A token at a layer where at least one measure holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenMeasures {
    /// Position in the trace.
    pub position: usize,
    /// The layer: its attention, and its output.
    pub layer: usize,
    /// Whether it is a sink at this layer, in any phase.
    pub aligned: bool,
    /// Its sink scores, if attention was measured.
    pub scores: Option<TokenScores>,
    /// The massive activations of its hidden state.
    pub massive: Massive,
    /// Its norm divided by the mean norm of the other tokens.
    pub norm_ratio: f32,
    /// Whether `norm_ratio` is at least the factor.
    pub large_norm: bool,
}

/// Sink scores of a token at a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScores {
    /// Mean over heads.
    pub mean: f32,
    /// The largest of a head.
    pub max: f32,
    /// The head of the largest, the first of equals.
    pub max_head: usize,
    /// The heads whose score is above [`Measure::SCORE_ABOVE`], ascending.
    pub heads_above: Vec<usize>,
}

impl TokenScores {
    fn of(layer: &LayerScores, position: usize) -> TokenScores {
        let above = layer.above.binary_search_by_key(&position, |(position, _)| *position);
        TokenScores {
            mean: layer.mean[position],
            max: layer.max[position],
            max_head: layer.max_head[position] as usize,
            heads_above: above.map_or_else(|_| Vec::new(), |i| layer.above[i].1.clone()),
        }
    }
}

impl TokenMeasures {
    /// The measures that hold. Attention does not if it was not measured.
    pub fn holds(&self) -> MeasureSet {
        let holds = |measure: &Measure| match measure {
            Measure::Alignment => self.aligned,
            Measure::Attention => {
                self.scores.as_ref().is_some_and(|scores| !scores.heads_above.is_empty())
            }
            Measure::Massive => self.massive.count > 0,
            Measure::Norm => self.large_norm,
        };
        Measure::ALL.into_iter().filter(holds).collect()
    }
}

impl TokenMeasures {
    /// Whether a model of this shape has the layer and the heads.
    pub(crate) fn are_within(&self, layers: usize, heads: usize) -> bool {
        let scores = self.scores.iter();
        let mut named =
            scores.flat_map(|scores| scores.heads_above.iter().chain([&scores.max_head]));
        self.layer < layers && named.all(|head| *head < heads)
    }
}

/// The tokens and layers of a trace at which at least one measure holds, by position, then layer.
/// `detection` must be that of `scalars`; `factor` is [`crate::DetectOptions::rise_factor`].
/// Massive activations and sink scores count as far as they were measured.
pub fn token_measures(
    scalars: &TraceScalars,
    detection: &Detection,
    scores: Option<&TraceScores>,
    factor: f32,
) -> Vec<TokenMeasures> {
    let sinks = detection.sinks_of(Phases::All);
    let places = sinks.iter().flat_map(|sink| sink.layers.iter().map(|l| (*l, sink.position)));
    let aligned: HashSet<(usize, usize)> = places.collect();
    let mut rows = Vec::new();
    for layer in 0..scalars.layers() {
        let ratios = norm_ratios(scalars.hidden_norm.row(layer));
        let of_layer = scores.and_then(|scores| scores.layers.get(layer));
        let massive = scalars.massive.as_ref().map_or(&[][..], |layers| &layers[layer]);
        let mut massive = massive.iter().peekable(); // by position
        for (position, norm_ratio) in ratios.into_iter().enumerate() {
            let massive = massive.next_if(|(at, _)| *at == position);
            let row = TokenMeasures {
                position,
                layer,
                aligned: aligned.contains(&(layer, position)),
                scores: of_layer.map(|layer| TokenScores::of(layer, position)),
                massive: massive.map_or_else(Massive::default, |(_, massive)| massive.clone()),
                norm_ratio,
                large_norm: norm_ratio >= factor,
            };
            if !row.holds().is_empty() {
                rows.push(row);
            }
        }
    }
    rows.sort_by_key(|row| (row.position, row.layer));
    rows
}

/// Each norm divided by the mean of the others; 0 if there are no others.
fn norm_ratios(norms: &[f32]) -> Vec<f32> {
    let sum: f64 = norms.iter().copied().map(f64::from).sum();
    let others = norms.len().saturating_sub(1);
    let of = |norm: &f32| match others {
        0 => 0.0,
        _ => ratio(f64::from(*norm), (sum - f64::from(*norm)) / others as f64),
    };
    norms.iter().map(of).collect()
}
