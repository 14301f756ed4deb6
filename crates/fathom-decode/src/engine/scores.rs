//! What a model says about the tokens it was given, as much of it as its readers need.

use fathom_backend::Backend;
use fathom_model::{Logits, Model, Result, Step};

/// The scores of every row of every step.
pub(super) struct Scores<B: Backend> {
    /// The most likely token of each row, step by step.
    pub best: Vec<Vec<u32>>,
    /// Everything, unless the most likely tokens are enough.
    pub logits: Option<Logits<B>>,
}

impl<B: Backend> Scores<B> {
    /// Runs `steps` through `model`. If all requests take the most likely tokens as they are, no logits are
    /// kept. Ids from `limit` on are not considered.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn of(
        model: &Model<B>,
        steps: &mut [Step<'_, B>],
        argmax_only: bool,
        limit: usize,
    ) -> Result<Scores<B>> {
        if argmax_only {
            return Ok(Scores { best: model.forward_argmax(steps, limit)?, logits: None });
        }
        let logits = model.forward(steps, None)?;
        Ok(Scores { best: logits.argmax(model.backend(), limit)?, logits: Some(logits) })
    }
}
