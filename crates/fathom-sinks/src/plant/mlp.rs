//! MLPs of the planted model: what makes sinks, turns them, and takes them away again.

use super::linalg::{Basis, Matrix, dot, rounded, scaled};
use super::plan::{
    BOS_KIND, CLIP, CONSTANT, DRIFT, Direction, EMBED_NORM, HIDDEN, INTERMEDIATE, KINDS, MARKER,
    MEANINGS, State, planned,
};
use super::rng::Rng;

/// How sharply a converting neuron tells its tokens from others.
const GATE_GAIN: f64 = 5.0;
/// At the end of the clip only sinks beyond this norm are taken away.
const ERASED_NORM: f64 = 2500.0;
/// Row norm that makes reads of content about standard normal.
const CONTENT_READ: f64 = 1.2;
/// Norm of what a random neuron writes.
const CONTENT_WRITE: f64 = 0.08;

/// The weights of one layer's MLP: down · (silu(gate · x) ⊙ (up · x)).
pub(super) struct Mlp {
    /// `[INTERMEDIATE, HIDDEN]`
    pub(super) gate: Matrix,
    /// `[INTERMEDIATE, HIDDEN]`
    pub(super) up: Matrix,
    /// `[HIDDEN, INTERMEDIATE]`
    pub(super) down: Matrix,
    neurons: usize,
}

impl Mlp {
    pub(super) fn plant(layer: usize, basis: &Basis, rng: &mut Rng) -> Mlp {
        let mut mlp = Mlp {
            gate: Matrix::zeros(INTERMEDIATE, HIDDEN),
            up: Matrix::zeros(INTERMEDIATE, HIDDEN),
            down: Matrix::zeros(HIDDEN, INTERMEDIATE),
            neurons: 0,
        };
        for kind in (0..KINDS.len()).filter(|kind| KINDS[*kind].layer == layer) {
            mlp.convert(kind, basis);
        }
        if let Some((_, norm)) = DRIFT.iter().find(|(at, _)| *at == layer) {
            mlp.drift(*norm, basis);
        }
        if layer == CLIP.end {
            mlp.erase(basis);
        }
        while mlp.neurons < INTERMEDIATE {
            let gate = basis.content(rng, CONTENT_READ);
            let up = basis.content(rng, CONTENT_READ);
            mlp.add(&gate, &up, &basis.content(rng, CONTENT_WRITE));
        }
        mlp
    }

    /// Turns tokens of a kind, where they are in their context, into what is planned of them: the
    /// gate opens when the marker, and the feature of the context, outweigh the constant every
    /// token carries.
    fn convert(&mut self, kind: usize, basis: &Basis) {
        let plan = &KINDS[kind];
        let marker = Direction::Kind(kind);
        let feature = plan.context.feature();
        let features = 1 + feature.iter().count();
        let threshold = (features as f64 - 0.5) * MARKER / CONSTANT;
        let mut reads = vec![(marker, GATE_GAIN), (Direction::Constant, -GATE_GAIN * threshold)];
        reads.extend(feature.map(|feature| (feature, GATE_GAIN)));
        let [sink, elsewhere] = plan.writes;
        self.calibrated(
            &basis.vector(&reads),
            &basis.vector(&[(marker, 1.0)]),
            &basis.vector(&[(Direction::Sink, sink), (Direction::Elsewhere, elsewhere)]),
            &basis.normed(&planned(kind, plan.layer)),
        );
    }

    /// Writes `norm` across every sink. RMSNorm makes all sinks look the same, whatever their norm.
    fn drift(&mut self, norm: f64, basis: &Basis) {
        let mut pure = State { along: [0.0; MEANINGS], content: 0.0 };
        pure.along[Direction::Sink.index()] = EMBED_NORM;
        let sink = basis.vector(&[(Direction::Sink, 1.0)]);
        let write = basis.vector(&[(Direction::Drift, norm)]);
        self.calibrated(&sink, &sink, &write, &basis.normed(&pure));
    }

    /// Takes the sink direction out of tokens in which it outweighs even the constant by far.
    fn erase(&mut self, basis: &Basis) {
        let mass = ERASED_NORM / CONSTANT;
        let bos = planned(BOS_KIND, CLIP.end);
        self.calibrated(
            &basis.vector(&[(Direction::Sink, 1.0), (Direction::Constant, -mass)]),
            &basis.vector(&[(Direction::Sink, 1.0)]),
            &basis.vector(&[(Direction::Sink, -bos.get(Direction::Sink))]),
            &basis.normed(&bos),
        );
    }

    /// Adds a neuron that writes `write` when it sees `seen`, rounding of its rows included.
    fn calibrated(&mut self, gate: &[f64], up: &[f64], write: &[f64], seen: &[f64]) {
        let gate_value = dot(&rounded(gate), seen);
        let up_value = dot(&rounded(up), seen);
        let activation = gate_value / (1.0 + (-gate_value).exp()) * up_value;
        self.add(gate, up, &scaled(write, 1.0 / activation));
    }

    fn add(&mut self, gate: &[f64], up: &[f64], down: &[f64]) {
        self.gate.set_row(self.neurons, gate);
        self.up.set_row(self.neurons, up);
        self.down.set_column(self.neurons, down);
        self.neurons += 1;
    }
}
