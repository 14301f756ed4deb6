//! Interventions: the trait, and the loop that runs each trace with their edits, in one batch with
//! a plain pass.

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
/// All interventions run a trace in one batch with a plain pass. Parts are stored and added as for
/// a [`super::pass::Observer`].
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

/// Adds the stored parts of all traces. Each trace for which some intervention has no stored part
/// is run through the model: once without edits, and once with each edit of these interventions.
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
        if passes.is_empty() { 0 } else { trace.ids.len() * (1 + passes.iter().sum::<usize>()) }
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
        if missing.is_empty() {
            continue;
        }
        let edits: Vec<Vec<EditedPass>> = missing
            .iter()
            .map(|(intervention, _)| intervention.edits(trace, model.config()))
            .collect::<Result<_>>()?;
        let all: Vec<&EditedPass> = edits.iter().flatten().collect();
        let mut advance = |tokens| advanced(progress, tokens);
        let plain = EditedPass::default();
        let mut edited = run_edited(model, trace, run.scan, &all, &plain, &mut advance)?;
        let mut first = 0;
        for ((intervention, id), edits) in missing.into_iter().zip(&edits) {
            let part = intervention.part(trace, edited.passes(first, edits), text)?;
            parts.write(id, &part)?;
            intervention.add(&part);
            first += edits.len();
        }
    }
    Ok(())
}
