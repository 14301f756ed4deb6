//! Passes over a trace with something changed, beside one without: what becomes of its sinks and of
//! the distributions it predicts.

use fathom_backend::{Backend, RowEdit};
use fathom_model::{
    Access, At, EditProbe, Edits, LogitRows, Measured, Model, Probe, Result, Sequence,
    SequenceOptions, Site, Step,
};
use serde::{Deserialize, Serialize};

use super::LevelChange;
use super::predictions::{Prediction, log_sum_exp};
use super::subjects::Subject;
use crate::{
    Class, DetectOptions, Detection, Preset, ScalarOptions, ScalarProbe, ScanOptions, TraceScalars,
    detect,
};

/// Tokens of each sequence that run at a time: logits are as wide as the vocabulary.
const CHUNK: usize = 32;

/// What one pass over a trace came to.
pub(super) struct Outcome {
    /// Norms and cosines.
    pub scalars: TraceScalars,
    /// The sinks.
    pub detection: Detection,
    /// Positions that edits changed because they were aligned, ascending.
    pub aligned: Vec<usize>,
    /// Negative log-likelihood of each token but the first, in nats, `[T - 1]`.
    pub nll: Vec<f64>,
    /// KL(plain ‖ this) of the distribution predicted at each position, in nats, `[T]`.
    pub kl: Vec<f64>,
}

/// Runs a trace through the model once without edits and once with each of `variants`, side by
/// side: the plain outcome comes first. `advance` is called with the tokens done since the last
/// call.
///
/// # Errors
/// A pass that fails.
pub(super) fn run_again<B: Backend>(
    model: &Model<B>,
    subject: &Subject<'_>,
    rule: &ScanOptions,
    variants: &[Edits],
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Again<B>> {
    let ids = subject.ids;
    let (layers, vocab) = (model.config().layers, model.config().vocab);
    let plain = Edits::default();
    let all: Vec<&Edits> = [&plain].into_iter().chain(variants).collect();
    let measured = ScalarOptions {
        candidates: rule.reference.clone(),
        final_state: rule.preset == Preset::Upstream,
    };
    let mut scalars: Vec<ScalarProbe> =
        all.iter().map(|_| ScalarProbe::new(layers, ids, &measured)).collect();
    let probes = all.iter().zip(&mut scalars);
    let mut probe = SideBySide {
        probes: probes.map(|(edits, scalars)| EditProbe::new(edits).watched_by(scalars)).collect(),
    };
    let options = SequenceOptions {
        planned_len: Some(ids.len()),
        sink_scores: false,
        ..SequenceOptions::default()
    };
    let mut sequences: Vec<_> = all.iter().map(|_| model.new_sequence(options)).collect();
    let mut nll = vec![Vec::with_capacity(ids.len()); all.len()];
    let mut kl = vec![Vec::with_capacity(ids.len()); all.len()];

    let mut first = 0;
    for tokens in ids.chunks(CHUNK) {
        let step = |sequence| Step { sequence, tokens, logits: LogitRows::All };
        let mut steps: Vec<Step<'_, B>> = sequences.iter_mut().map(step).collect();
        let logits = model.forward(&mut steps, Some(&mut probe))?;
        let unedited = logits.step(model.backend(), 0)?; // [tokens, vocab]
        let plain: Vec<Prediction<'_>> =
            unedited.chunks_exact(vocab).map(Prediction::new).collect();
        for variant in 0..all.len() {
            let after = match variant {
                0 => Vec::new(),
                _ => logits.step(model.backend(), variant)?,
            };
            for (i, before) in plain.iter().enumerate() {
                let (row, log_sum, divergence) = match after.get(i * vocab..(i + 1) * vocab) {
                    None => (before.logits, before.log_sum, 0.0),
                    Some(row) => {
                        let log_sum = log_sum_exp(row);
                        (row, log_sum, before.divergence(row, log_sum))
                    }
                };
                if let Some(next) = ids.get(first + i + 1) {
                    nll[variant].push(log_sum - f64::from(row[*next as usize]));
                }
                kl[variant].push(divergence);
            }
        }
        first += tokens.len();
        advance(tokens.len() * all.len())?;
    }

    let aligned: Vec<Vec<usize>> = probe
        .probes
        .into_iter()
        .map(|probe| probe.aligned().iter().map(|(_, _, position)| *position).collect())
        .collect();
    let ScanOptions { preset, threshold, rise_factor, .. } = *rule;
    let options = DetectOptions { preset, threshold, rise_factor };
    let measured = scalars.into_iter().zip(aligned).zip(nll.into_iter().zip(kl));
    let outcomes = measured
        .map(|((scalars, aligned), (nll, kl))| {
            let scalars = scalars.finish()?;
            let detection = detect(&scalars, &options);
            Ok(Outcome { scalars, detection, aligned, nll, kl })
        })
        .collect::<Result<_>>()?;
    Ok(Again { outcomes, sequences })
}

/// What came of a trace, plain and with each of the variants.
pub(super) struct Again<B: Backend> {
    /// The plain outcome, then those of the variants.
    pub outcomes: Vec<Outcome>,
    /// Their sequences, each holding the whole trace.
    sequences: Vec<Sequence<B>>,
}

impl<B: Backend> Again<B> {
    /// The `tokens` most likely tokens, one after the other, that follow the first `from` tokens of
    /// the trace, plain and with each of the first `variants`, which go on being edited:
    /// `[1 + variants]`.
    ///
    /// # Errors
    /// A pass that fails.
    pub fn continue_greedily(
        self,
        model: &Model<B>,
        ids: &[u32],
        variants: &[Edits],
        from: usize,
        tokens: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let Some((last, _)) = ids.get(..from).and_then(<[u32]>::split_last) else {
            return Ok(Vec::new());
        };
        let plain = Edits::default();
        let all: Vec<&Edits> = [&plain].into_iter().chain(variants).collect();
        let mut probe = SideBySide { probes: all.iter().map(|e| EditProbe::new(e)).collect() };
        let mut sequences = self.sequences;
        sequences.truncate(all.len());
        for sequence in &mut sequences {
            model.truncate(sequence, from - 1)?;
        }
        let mut written = vec![Vec::with_capacity(tokens); all.len()];
        let mut next = vec![[*last]; all.len()];
        for _ in 0..tokens {
            let step = |(sequence, tokens)| Step { sequence, tokens, logits: LogitRows::Last };
            let tokens = next.iter().map(<[u32; 1]>::as_slice);
            let mut steps: Vec<Step<'_, B>> = sequences.iter_mut().zip(tokens).map(step).collect();
            let logits = model.forward(&mut steps, Some(&mut probe))?;
            for (variant, written) in written.iter_mut().enumerate() {
                let token = argmax(&logits.step(model.backend(), variant)?);
                written.push(token);
                next[variant] = [token];
            }
        }
        Ok(written)
    }
}

/// The index of the largest value, the first of equals.
fn argmax(values: &[f32]) -> u32 {
    let best = values.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    best.and_then(|(index, _)| u32::try_from(index).ok()).unwrap_or(0)
}

/// A probe for each sequence of a batch.
struct SideBySide<'a> {
    probes: Vec<EditProbe<'a>>,
}

impl Probe for SideBySide<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        let wanted = self.probes.iter().map(|probe| probe.access(site, layer));
        wanted.fold(Access::Skip, Access::union)
    }

    fn access_of(&self, sequence: usize, site: Site, layer: usize) -> Access {
        self.probes.get(sequence).map_or(Access::Skip, |probe| probe.access(site, layer))
    }

    fn landmarks(&self, sequence: usize) -> Vec<usize> {
        self.probes.get(sequence).map_or_else(Vec::new, |probe| probe.landmarks(sequence))
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.probes.get_mut(at.sequence).map_or(Ok(()), |probe| probe.read(at, values))
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        self.probes.get_mut(at.sequence).map_or(Ok(()), |probe| probe.edit(at, values))
    }

    fn changes(&mut self, at: &At) -> Result<Vec<RowEdit<'_>>> {
        self.probes.get_mut(at.sequence).map_or_else(|| Ok(Vec::new()), |probe| probe.changes(at))
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.probes.get_mut(at.sequence).map_or(Ok(()), |probe| probe.measured(at, measured))
    }
}

/// What became of the secondary sinks of one trace, or of several.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Changes {
    /// Each level once.
    levels: Vec<LevelChange>,
    appeared: usize,
}

impl Changes {
    /// Compares a trace's sinks with those of an edited pass.
    pub fn of(subject: &Subject<'_>, after: &Detection) -> Changes {
        let mut changes = Changes::default();
        for sink in subject.secondary() {
            let level = changes.level(sink.l_start(), sink.lifetime());
            level.before += 1;
            match after.sinks.iter().find(|other| other.position == sink.position) {
                None => level.gone += 1,
                Some(other) if other.layers == sink.layers => level.kept += 1,
                Some(_) => level.changed += 1,
            }
        }
        let new = |position| !subject.is_sink(position);
        let secondary = after.sinks.iter().filter(|sink| sink.class == Class::Secondary);
        changes.appeared = secondary.filter(|sink| new(sink.position)).count();
        changes
    }

    fn level(&mut self, l_start: usize, lifetime: usize) -> &mut LevelChange {
        let place = |level: &LevelChange| (level.l_start, level.lifetime);
        let index = match self.levels.binary_search_by_key(&(l_start, lifetime), place) {
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

    /// Adds another trace's.
    pub fn merge(&mut self, other: Changes) {
        for more in other.levels {
            let level = self.level(more.l_start, more.lifetime);
            level.before += more.before;
            level.kept += more.kept;
            level.changed += more.changed;
            level.gone += more.gone;
        }
        self.appeared += other.appeared;
    }

    /// The levels, and how many sinks were none before.
    pub fn finish(self) -> (Vec<LevelChange>, usize) {
        (self.levels, self.appeared)
    }
}
