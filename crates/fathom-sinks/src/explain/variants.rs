//! The traces again with something changed: each creation layer clamped, or without its neurons.

use fathom_backend::Backend;
use fathom_model::{Edits, Model, Result};
use serde::de::DeserializeOwned;

use super::again::run_again;
use super::driver::advanced;
use super::neurons::{AblatedTrace, Ranked};
use super::parts::{Learner, PartId, Parts, decode, encode};
use super::subjects::Subject;
use super::suppress::{CONTINUED, Clamped, ClampedTrace, continued_from};
use super::{Analysis, ExplainProgress};
use crate::ScanOptions;

/// All that is changed, one at a time.
pub(super) struct Variants {
    /// Layers that are clamped.
    pub clamped: Vec<Clamped>,
    /// Layers whose neurons are ablated.
    pub ranked: Vec<Ranked>,
}

impl Variants {
    /// Runs each trace that is not known yet through the model: once plainly and once with each
    /// change that is left, side by side.
    ///
    /// # Errors
    /// A pass that fails; a part that cannot be kept.
    pub fn run<B: Backend>(
        &mut self,
        model: &Model<B>,
        subjects: &[Subject<'_>],
        rule: &ScanOptions,
        parts: &Parts,
        text: &dyn Fn(&[u32]) -> Option<String>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        let clamps = encode(&self.clamped.iter().map(Clamped::change).collect::<Vec<_>>())?;
        let ablations = encode(&self.ranked.iter().map(Ranked::change).collect::<Vec<_>>())?;
        let clamping = |s| Learner::For(Analysis::Suppress).of(s).with(&clamps);
        let ablating = |s| Learner::For(Analysis::Neurons).of(s).with(&ablations);

        let left = |id: PartId<'_>, changes| if parts.has(id) { 0 } else { changes };
        let tokens = subjects.iter().map(|subject| {
            let clamped = left(clamping(subject), self.clamped.len());
            let ranked = left(ablating(subject), self.ranked.len());
            if clamped + ranked == 0 { 0 } else { subject.ids.len() * (1 + clamped + ranked) }
        });
        let tokens = tokens.sum();
        if tokens > 0 {
            progress.start("intervening", "tokens", tokens);
        }
        for subject in subjects {
            let clamped = kept(parts, clamping(subject), self.clamped.len());
            let ranked = kept(parts, ablating(subject), self.ranked.len());
            let left = Left {
                clamped: if clamped.is_some() { &[] } else { &self.clamped },
                ranked: if ranked.is_some() { &[] } else { &self.ranked },
            };
            let (more_clamped, more_ranked) = left.run(model, subject, rule, text, progress)?;
            if clamped.is_none() {
                parts.write(clamping(subject), &encode(&more_clamped)?)?;
            }
            if ranked.is_none() {
                parts.write(ablating(subject), &encode(&more_ranked)?)?;
            }
            let (clamped, ranked) =
                (clamped.unwrap_or(more_clamped), ranked.unwrap_or(more_ranked));
            self.clamped.iter_mut().zip(clamped).for_each(|(sum, trace)| sum.add(trace));
            self.ranked.iter_mut().zip(ranked).for_each(|(sum, trace)| sum.add(trace));
        }
        Ok(())
    }
}

/// What each of so many changes did to a trace, where that is known. Of no changes there is nothing
/// to know, and nothing is ever kept: they are those of an analysis that was not asked for.
fn kept<T: DeserializeOwned>(parts: &Parts, id: PartId<'_>, changes: usize) -> Option<Vec<T>> {
    if changes == 0 {
        return Some(Vec::new());
    }
    let traces: Vec<T> = decode(&parts.read(id)?)?;
    (traces.len() == changes).then_some(traces)
}

/// What is left to do for one trace.
struct Left<'a> {
    clamped: &'a [Clamped],
    ranked: &'a [Ranked],
}

impl Left<'_> {
    fn run<B: Backend>(
        &self,
        model: &Model<B>,
        subject: &Subject<'_>,
        rule: &ScanOptions,
        text: &dyn Fn(&[u32]) -> Option<String>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<(Vec<ClampedTrace>, Vec<AblatedTrace>)> {
        let config = model.config();
        let clamps = self.clamped.iter().map(|clamped| clamped.edits(subject, config));
        let ablations = self.ranked.iter().map(|ranked| ranked.edits(config));
        let edits = clamps.chain(ablations).collect::<Result<Vec<Edits>>>()?;
        if edits.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut advance = |tokens| advanced(progress, tokens);
        let again = run_again(model, subject, rule, &edits, &mut advance)?;
        let Some((plain, edited)) = again.outcomes.split_first() else {
            return Ok((Vec::new(), Vec::new()));
        };
        let (clamps, ablations) = edited.split_at(self.clamped.len());
        let each = self.clamped.iter().zip(clamps);
        let mut clamped: Vec<ClampedTrace> =
            each.clone().map(|(clamp, after)| clamp.part(subject, plain, after)).collect();
        let each_ablation = self.ranked.iter().zip(ablations);
        let ranked =
            each_ablation.map(|(_, after)| AblatedTrace::of(subject, plain, after)).collect();

        if let Some(from) = continued_from(self.clamped, plain, clamps) {
            let positions: Vec<Vec<usize>> =
                each.map(|(clamp, after)| clamp.positions(plain, after)).collect();
            let edits = &edits[..self.clamped.len()];
            let written = again.continue_greedily(model, subject.ids, edits, from, CONTINUED)?;
            if let Some((before, written)) = written.split_first() {
                let each = clamped.iter_mut().zip(&positions).zip(written);
                for ((trace, positions), after) in each {
                    let clamped = positions.iter().filter(|position| **position < from).count();
                    if clamped > 0 {
                        trace.continues(subject, (from, clamped), [before, after], text);
                    }
                }
            }
        }
        Ok((clamped, ranked))
    }
}
