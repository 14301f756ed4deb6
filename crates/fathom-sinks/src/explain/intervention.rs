//! Interventions: the trait, and the loop that runs each trace with their edits, in a batch with a
//! plain pass.

use std::ops::Range;

use fathom_backend::Backend;
use fathom_model::{ModelConfig, Result, Transformer};

use super::ExplainProgress;
use super::batch::EditedPass;
use super::driver::advanced;
use super::edited::{Passes, run_edited};
use super::parts::{PartId, Parts};
use super::scanned::{ScannedRun, ScannedTrace};

/// What an analysis changes in passes over the traces, and what it stores of the outcomes.
///
/// Interventions run a trace in one batch with a plain pass, or in several ([`batches`]). Parts are
/// stored and added as for a [`super::pass::Observer`].
pub(super) trait Intervention<B: Backend> {
    /// The name of its parts.
    fn name(&self) -> &'static str;

    /// Everything that its edits depend on besides the trace. Parts made with other settings are
    /// not used.
    ///
    /// # Errors
    /// None: see [`super::parts::encode`].
    fn settings(&self) -> Result<Vec<u8>>;

    /// Number of edited passes over a trace.
    fn passes(&self, trace: &ScannedTrace<'_>) -> usize;

    /// What each pass over a trace changes.
    ///
    /// # Errors
    /// Edits that are not finite.
    fn edits(&self, trace: &ScannedTrace<'_>, config: &ModelConfig) -> Result<Vec<EditedPass>>;

    /// What it stores of the passes over a trace, encoded by [`super::parts::encode`]. `text`
    /// decodes token ids, if the model has a tokenizer.
    ///
    /// # Errors
    /// A pass that fails.
    fn part(
        &self,
        trace: &ScannedTrace<'_>,
        passes: Passes<'_, B>,
        text: &dyn Fn(&[u32]) -> Option<String>,
    ) -> Result<Vec<u8>>;

    /// Adds the part of the next trace. Returns false if the part cannot be decoded.
    fn add(&mut self, part: &[u8]) -> bool;
}

/// Maximum number of edited passes in a batch, unless a single intervention has more: each pass has
/// a KV cache of its own, and logits.
const PASSES: usize = 12;

/// Divides interventions with these numbers of passes into batches. Each batch also has a plain
/// pass.
pub(super) fn batches(passes: &[usize]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut in_last = 0;
    for (i, passes) in passes.iter().enumerate() {
        match batches.last_mut() {
            Some(last) if in_last + passes <= PASSES => {
                last.end = i + 1;
                in_last += passes;
            }
            _ => {
                batches.push(i..i + 1);
                in_last = *passes;
            }
        }
    }
    batches
}

/// Adds the stored parts of all traces. Each trace for which some intervention has no stored part
/// is run through the model: with each edit of these interventions, and without.
///
/// # Errors
/// A pass that fails; a part that cannot be stored.
pub(super) fn intervene<B: Backend>(
    model: &Transformer<B>,
    run: &ScannedRun<'_>,
    interventions: &mut [&mut dyn Intervention<B>],
    parts: &Parts,
    text: &dyn Fn(&[u32]) -> Option<String>,
    progress: &mut dyn ExplainProgress,
) -> Result<()> {
    let settings: Vec<Vec<u8>> =
        interventions.iter().map(|intervention| intervention.settings()).collect::<Result<_>>()?;
    let tokens = |trace: &ScannedTrace<'_>| {
        let all = interventions.iter().zip(&settings);
        let missing = all.filter(|(i, s)| !parts.has(PartId::new(i.name(), trace).with(s)));
        let passes: Vec<usize> = missing.map(|(one, _)| one.passes(trace)).collect();
        trace.ids.len() * (batches(&passes).len() + passes.iter().sum::<usize>())
    };
    let tokens = run.traces.iter().map(tokens).sum();
    if tokens > 0 {
        progress.start("intervening", "tokens", tokens);
    }
    for trace in &run.traces {
        let mut missing = Vec::new();
        for (intervention, settings) in interventions.iter_mut().zip(&settings) {
            let id = PartId::new(intervention.name(), trace).with(settings);
            let part = parts.read(id);
            if !part.is_some_and(|part| intervention.add(&part)) {
                missing.push((intervention, id));
            }
        }
        let passes: Vec<usize> = missing.iter().map(|(one, _)| one.passes(trace)).collect();
        for batch in batches(&passes) {
            let batch = &mut missing[batch];
            let edits: Vec<Vec<EditedPass>> = batch
                .iter()
                .map(|(intervention, _)| intervention.edits(trace, model.config()))
                .collect::<Result<_>>()?;
            let all: Vec<&EditedPass> = edits.iter().flatten().collect();
            let mut advance = |tokens| advanced(progress, tokens);
            let plain = EditedPass::default();
            let mut edited = run_edited(model, trace, run.scan, &all, &plain, &mut advance)?;
            let mut first = 0;
            for ((intervention, id), edits) in batch.iter_mut().zip(&edits) {
                let part = intervention.part(trace, edited.passes(first, edits), text)?;
                parts.write(*id, &part)?;
                intervention.add(&part);
                first += edits.len();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_as_many_interventions_as_fit() {
        assert_eq!(batches(&[3, 3, 10, 16, 2]), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(batches(&[3, 9, 0, 1]), [0..3, 3..4]);
        assert_eq!(batches(&[]), Vec::<Range<usize>>::new());
    }
}
