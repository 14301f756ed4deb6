//! Attention of the planted model: sink heads, look-back heads, heads that attend to one kind of
//! token, and heads that attend to similar content.
//!
//! Queries and keys are normed per head as in Qwen3, so only their directions matter. The rotary
//! pairs (i, i + HEAD_DIM/2) have different uses. The slowest hardly rotate over thousands of
//! positions, so the sink heads use them. The fastest distinguish neighbouring positions, so the
//! look-back heads use them. The others compare content.

use super::linalg::{Basis, Matrix, scaled};
use super::plan::{
    BOS_KIND, CONSTANT, Direction, EMBED_NORM, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LOOK_BACK_LAYER,
    Plan, ROPE_THETA,
};
use super::rng::Rng;

/// Number of rotary pairs.
const PAIRS: usize = HEAD_DIM / 2;
/// Pairs of the look-back heads.
const FAST: [usize; 4] = [0, 1, 2, 3];
/// Pairs that compare content.
const MIDDLE: [usize; 2] = [4, 5];
/// Pairs of the sink heads.
const SLOW: [usize; 2] = [6, 7];

/// Attention score (before the softmax) of a key that has only a sink component.
const SINK_SCORE: f64 = 7.0;
/// Score per pair of the key one position back.
const LOOK_BACK_SCORE: f64 = 20.0;
/// Rotary pair of the heads that attend to one kind of token. Among the pairs that compare content
/// it is the slower one.
const KIND_PAIR: usize = 5;
/// Attention score of a key that has only the marker of the kind. It outweighs thousands of keys
/// with score 0.
const KIND_SCORE: f64 = 11.0;
/// Weight of the marker in a key of these heads, relative to the constant component.
const KIND_WEIGHT: f64 = 3.0;
/// Weight of the drift component of a key, relative to its sink component.
const DRIFT_WEIGHT: f64 = 2.0;
/// Row norm with which projections of content are about standard normal.
const CONTENT_READ: f64 = 1.2;
/// Norm of the output column of a head dimension.
const CONTENT_WRITE: f64 = 0.1;

/// The weights of one layer's attention, named as in the checkpoint.
pub(super) struct Attention {
    /// `[HEADS·HEAD_DIM, HIDDEN]`
    pub(super) q: Matrix,
    /// `[KV_HEADS·HEAD_DIM, HIDDEN]`
    pub(super) k: Matrix,
    /// `[KV_HEADS·HEAD_DIM, HIDDEN]`
    pub(super) v: Matrix,
    /// `[HIDDEN, HEADS·HEAD_DIM]`
    pub(super) o: Matrix,
    /// `[HEAD_DIM]`
    pub(super) q_norm: Vec<f64>,
    /// `[HEAD_DIM]`
    pub(super) k_norm: Vec<f64>,
}

impl Attention {
    pub(super) fn plant(layer: usize, plan: &Plan, basis: &Basis, rng: &mut Rng) -> Attention {
        let mut weights = Attention {
            q: Matrix::zeros(HEADS * HEAD_DIM, HIDDEN),
            k: Matrix::zeros(KV_HEADS * HEAD_DIM, HIDDEN),
            v: Matrix::zeros(KV_HEADS * HEAD_DIM, HIDDEN),
            o: Matrix::zeros(HIDDEN, HEADS * HEAD_DIM),
            q_norm: pair_weights(),
            k_norm: pair_weights(),
        };
        let write = CONTENT_WRITE * plan.content_scale();
        weights.sink_heads(plan.phase_at(layer).half_way_norm, basis);
        if layer == LOOK_BACK_LAYER {
            weights.content_values(0..1, write, basis, rng);
            weights.look_back_heads(plan.growth, basis);
        } else if let Some((kind, heads)) = plan.attention_only_at(layer) {
            weights.content_values(0..1, write, basis, rng); // these heads copy nothing
            weights.kind_heads(kind, heads, basis);
        } else {
            weights.content_values(0..2, write, basis, rng);
            weights.content_heads(basis, rng);
        }
        weights
    }

    /// Heads 0 and 1 attend to sinks from all positions, head 1 more weakly.
    fn sink_heads(&mut self, half_way_norm: f64, basis: &Basis) {
        let [quiet, slow] = SLOW;
        let constant = basis.vector(&[(Direction::Constant, 1.0)]);
        self.q.set_row(slow, &constant);
        self.q.set_row(HEAD_DIM + slow, &constant);
        // Keys are zero in this row, so it only weakens the rest of the normed query.
        self.q.set_row(HEAD_DIM + slow + PAIRS, &scaled(&constant, 0.75));

        // cos(query, key) = sink / √(sink² + (drift weight · drift)² + half-way norm²)
        let read = |direction, weight| basis.vector(&[(direction, weight)]);
        self.k.set_row(slow, &read(Direction::Sink, 1.0));
        self.k.set_row(quiet, &read(Direction::Drift, DRIFT_WEIGHT));
        self.k.set_row(quiet + PAIRS, &read(Direction::Constant, half_way_norm / CONSTANT));
    }

    /// Key/value heads `kv_heads` copy content, with output columns of norm `write`. After RMSNorm
    /// the content of a sink is tiny.
    fn content_values(
        &mut self,
        kv_heads: std::ops::Range<usize>,
        write: f64,
        basis: &Basis,
        rng: &mut Rng,
    ) {
        for kv_head in kv_heads {
            for d in 0..HEAD_DIM {
                self.v.set_row(kv_head * HEAD_DIM + d, &basis.content(rng, CONTENT_READ));
            }
            let group = HEADS / KV_HEADS;
            for column in kv_head * group * HEAD_DIM..(kv_head + 1) * group * HEAD_DIM {
                self.o.set_column(column, &basis.content(rng, write));
            }
        }
    }

    /// `heads`, of key/value head 1, attend to the tokens of a kind from all positions.
    fn kind_heads(&mut self, kind: usize, heads: &[usize], basis: &Basis) {
        let scale = (KIND_SCORE / (HEAD_DIM as f64).sqrt()).sqrt();
        self.q_norm[KIND_PAIR] = scale;
        self.k_norm[KIND_PAIR] = scale;
        let constant = basis.vector(&[(Direction::Constant, 1.0)]);
        for head in heads {
            self.q.set_row(head * HEAD_DIM + KIND_PAIR, &constant);
        }
        // cos(query, key) = weight · marker / √((weight · marker)² + constant²)
        let marker = basis.vector(&[(Direction::Kind(kind), KIND_WEIGHT)]);
        self.k.set_row(HEAD_DIM + KIND_PAIR, &marker);
        self.k.set_row(HEAD_DIM + SLOW[0] + PAIRS, &constant);
        // Rounded to bfloat16, the marker's row is not quite orthogonal to the large components of
        // sinks and decoys. These rows are larger, and queries are zero in them.
        self.k.set_row(HEAD_DIM + SLOW[0], &basis.vector(&[(Direction::Sink, 1.0)]));
        self.k.set_row(HEAD_DIM + SLOW[1], &basis.vector(&[(Direction::Elsewhere, 1.0)]));
    }

    /// Heads 2 and 3 attend to similar content.
    fn content_heads(&mut self, basis: &Basis, rng: &mut Rng) {
        for d in MIDDLE.into_iter().flat_map(|pair| [pair, pair + PAIRS]) {
            for head in 2..HEADS {
                self.q.set_row(head * HEAD_DIM + d, &basis.content(rng, CONTENT_READ));
            }
            self.k.set_row(HEAD_DIM + d, &basis.content(rng, CONTENT_READ));
        }
    }

    /// Heads 2 and 3 attend to the previous position: with key (1, 0) and query (cos f, -sin f) in
    /// a pair of frequency f, the score at distance Δ is cos(f · (Δ - 1)). Head 2 marks the token
    /// after BOS, head 3 the token after a trigger.
    fn look_back_heads(&mut self, growth: f64, basis: &Basis) {
        for pair in FAST {
            let frequency = ROPE_THETA.powf(-(pair as f64) / PAIRS as f64);
            for head in 2..HEADS {
                let row = |amount| basis.vector(&[(Direction::Constant, amount)]);
                self.q.set_row(head * HEAD_DIM + pair, &row(frequency.cos()));
                self.q.set_row(head * HEAD_DIM + pair + PAIRS, &row(-frequency.sin()));
            }
            self.k.set_row(HEAD_DIM + pair, &basis.vector(&[(Direction::Constant, 1.0)]));
        }

        // Undoes the scaling by RMSNorm, so that a feature is copied at its original size.
        let rms = ((EMBED_NORM.powi(2) + growth) / HIDDEN as f64).sqrt();
        let copies = [
            (2, Direction::Kind(BOS_KIND), Direction::AfterBos),
            (3, Direction::Trigger, Direction::AfterTrigger),
        ];
        for (d, (head, from, to)) in copies.into_iter().enumerate() {
            self.v.set_row(HEAD_DIM + d, &basis.vector(&[(from, 1.0)]));
            self.o.set_column(head * HEAD_DIM + d, &basis.vector(&[(to, rms)]));
        }
    }
}

/// Weights of the query and key norms, which set the scale of the attention scores of each use.
///
/// A normed head has norm √HEAD_DIM and scores are divided by √HEAD_DIM, so a weight of √w gives
/// scores up to w·√HEAD_DIM, divided among the pairs that the head uses.
fn pair_weights() -> Vec<f64> {
    let root = (HEAD_DIM as f64).sqrt();
    let mut weights = vec![1.0; HEAD_DIM];
    for pair in SLOW {
        weights[pair] = (SINK_SCORE / root).sqrt();
        weights[pair + PAIRS] = (SINK_SCORE / root).sqrt();
    }
    for pair in FAST {
        weights[pair] = (LOOK_BACK_SCORE * FAST.len() as f64 / root).sqrt();
        weights[pair + PAIRS] = (LOOK_BACK_SCORE * FAST.len() as f64 / root).sqrt();
    }
    weights
}
