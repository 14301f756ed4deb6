//! Predictions of tokens per step from other prompts than those measured.

use fathom_model::Result;

use super::BenchResult;
use crate::Mode;
use crate::engine::ModeChoice;
use crate::simulate::SpeculationRecord;

/// Tokens per step of some texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// As measured.
    pub measured: f64,
    /// As the simulator expects from other texts.
    pub predicted: f64,
}

impl HeldOut {
    fn of(
        mode: Mode,
        measured: &[&SpeculationRecord],
        others: &[&SpeculationRecord],
    ) -> Result<Option<HeldOut>> {
        let measured = SpeculationRecord::tokens_per_step(measured);
        let predicted = SpeculationRecord::expected_tokens_per_step(others, mode)?;
        Ok(measured.zip(predicted).map(|(measured, predicted)| HeldOut { measured, predicted }))
    }

    /// Measured relative to predicted.
    pub fn ratio(&self) -> f64 {
        self.measured / self.predicted
    }
}

impl BenchResult {
    /// Two predictions: for every second prompt from the others, and for the others from these.
    /// `None` with a single prompt, and for `auto`, whose steps are of several modes.
    ///
    /// # Errors
    /// See [`SpeculationRecord::expected_tokens_per_step`].
    pub fn held_out(&self) -> Result<Option<[HeldOut; 2]>> {
        let ModeChoice::Always(mode) = self.mode else { return Ok(None) };
        let half = |odd: usize| -> Vec<&SpeculationRecord> {
            self.records.iter().skip(odd).step_by(2).collect()
        };
        let (even, odd) = (half(0), half(1));
        let of_even = HeldOut::of(mode, &even, &odd)?;
        Ok(of_even.zip(HeldOut::of(mode, &odd, &even)?).map(|(even, odd)| [even, odd]))
    }
}
