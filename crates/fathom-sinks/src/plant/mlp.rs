//! MLPs of the planted model, which create, rotate and erase sinks.

use super::linalg::{Basis, Matrix, dot, rounded, scaled};
use super::plan::{
    BOS_KIND, CONSTANT, Direction, EMBED_NORM, HIDDEN, INTERMEDIATE, MARKER, Plan, PlannedPhase,
    State, Write,
};
use super::rng::Rng;

/// Scale of a converting neuron's gate; a larger one separates its tokens from others more sharply.
const GATE_GAIN: f64 = 5.0;
/// Row norm with which projections of content are about standard normal.
const CONTENT_READ: f64 = 1.2;
/// Norm of a random neuron's down column.
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
    pub(super) fn plant(layer: usize, plan: &Plan, basis: &Basis, rng: &mut Rng) -> Mlp {
        let mut mlp = Mlp {
            gate: Matrix::zeros(INTERMEDIATE, HIDDEN),
            up: Matrix::zeros(INTERMEDIATE, HIDDEN),
            down: Matrix::zeros(HIDDEN, INTERMEDIATE),
            neurons: 0,
        };
        for (index, kind) in plan.kinds.iter().enumerate() {
            for write in kind.writes.iter().filter(|write| write.layer == layer) {
                mlp.convert(index, write, plan, basis);
            }
        }
        if let Some((_, norm)) = plan.drift.iter().find(|(at, _)| *at == layer) {
            mlp.drift(*norm, basis);
        }
        if let Some(phase) = plan.phases.iter().find(|phase| phase.clip.end == layer) {
            mlp.erase(phase, plan, basis);
        }
        while mlp.neurons < INTERMEDIATE {
            let gate = basis.content(rng, CONTENT_READ);
            let up = basis.content(rng, CONTENT_READ);
            mlp.add(&gate, &up, &basis.content(rng, CONTENT_WRITE * plan.content_scale()));
        }
        mlp
    }

    /// Adds the neuron that converts the tokens of a kind in their context. Its gate opens when the
    /// marker (plus the feature of the context) exceeds a threshold, which is a multiple of the
    /// constant component of all tokens.
    fn convert(&mut self, kind: usize, write: &Write, plan: &Plan, basis: &Basis) {
        let marker = Direction::Kind(kind);
        let feature = plan.kinds[kind].context.feature();
        let features = 1 + feature.iter().count();
        let threshold = (features as f64 - 0.5) * MARKER / CONSTANT;
        let mut reads = vec![(marker, GATE_GAIN), (Direction::Constant, -GATE_GAIN * threshold)];
        reads.extend(feature.map(|feature| (feature, GATE_GAIN)));
        self.calibrated(
            &basis.vector(&reads),
            &basis.vector(&[(marker, 1.0)]),
            &basis.vector(&write.along),
            &basis.normed(&plan.state(kind, write.layer)),
        );
    }

    /// Adds the neuron that writes a drift of `norm` to every sink. After RMSNorm all sinks look
    /// the same to it, regardless of their norms.
    fn drift(&mut self, norm: f64, basis: &Basis) {
        let mut pure = State { along: [0.0; HIDDEN], content: 0.0 };
        pure.along[Direction::Sink.index()] = EMBED_NORM;
        let sink = basis.vector(&[(Direction::Sink, 1.0)]);
        let write = basis.vector(&[(Direction::Drift, norm)]);
        self.calibrated(&sink, &sink, &write, &basis.normed(&pure));
    }

    /// Adds the neuron that removes the sink direction from tokens in which its ratio to the
    /// constant component exceeds a threshold.
    fn erase(&mut self, phase: &PlannedPhase, plan: &Plan, basis: &Basis) {
        let threshold = phase.erased_norm / CONSTANT;
        let bos = plan.state(BOS_KIND, phase.clip.end);
        self.calibrated(
            &basis.vector(&[(Direction::Sink, 1.0), (Direction::Constant, -threshold)]),
            &basis.vector(&[(Direction::Sink, 1.0)]),
            &basis.vector(&[(Direction::Sink, -bos.get(Direction::Sink))]),
            &basis.normed(&bos),
        );
    }

    /// Adds a neuron that writes exactly `write` for the input `x`. The rounding of its gate and up
    /// rows to bfloat16 is compensated.
    fn calibrated(&mut self, gate: &[f64], up: &[f64], write: &[f64], x: &[f64]) {
        let gate_value = dot(&rounded(gate), x);
        let up_value = dot(&rounded(up), x);
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
