//! The plan: which tokens are planted, at which layers, how strongly, and what they become.

use std::ops::Range;

use super::PlantOptions;
use super::vocabulary::{BOS, IM_END, IM_START};
use crate::{Class, Clip};

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

/// Decoder layers of a plan of one phase.
const LAYERS: usize = 20;
/// The phase of a plan of one phase, and the last one of any other, which is later by [`SHIFT`].
const PHASE: PlannedPhase =
    PlannedPhase { clip: Clip { start: 3, end: 18 }, erased_norm: 2500.0, half_way_norm: 500.0 };
/// The first of two phases.
const EARLY_PHASE: PlannedPhase = PlannedPhase {
    clip: Clip { start: 3, end: 8 },
    erased_norm: EARLY_NORM / 2.0,
    half_way_norm: EARLY_NORM / 10.0,
};
/// Component that every sink of the early phase has along [`Direction::Sink`]. It is far below that
/// of BOS in the last phase, so that the step into the last phase is the largest. It is small
/// enough that what remains of it after rounding to bfloat16 does not align a token with BOS.
const EARLY_NORM: f64 = 120.0;
/// Number of layers that a plan of two phases has before those of [`PHASE`].
const SHIFT: usize = 7;
/// The layer whose attention copies a feature from the previous token.
pub(super) const LOOK_BACK_LAYER: usize = 1;

/// Norm of every embedding.
pub(super) const EMBED_NORM: f64 = 6.0;
/// Component of every embedding along [`Direction::Constant`], which queries and thresholds read.
pub(super) const CONSTANT: f64 = 3.0;
/// Component of an embedding along the direction of the token's kind, and of the features that the
/// look-back layer writes.
pub(super) const MARKER: f64 = 3.0;
/// [`Plan::growth`] of a plan of one phase.
const GROWTH: f64 = 0.45;

/// [`Plan::drift`] of a plan of one phase.
const DRIFT: [(usize, f64); 3] = [(11, 24.0), (13, 56.0), (16, 200.0)];
/// Coordinates of the residual stream along which massive activations are planted, by
/// [`Direction::Massive`].
pub(super) const MASSIVE_DIMS: [usize; 2] = [17, 71];

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
    /// In the embeddings of the tokens of `Plan::kinds[i]`.
    Kind(usize),
    /// The coordinate `MASSIVE_DIMS[i]` of the residual stream.
    Massive(usize),
}

/// Index of `Direction::Kind(0)`.
pub(super) const FIRST_KIND: usize = 7;

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
            Direction::Massive(i) => HIDDEN - MASSIVE_DIMS.len() + i,
        }
    }
}

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

/// A range of layers in which BOS is a sink, and its constants.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedPhase {
    pub(super) clip: Clip,
    /// Sinks with at least about this norm are erased at the end of the phase.
    pub(super) erased_norm: f64,
    /// A sink of this norm has 1/√2 of the largest attention score, so larger sinks draw more
    /// attention.
    pub(super) half_way_norm: f64,
}

/// The expected result for a planted token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A sink, with a class and a range of layers in each of some phases.
    Sink(Vec<(Class, Range<usize>)>),
    /// Not a sink, for a reason.
    Decoy { reason: &'static str },
    /// Not a sink, but these heads attend to it at these layers.
    AttentionOnly { layers: Vec<usize>, heads: Vec<usize> },
    /// Not a sink, but its state has huge components at these layers.
    Massive { layers: Range<usize> },
}

/// A vector that an MLP writes: its components along some directions.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) layer: usize,
    pub(super) along: Vec<(Direction, f64)>,
}

impl Write {
    pub(super) fn norm(&self) -> f64 {
        self.along.iter().fold(0.0, |norm: f64, (_, amount)| norm.hypot(*amount))
    }
}

/// A planted kind of token.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// The texts of the tokens.
    pub(super) tokens: &'static [&'static str],
    pub(super) context: Context,
    /// What MLPs write to the tokens, by layer.
    pub(super) writes: Vec<Write>,
    /// The result of `writes`.
    pub(super) outcome: Outcome,
}

impl Kind {
    fn new(name: &'static str, tokens: &'static [&'static str], outcome: Outcome) -> Kind {
        Kind { name, tokens, context: Context::Anywhere, writes: Vec::new(), outcome }
    }

    /// Limits the kind to a context.
    fn only(self, context: Context) -> Kind {
        Kind { context, ..self }
    }

    /// Adds a vector that the MLP of `layer` writes.
    fn writes(mut self, layer: usize, along: &[(Direction, f64)]) -> Kind {
        self.writes.push(Write { layer, along: along.to_vec() });
        self
    }

    /// Makes the kind a sink of the early phase, before what it is in the last phase.
    fn also_early(mut self, class: Class, layers: Range<usize>) -> Kind {
        let along = vec![(Direction::Sink, EARLY_NORM)];
        self.writes.insert(0, Write { layer: layers.start, along });
        if let Outcome::Sink(spans) = &mut self.outcome {
            spans.insert(0, (class, layers));
        }
        self
    }
}

/// Index of BOS in [`Plan::kinds`].
pub(super) const BOS_KIND: usize = 0;

/// What is planted, and where.
#[derive(Debug)]
pub(super) struct Plan {
    /// Decoder layers.
    pub(super) layers: usize,
    /// The phases, ascending. The step of BOS's norm into the last one is the largest.
    pub(super) phases: Vec<PlannedPhase>,
    /// All planted kinds; the first is BOS.
    pub(super) kinds: Vec<Kind>,
    /// Approximate growth per layer of a marked token's squared norm, from attention and random
    /// neurons. With two phases it is halved, so that the tokens converted last, which are the
    /// smallest sinks, have grown no more than with one phase.
    pub(super) growth: f64,
    /// (layer, norm): the vector along [`Direction::Drift`] that the MLP of the layer adds to every
    /// sink. It is the same for all, because RMSNorm hides the norm of a sink. A large sink hardly
    /// turns, and a small one falls below the threshold, so lifetimes grow with norms.
    pub(super) drift: Vec<(usize, f64)>,
}

impl Plan {
    pub(super) fn new(options: &PlantOptions) -> Plan {
        let shift = if options.two_phases { SHIFT } else { 0 };
        let Clip { start, end } = PHASE.clip;
        let last = PlannedPhase { clip: Clip { start: start + shift, end: end + shift }, ..PHASE };
        let mut plan = Plan {
            layers: LAYERS + shift,
            phases: vec![last],
            kinds: sinks_and_decoys(shift),
            growth: if options.two_phases { GROWTH / 2.0 } else { GROWTH },
            drift: DRIFT.iter().map(|(layer, norm)| (layer + shift, *norm)).collect(),
        };
        if options.two_phases {
            plan.add_early_phase();
        }
        if options.attention_only {
            plan.kinds.extend(attention_only(shift));
        }
        if options.massive {
            plan.kinds.extend(massive(shift, plan.layers));
        }
        plan
    }

    fn add_early_phase(&mut self) {
        self.phases.insert(0, EARLY_PHASE);
        let kinds = std::mem::take(&mut self.kinds);
        let both = kinds.into_iter().map(|kind| match kind.name {
            "bos" | "template" => kind.also_early(Class::Primary, 3..8),
            "level2" => kind.also_early(Class::Secondary, 4..8),
            _ => kind,
        });
        let early = |name, tokens, class, layers: Range<usize>| {
            Kind::new(name, tokens, Outcome::Sink(Vec::new())).also_early(class, layers)
        };
        self.kinds = both.collect();
        self.kinds.extend([
            early("early2", &[" check"], Class::Secondary, 5..8),
            early("early1", &[" sum"], Class::Secondary, 6..8),
            early("early_noise", &[" rest"], Class::Noise, 7..8),
        ]);
    }

    /// The last phase, which is that of the largest rise.
    pub(super) fn largest(&self) -> PlannedPhase {
        self.phases[self.phases.len() - 1]
    }

    /// The phase whose sinks the attention of a layer reads, or the next one.
    pub(super) fn phase_at(&self, layer: usize) -> PlannedPhase {
        let reads = self.phases.iter().find(|phase| layer <= phase.clip.end);
        reads.copied().unwrap_or(self.largest())
    }

    /// Scale of the vectors that attention and random neurons write.
    pub(super) fn content_scale(&self) -> f64 {
        (self.growth / GROWTH).sqrt()
    }

    /// Index of the phase that contains a layer; `None` if there is one phase only.
    pub(super) fn phase_index(&self, layer: usize) -> Option<usize> {
        let several = self.phases.len() > 1;
        let index = self.phases.iter().position(|phase| phase.clip.layers().contains(&layer));
        index.filter(|_| several)
    }

    /// The kind of attention-only tokens at `layer`, with the heads that attend to them.
    pub(super) fn attention_only_at(&self, layer: usize) -> Option<(usize, &[usize])> {
        self.kinds.iter().enumerate().find_map(|(kind, plan)| match &plan.outcome {
            Outcome::AttentionOnly { layers, heads } if layers.contains(&layer) => {
                Some((kind, heads.as_slice()))
            }
            _ => None,
        })
    }

    /// The coordinates of the residual stream that are kept for massive activations.
    pub(super) fn massive_dims(&self) -> &'static [usize] {
        let massive = |kind: &Kind| matches!(kind.outcome, Outcome::Massive { .. });
        if self.kinds.iter().any(massive) { &MASSIVE_DIMS } else { &[] }
    }
}

/// A kind that is a sink in the last phase.
fn sink(
    name: &'static str,
    tokens: &'static [&'static str],
    norm: f64,
    class: Class,
    layers: Range<usize>,
) -> Kind {
    let layer = layers.start;
    Kind::new(name, tokens, Outcome::Sink(vec![(class, layers)]))
        .writes(layer, &[(Direction::Sink, norm)])
}

/// The sinks of the last phase and the decoys, all of them `s` layers later than in a plan of one
/// phase.
fn sinks_and_decoys(s: usize) -> Vec<Kind> {
    use Class::{Noise, Primary, Secondary};
    use Direction::{Elsewhere, Sink};

    let decoy = |name, tokens, reason| Kind::new(name, tokens, Outcome::Decoy { reason });
    vec![
        sink("bos", &[BOS], 5000.0, Primary, 3 + s..18 + s),
        sink("template", &[IM_START], 5000.0, Primary, 3 + s..18 + s).only(Context::AfterBos),
        sink("level3", &["Wait", " wait"], 1300.0, Secondary, 5 + s..18 + s),
        sink("level2", &["So", " so"], 400.0, Secondary, 6 + s..16 + s),
        sink("context", &[" is"], 400.0, Secondary, 6 + s..16 + s).only(Context::AfterTrigger),
        sink("level1", &[" ="], 125.0, Secondary, 7 + s..13 + s),
        sink("level0", &["\n"], 38.0, Secondary, 8 + s..11 + s),
        sink("noise", &[" maybe"], 38.0, Noise, 10 + s..11 + s),
        decoy("huge", &["However", " however"], "a norm above that of BOS, in another direction")
            .writes(4 + s, &[(Elsewhere, 6000.0)]),
        decoy("anti", &[" not"], "opposite to BOS: cosine below -0.95")
            .writes(6 + s, &[(Sink, -400.0)]),
        decoy(
            "oblique",
            &[" but"],
            "near the direction of BOS, but not near enough: cosine about 0.85",
        )
        .writes(6 + s, &[(Sink, 340.0), (Elsewhere, 211.0)]),
    ]
}

/// Tokens that draw attention without being aligned with BOS, from layer 9 + `s` on. Each occurs
/// once in a trace, because a query's attention sums to 1. Their heads are those of key/value head
/// 1, because the others attend to sinks.
fn attention_only(s: usize) -> [Kind; 2] {
    let kind = |name, tokens, layers: &[usize], heads: &[usize]| {
        let outcome = Outcome::AttentionOnly { layers: layers.to_vec(), heads: heads.to_vec() };
        Kind::new(name, tokens, outcome)
    };
    [kind("role", &["user"], &[9 + s, 14 + s], &[2]), kind("turn", &[IM_END], &[12 + s], &[2, 3])]
}

/// Tokens with massive activations from layer 5 + `s` or 8 + `s` on, to the last of `layers`.
fn massive(s: usize, layers: usize) -> [Kind; 2] {
    let kind = |name, tokens, layer, along: &[(Direction, f64)]| {
        Kind::new(name, tokens, Outcome::Massive { layers: layer..layers }).writes(layer, along)
    };
    [
        kind(
            "massive2",
            &[" number"],
            5 + s,
            &[(Direction::Massive(0), 3000.0), (Direction::Massive(1), -1800.0)],
        ),
        kind("massive1", &[" know"], 8 + s, &[(Direction::Massive(1), 2500.0)]),
    ]
}

/// The reason why a token outside its context is a decoy.
pub(super) const OUT_OF_CONTEXT: &str =
    "the token is a sink only in its context, which this is not";

/// The planned state of a token at some point of the residual stream.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Components along the directions, by [`Direction::index`].
    pub(super) along: [f64; HIDDEN],
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

impl Plan {
    /// The planned state of a token of `kinds[kind]`, in its context, at the input of the MLP of
    /// `layer`. With `layer` = [`Plan::layers`], the output of the last layer.
    pub(super) fn state(&self, kind: usize, layer: usize) -> State {
        let plan = &self.kinds[kind];
        let mut state = State { along: [0.0; HIDDEN], content: 0.0 };
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
            if state.norm() < 2.0 * EMBED_NORM {
                state.content += self.growth; // RMSNorm hides the content of larger states
            }
            if let Some((_, norm)) = self.drift.iter().find(|(at, _)| *at == l)
                && share > 0.0
            {
                state.add(Direction::Drift, norm * share.powi(2));
            }
            for write in plan.writes.iter().filter(|write| write.layer == l) {
                write.along.iter().for_each(|(direction, amount)| state.add(*direction, *amount));
            }
            let ended = self.phases.iter().find(|phase| phase.clip.end == l);
            if ended.is_some_and(|phase| state.get(Direction::Sink) > phase.erased_norm) {
                state.along[Direction::Sink.index()] = 0.0;
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> impl Iterator<Item = Plan> {
        [false, true].into_iter().map(|more| {
            Plan::new(&PlantOptions {
                two_phases: more,
                attention_only: more,
                massive: more,
                ..PlantOptions::default()
            })
        })
    }

    /// The layers of the sinks follow from their norms and [`Plan::drift`], with a margin.
    #[test]
    fn outcomes_follow_from_norms_and_drift() {
        for plan in plans() {
            for (index, kind) in plan.kinds.iter().enumerate() {
                for l in plan.phases.iter().flat_map(|phase| phase.clip.layers()) {
                    let bos = plan.state(BOS_KIND, l + 1);
                    let cosine = plan.state(index, l + 1).cosine(&bos);
                    match &kind.outcome {
                        Outcome::Sink(spans) if spans.iter().any(|(_, span)| span.contains(&l)) => {
                            assert!(cosine > 0.98, "{} at {l}: {cosine}", kind.name);
                        }
                        _ => assert!(cosine < 0.87, "{} at {l}: {cosine}", kind.name),
                    }
                }
            }
        }
    }

    #[test]
    fn lifetimes_grow_with_norms() {
        let plan = Plan::new(&PlantOptions::default());
        let mut levels: Vec<(f64, usize)> = plan
            .kinds
            .iter()
            .filter_map(|kind| match &kind.outcome {
                Outcome::Sink(spans) if spans[0].0 == Class::Secondary => {
                    Some((kind.writes[0].norm(), spans[0].1.len()))
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
        for plan in plans() {
            for kind in &plan.kinds {
                let Outcome::Sink(spans) = &kind.outcome else { continue };
                assert_eq!(spans.len(), kind.writes.len());
                for ((_, layers), write) in spans.iter().zip(&kind.writes) {
                    assert_eq!(layers.start, write.layer);
                    let clip = plan.phases[plan.phase_index(layers.start).unwrap_or(0)].clip;
                    assert!(layers.start >= clip.start && layers.end <= clip.end);
                }
            }
        }
    }
}
