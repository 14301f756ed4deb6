//! The plan: which tokens are planted, at which layers, how strongly, and what they become.

use std::ops::Range;

use super::vocabulary::{BOS, IM_START};
use crate::{Class, Clip};

/// Decoder layers.
pub(super) const LAYERS: usize = 20;
/// Width of the residual stream.
pub(super) const HIDDEN: usize = 96;
/// Width of the MLP.
pub(super) const INTERMEDIATE: usize = 160;
/// Query heads.
pub(super) const HEADS: usize = 4;
/// Key/value heads.
pub(super) const KV_HEADS: usize = 2;
/// Width of a head.
pub(super) const HEAD_DIM: usize = 16;
/// Rotary base.
pub(super) const ROPE_THETA: f64 = 1e6;

/// The layers at which BOS is a sink.
pub(super) const CLIP: Clip = Clip { start: 3, end: 18 };
/// The layer whose attention copies a feature from the previous token.
pub(super) const LOOK_BACK_LAYER: usize = 1;

/// Norm of every embedding.
pub(super) const EMBED_NORM: f64 = 6.0;
/// Component of every embedding along [`Direction::Constant`], which queries and thresholds read.
pub(super) const CONSTANT: f64 = 3.0;
/// Component of an embedding along the direction of the token's kind, and of the features that the
/// look-back layer writes.
pub(super) const MARKER: f64 = 3.0;
/// Approximate growth per layer of a marked token's squared norm, from attention and random
/// neurons.
pub(super) const GROWTH: f64 = 0.45;

/// (layer, norm): the vector along [`Direction::Drift`] that the MLP of the layer adds to every
/// sink. It is the same for all, because RMSNorm hides the norm of a sink. A large sink hardly
/// turns, and a small one falls below the threshold, so lifetimes grow with norms.
pub(super) const DRIFT: [(usize, f64); 3] = [(11, 24.0), (13, 56.0), (16, 200.0)];

/// Orthogonal directions of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The direction of sinks. All coordinates have the same magnitude, so that rounding to
    /// bfloat16 does not change the direction.
    Sink,
    /// Added to sinks by [`DRIFT`].
    Drift,
    /// Common to all tokens.
    Constant,
    /// Large in decoys with a large norm.
    Elsewhere,
    /// In the embeddings of [`TRIGGERS`].
    Trigger,
    /// In the state of the token after BOS.
    AfterBos,
    /// In the state of a token after a trigger.
    AfterTrigger,
    /// In the embeddings of the tokens of `KINDS[i]`.
    Kind(usize),
}

/// Index of `Direction::Kind(0)`.
const FIRST_KIND: usize = 7;

impl Direction {
    /// The index of its row in the basis.
    pub(super) fn index(self) -> usize {
        match self {
            Direction::Sink => 0,
            Direction::Drift => 1,
            Direction::Constant => 2,
            Direction::Elsewhere => 3,
            Direction::Trigger => 4,
            Direction::AfterBos => 5,
            Direction::AfterTrigger => 6,
            Direction::Kind(i) => FIRST_KIND + i,
        }
    }
}

/// Number of basis rows that are [`Direction`]s; the others carry content.
pub(super) const MEANINGS: usize = FIRST_KIND + KINDS.len();

/// Tokens that make a sink of the next token if it is of a kind with [`Context::AfterTrigger`].
pub(super) const TRIGGERS: [&str; 1] = [" answer"];

/// The previous token that a token needs to count as its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    Anywhere,
    AfterBos,
    AfterTrigger,
}

impl Context {
    /// The feature that the look-back layer writes in this context.
    pub(super) fn feature(self) -> Option<Direction> {
        match self {
            Context::Anywhere => None,
            Context::AfterBos => Some(Direction::AfterBos),
            Context::AfterTrigger => Some(Direction::AfterTrigger),
        }
    }
}

/// The expected result of detection for a planted token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A sink of a class, at a range of layers.
    Sink { class: Class, layers: Range<usize> },
    /// Not a sink, for a reason.
    Decoy { reason: &'static str },
}

/// A planted kind of token.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// The texts of the tokens.
    pub(super) tokens: &'static [&'static str],
    pub(super) context: Context,
    /// The layer whose MLP converts them.
    pub(super) layer: usize,
    /// The components that MLP writes along [`Direction::Sink`] and [`Direction::Elsewhere`].
    pub(super) writes: [f64; 2],
    pub(super) outcome: Outcome,
}

impl Kind {
    /// Norm of the vector that the converting MLP writes.
    pub(super) fn norm(&self) -> f64 {
        self.writes[0].hypot(self.writes[1])
    }
}

const fn sink(class: Class, layers: Range<usize>) -> Outcome {
    Outcome::Sink { class, layers }
}

/// Index of BOS in [`KINDS`].
pub(super) const BOS_KIND: usize = 0;

/// All planted kinds. `layer` and `writes` cause `outcome`, which is written to `truth.json`.
pub(super) const KINDS: [Kind; 11] = [
    Kind {
        name: "bos",
        tokens: &[BOS],
        context: Context::Anywhere,
        layer: 3,
        writes: [5000.0, 0.0],
        outcome: sink(Class::Primary, 3..18),
    },
    Kind {
        name: "template",
        tokens: &[IM_START],
        context: Context::AfterBos,
        layer: 3,
        writes: [5000.0, 0.0],
        outcome: sink(Class::Primary, 3..18),
    },
    Kind {
        name: "level3",
        tokens: &["Wait", " wait"],
        context: Context::Anywhere,
        layer: 5,
        writes: [1300.0, 0.0],
        outcome: sink(Class::Secondary, 5..18),
    },
    Kind {
        name: "level2",
        tokens: &["So", " so"],
        context: Context::Anywhere,
        layer: 6,
        writes: [400.0, 0.0],
        outcome: sink(Class::Secondary, 6..16),
    },
    Kind {
        name: "context",
        tokens: &[" is"],
        context: Context::AfterTrigger,
        layer: 6,
        writes: [400.0, 0.0],
        outcome: sink(Class::Secondary, 6..16),
    },
    Kind {
        name: "level1",
        tokens: &[" ="],
        context: Context::Anywhere,
        layer: 7,
        writes: [125.0, 0.0],
        outcome: sink(Class::Secondary, 7..13),
    },
    Kind {
        name: "level0",
        tokens: &["\n"],
        context: Context::Anywhere,
        layer: 8,
        writes: [38.0, 0.0],
        outcome: sink(Class::Secondary, 8..11),
    },
    Kind {
        name: "noise",
        tokens: &[" maybe"],
        context: Context::Anywhere,
        layer: 10,
        writes: [38.0, 0.0],
        outcome: sink(Class::Noise, 10..11),
    },
    Kind {
        name: "huge",
        tokens: &["However", " however"],
        context: Context::Anywhere,
        layer: 4,
        writes: [0.0, 6000.0],
        outcome: Outcome::Decoy { reason: "a norm above that of BOS, in another direction" },
    },
    Kind {
        name: "anti",
        tokens: &[" not"],
        context: Context::Anywhere,
        layer: 6,
        writes: [-400.0, 0.0],
        outcome: Outcome::Decoy { reason: "opposite to BOS: cosine below -0.95" },
    },
    Kind {
        name: "oblique",
        tokens: &[" but"],
        context: Context::Anywhere,
        layer: 6,
        writes: [340.0, 211.0],
        outcome: Outcome::Decoy {
            reason: "near the direction of BOS, but not near enough: cosine about 0.85",
        },
    },
];

/// The reason why a token outside its context is a decoy.
pub(super) const OUT_OF_CONTEXT: &str =
    "the token is a sink only in its context, which this is not";

/// The planned state of a token at some point of the residual stream.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Components along the directions, by [`Direction::index`].
    pub(super) along: [f64; MEANINGS],
    /// Squared norm of the content.
    pub(super) content: f64,
}

impl State {
    pub(super) fn norm(&self) -> f64 {
        (self.along.iter().map(|x| x * x).sum::<f64>() + self.content).sqrt()
    }

    pub(super) fn get(&self, direction: Direction) -> f64 {
        self.along[direction.index()]
    }

    fn add(&mut self, direction: Direction, amount: f64) {
        self.along[direction.index()] += amount;
    }

    /// Cosine with another token's state, whose content is orthogonal.
    #[cfg(test)]
    fn cosine(&self, other: &State) -> f64 {
        let dot: f64 = self.along.iter().zip(&other.along).map(|(a, b)| a * b).sum();
        dot / (self.norm() * other.norm())
    }
}

/// The planned state of a token of `KINDS[kind]`, in its context, at the input of the MLP of
/// `layer`. With `layer` = [`LAYERS`], the output of the last layer.
pub(super) fn planned(kind: usize, layer: usize) -> State {
    let plan = &KINDS[kind];
    let mut state = State { along: [0.0; MEANINGS], content: 0.0 };
    state.add(Direction::Constant, CONSTANT);
    state.add(Direction::Kind(kind), MARKER);
    state.content = EMBED_NORM.powi(2) - state.norm().powi(2);
    if layer >= LOOK_BACK_LAYER {
        if let Some(feature) = plan.context.feature() {
            state.add(feature, MARKER);
        }
        if kind == BOS_KIND {
            state.add(Direction::AfterBos, MARKER); // BOS attends to itself
        }
    }
    for l in 0..layer {
        let share = state.get(Direction::Sink) / state.norm();
        if l <= plan.layer {
            state.content += GROWTH;
        }
        if let Some((_, norm)) = DRIFT.iter().find(|(at, _)| *at == l)
            && share > 0.0
        {
            state.add(Direction::Drift, norm * share.powi(2));
        }
        if l == plan.layer {
            state.add(Direction::Sink, plan.writes[0]);
            state.add(Direction::Elsewhere, plan.writes[1]);
        }
        if l == CLIP.end && plan.layer == CLIP.start {
            state.add(Direction::Sink, -plan.writes[0]);
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layers in [`KINDS`] follow from its norms and [`DRIFT`], with a margin.
    #[test]
    fn outcomes_follow_from_norms_and_drift() {
        for (kind, plan) in KINDS.iter().enumerate() {
            for l in CLIP.layers() {
                let cosine = planned(kind, l + 1).cosine(&planned(BOS_KIND, l + 1));
                match &plan.outcome {
                    Outcome::Sink { layers, .. } if layers.contains(&l) => {
                        assert!(cosine > 0.98, "{} at {l}: {cosine}", plan.name);
                    }
                    _ => assert!(cosine < 0.87, "{} at {l}: {cosine}", plan.name),
                }
            }
        }
    }

    #[test]
    fn lifetimes_grow_with_norms() {
        let mut levels: Vec<(f64, usize)> = KINDS
            .iter()
            .filter_map(|kind| match &kind.outcome {
                Outcome::Sink { class: Class::Secondary, layers } => {
                    Some((kind.norm(), layers.len()))
                }
                _ => None,
            })
            .collect();
        levels.sort_by(|a, b| a.0.total_cmp(&b.0));
        levels.dedup();
        assert!(levels.len() >= 3);
        assert!(levels.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1));
    }

    #[test]
    fn a_sink_starts_at_its_converting_layer_and_lies_in_the_clip() {
        for kind in &KINDS {
            if let Outcome::Sink { layers, .. } = &kind.outcome {
                assert_eq!(layers.start, kind.layer);
                assert!(layers.start >= CLIP.start && layers.end <= CLIP.end);
            }
        }
    }
}
