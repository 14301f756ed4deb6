//! Runs one trace through the model, without edits and with each of several sets of edits, and
//! measures sinks, predictions and attention.

use fathom_backend::{Backend, KeyMask};
use fathom_model::{EditProbe, LogitRows, PREFILL_CHUNK, Result, Sequence, Step, Transformer};
use serde::{Deserialize, Serialize};

use super::batch::{Batch, EditedPass, ProbePerSequence, argmax};
use super::keys::{CHUNK, LayerAttention};
use super::predictions::{Prediction, log_sum_exp};
use super::scanned::ScannedTrace;
use crate::{Class, Detection, ScalarProbe, ScanOptions, Sink, TraceScalars, detect};

/// The outcome of one pass over a trace.
pub(super) struct Outcome {
    /// Norms and cosines.
    pub scalars: TraceScalars,
    /// The sinks.
    pub detection: Detection,
    /// Positions that [`fathom_model::Positions::Aligned`] edits changed, ascending.
    pub aligned: Vec<usize>,
    /// Negative log-likelihood of each token but the first, in nats, `[T - 1]`.
    pub nll: Vec<f64>,
    /// KL(plain ‖ this) of the next-token distribution at each position, in nats, `[T]`.
    pub kl: Vec<f64>,
    /// Whether the plain pass's most likely next token is also this one's, `[T]`.
    pub agrees: Vec<bool>,
    /// By layer; empty if not measured.
    pub attention: Vec<LayerAttention>,
    /// The keys that were hidden from later queries.
    pub mask: KeyMask,
}

/// What a pass predicts at each position: see [`Outcome`].
#[derive(Default)]
struct Predicted {
    nll: Vec<f64>,
    kl: Vec<f64>,
    agrees: Vec<bool>,
}

/// Runs a trace through the model in one batch of sequences: a plain one, and one for each of
/// `edited`. Calls `advance` with the number of tokens done since the last call.
///
/// # Errors
/// A pass that fails.
pub(super) fn run_edited<'a, B: Backend>(
    model: &'a Transformer<B>,
    trace: &ScannedTrace<'a>,
    scan: &ScanOptions,
    edited: &[&'a EditedPass],
    plain: &'a EditedPass,
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<EditedTrace<'a, B>> {
    let ids = trace.ids;
    let (layers, vocab) = (model.config().layers, model.config().vocab);
    let all: Vec<&EditedPass> = [plain].into_iter().chain(edited.iter().copied()).collect();
    let mut scalars: Vec<ScalarProbe> =
        all.iter().map(|_| ScalarProbe::new(layers, ids, &scan.scalars())).collect();
    let probes = all.iter().zip(&mut scalars);
    let mut probe = ProbePerSequence {
        probes: probes
            .map(|(pass, scalars)| EditProbe::new(&pass.edits).observed_by(scalars))
            .collect(),
    };
    let mut batch = Batch::new(model, all, ids.len());
    let passes = batch.passes.len();
    let mut predicted: Vec<Predicted> = (0..passes).map(|_| Predicted::default()).collect();

    let mut first = 0;
    for tokens in ids.chunks(CHUNK) {
        let logits = batch.forward(&vec![tokens; passes], LogitRows::All, &mut probe)?;
        let unedited = logits.step(model.backend(), 0)?; // [tokens, vocab]
        let plain: Vec<Prediction<'_>> =
            unedited.chunks_exact(vocab).map(Prediction::new).collect();
        for (pass, predicted) in predicted.iter_mut().enumerate() {
            let after = match pass {
                0 => Vec::new(),
                _ => logits.step(model.backend(), pass)?,
            };
            for (i, before) in plain.iter().enumerate() {
                let (row, log_sum, divergence, same) = match after.get(i * vocab..(i + 1) * vocab) {
                    None => (before.logits, before.log_sum, 0.0, true),
                    Some(row) => {
                        let log_sum = log_sum_exp(row);
                        (row, log_sum, before.divergence(row, log_sum), before.agrees(row))
                    }
                };
                if let Some(next) = ids.get(first + i + 1) {
                    predicted.nll.push(log_sum - f64::from(row[*next as usize]));
                }
                predicted.kl.push(divergence);
                predicted.agrees.push(same);
            }
        }
        first += tokens.len();
        advance(tokens.len() * passes)?;
    }

    let aligned: Vec<Vec<usize>> = probe
        .probes
        .into_iter()
        .map(|probe| probe.aligned().iter().map(|(_, _, position)| *position).collect())
        .collect();
    let mut sequences = batch.sequences;
    let measured = scalars.into_iter().zip(aligned).zip(predicted);
    let outcomes = measured
        .zip(&mut sequences)
        .map(|(((scalars, aligned), predicted), sequence)| {
            let Predicted { nll, kl, agrees } = predicted;
            let scalars = scalars.finish()?;
            let mut detection = detect(&scalars, &scan.detect());
            detection.sinks = detection.sinks_of(scan.phases);
            let attention = LayerAttention::of(model, sequence)?;
            sequence.stop_sink_scores(); // continuations truncate it
            let mask = sequence.key_mask_mut().clone();
            Ok(Outcome { scalars, detection, aligned, nll, kl, agrees, attention, mask })
        })
        .collect::<Result<_>>()?;
    Ok(EditedTrace { model, ids, plain, outcomes, sequences })
}

/// A trace after all its passes.
pub(super) struct EditedTrace<'a, B: Backend> {
    model: &'a Transformer<B>,
    ids: &'a [u32],
    plain: &'a EditedPass,
    /// Of the plain pass, then of each edited one.
    outcomes: Vec<Outcome>,
    /// Of the same passes, each holding the whole trace.
    sequences: Vec<Sequence<B>>,
}

impl<'a, B: Backend> EditedTrace<'a, B> {
    /// What one intervention sees: the plain pass, and the `edits.len()` edited passes from number
    /// `first` on. Edited passes are numbered from 0; the plain pass has no number.
    pub fn passes<'b>(&'b mut self, first: usize, edits: &'b [EditedPass]) -> Passes<'b, B> {
        let own = first..first + edits.len();
        let (plain, edited) = self.outcomes.split_at(1);
        let (plain_sequence, sequences) = self.sequences.split_at_mut(1);
        Passes {
            plain: &plain[0],
            plain_pass: self.plain,
            edited: &edited[own.clone()],
            model: self.model,
            ids: self.ids,
            edits,
            plain_sequence: &mut plain_sequence[0],
            sequences: &mut sequences[own],
        }
    }
}

/// What one intervention sees of the passes over a trace.
pub(super) struct Passes<'a, B: Backend> {
    /// Outcome of the plain pass.
    pub plain: &'a Outcome,
    /// Outcomes of the intervention's passes, in the order of its edits.
    pub edited: &'a [Outcome],
    model: &'a Transformer<B>,
    ids: &'a [u32],
    plain_pass: &'a EditedPass,
    edits: &'a [EditedPass],
    plain_sequence: &'a mut Sequence<B>,
    sequences: &'a mut [Sequence<B>],
}

impl<B: Backend> Passes<'_, B> {
    /// Greedily generates `tokens` tokens after the first `from` tokens of the trace, which are run
    /// once more: without edits, then under each of the `chosen` passes, whose policies go on while
    /// the text is generated.
    ///
    /// # Errors
    /// A pass that fails.
    pub fn write_anew(
        &self,
        from: usize,
        tokens: usize,
        chosen: &[usize],
    ) -> Result<Vec<Vec<u32>>> {
        let chosen = chosen.iter().map(|pass| &self.edits[*pass]);
        let all = [self.plain_pass].into_iter().chain(chosen).collect();
        let ids = &self.ids[..from.min(self.ids.len())];
        Batch::new(self.model, all, self.ids.len()).write_after(ids, tokens)
    }

    /// Greedily generates `tokens` tokens after the first `from` tokens of the trace: without
    /// edits, then with each of the edits, which also apply to the generated tokens.
    ///
    /// # Errors
    /// A pass that fails.
    pub fn continue_greedily(self, from: usize, tokens: usize) -> Result<Vec<Vec<u32>>> {
        let Passes { model, ids, plain_pass, edits, plain_sequence, sequences, .. } = self;
        let Some((last, before)) = ids.get(..from).and_then(<[u32]>::split_last) else {
            return Ok(Vec::new());
        };
        // Another intervention may have continued the plain sequence from an earlier position.
        if let Some(missing) = before.get(plain_sequence.len()..) {
            model.prefill(plain_sequence, missing, PREFILL_CHUNK, None, &mut |_| {})?;
        }
        let all: Vec<&EditedPass> = [plain_pass].into_iter().chain(edits).collect();
        let mut probe = ProbePerSequence {
            probes: all.iter().map(|pass| EditProbe::new(&pass.edits)).collect(),
        };
        let mut sequences: Vec<&mut Sequence<B>> =
            [plain_sequence].into_iter().chain(sequences).collect();
        for sequence in &mut sequences {
            model.truncate(sequence, before.len())?;
        }
        let mut written = vec![Vec::with_capacity(tokens); all.len()];
        let mut next = vec![[*last]; all.len()];
        for _ in 0..tokens {
            let mut steps: Vec<Step<'_, B>> = sequences
                .iter_mut()
                .zip(&next)
                .map(|(sequence, tokens)| Step { sequence, tokens, logits: LogitRows::Last })
                .collect();
            let logits = model.forward(&mut steps, Some(&mut probe))?;
            for (pass, written) in written.iter_mut().enumerate() {
                let token = argmax(&logits.step(model.backend(), pass)?);
                written.push(token);
                next[pass] = [token];
            }
        }
        for sequence in &mut sequences {
            model.truncate(sequence, before.len())?;
        }
        Ok(written)
    }
}

/// What an edit did to the secondary sinks of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelChange {
    /// First layer.
    pub l_start: usize,
    /// Number of layers.
    pub lifetime: usize,
    /// Sinks in the plain pass.
    pub before: usize,
    /// Those that are sinks at exactly the same layers in the edited pass.
    pub kept: usize,
    /// Those that are sinks at other layers.
    pub changed: usize,
    /// Those that are not sinks any more.
    pub gone: usize,
}

/// What an edit did to the secondary sinks of one trace, or of several.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct SinkChanges {
    /// Ascending, each level once.
    levels: Vec<LevelChange>,
    appeared: usize,
}

impl SinkChanges {
    /// Compares a trace's sinks with those of an edited pass.
    pub fn of(trace: &ScannedTrace<'_>, edited: &Detection) -> SinkChanges {
        let mut changes = SinkChanges::default();
        for sink in trace.secondary() {
            let level = changes.level(sink.l_start(), sink.lifetime());
            level.before += 1;
            // A token that is a sink in several phases is the same sink only where layers overlap.
            let phases = trace.detection.sinks.iter().filter(|s| s.position == sink.position);
            let one_phase = phases.count() == 1;
            let same = |other: &&Sink| {
                other.position == sink.position
                    && (one_phase || other.layers.iter().any(|l| sink.layers.contains(l)))
            };
            match edited.sinks.iter().find(same) {
                None => level.gone += 1,
                Some(other) if other.layers == sink.layers => level.kept += 1,
                Some(_) => level.changed += 1,
            }
        }
        let new = |position| !trace.is_sink(position);
        let secondary = edited.sinks.iter().filter(|sink| sink.class == Class::Secondary);
        changes.appeared = secondary.filter(|sink| new(sink.position)).count();
        changes
    }

    fn level(&mut self, l_start: usize, lifetime: usize) -> &mut LevelChange {
        let key = |level: &LevelChange| (level.l_start, level.lifetime);
        let index = match self.levels.binary_search_by_key(&(l_start, lifetime), key) {
            Ok(index) => index,
            Err(index) => {
                let none =
                    LevelChange { l_start, lifetime, before: 0, kept: 0, changed: 0, gone: 0 };
                self.levels.insert(index, none);
                index
            }
        };
        &mut self.levels[index]
    }

    /// Adds another trace's changes.
    pub fn merge(&mut self, other: SinkChanges) {
        for more in other.levels {
            let level = self.level(more.l_start, more.lifetime);
            level.before += more.before;
            level.kept += more.kept;
            level.changed += more.changed;
            level.gone += more.gone;
        }
        self.appeared += other.appeared;
    }

    /// The levels, and the number of secondary sinks that were not sinks before.
    pub fn finish(self) -> (Vec<LevelChange>, usize) {
        (self.levels, self.appeared)
    }
}
