//! What a user can set of the analyses.

use fathom_model::{Error, Result};
use serde::{Deserialize, Serialize};

use super::keys::CHUNK;

/// Limits, seed and settings of the analyses. The same run with the same options gives the same
/// results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainOptions {
    /// Seed of every choice among tokens.
    pub seed: u64,
    /// Maximum number of sinks for an analysis that stores vectors, or runs the model, once per
    /// sink.
    pub max_sinks: usize,
    /// Settings of the interventions on attention keys. No other analysis depends on them.
    #[serde(default, skip_serializing_if = "KeyOptions::is_default")]
    pub keys: KeyOptions,
}

impl ExplainOptions {
    /// The options of `fathom explain`, unless others are given.
    pub const DEFAULT: ExplainOptions =
        ExplainOptions { seed: 0, max_sinks: 200, keys: KeyOptions::DEFAULT };

    /// The options that an analysis depends on: the settings of attention keys only if it
    /// `hides_keys`.
    pub(super) fn of(&self, hides_keys: bool) -> ExplainOptions {
        let keys = if hides_keys { self.keys.clone() } else { KeyOptions::DEFAULT };
        ExplainOptions { keys, ..*self }
    }
}

impl Default for ExplainOptions {
    fn default() -> ExplainOptions {
        ExplainOptions::DEFAULT
    }
}

/// Settings of knock-out and eviction: Hidden keys (docs/definitions.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOptions {
    /// How a key is knocked out.
    pub knockout_by: KnockoutBy,
    /// The layers at which keys are knocked out, ascending; empty: all.
    pub knockout_layers: Vec<usize>,
    /// How many times random tokens are drawn to compare with.
    pub draws: usize,
    /// Numbers of keys that policies of eviction keep, ascending, at least
    /// [`KeyOptions::LEAST_BUDGET`]; empty: [`KeyOptions::BUDGETS`].
    pub budgets: Vec<usize>,
}

/// How a key is knocked out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KnockoutBy {
    /// Later queries do not see it.
    #[default]
    Hide,
    /// Its value is zero.
    Zero,
}

impl KnockoutBy {
    /// Its name on the command line: `hide` or `zero`.
    pub fn name(self) -> &'static str {
        match self {
            KnockoutBy::Hide => "hide",
            KnockoutBy::Zero => "zero",
        }
    }
}

impl KeyOptions {
    /// Keys hidden at all layers, three draws, the usual budgets.
    pub const DEFAULT: KeyOptions = KeyOptions {
        knockout_by: KnockoutBy::Hide,
        knockout_layers: Vec::new(),
        draws: 3,
        budgets: Vec::new(),
    };
    /// The usual budgets.
    pub const BUDGETS: [usize; 4] = [64, 256, 1024, 4096];
    /// The least budget: a policy that decides once per chunk needs room for a chunk.
    pub const LEAST_BUDGET: usize = 2 * CHUNK;

    fn is_default(&self) -> bool {
        *self == KeyOptions::DEFAULT
    }

    /// The budgets, with the default resolved.
    pub(super) fn budgets(&self) -> Vec<usize> {
        match self.budgets.is_empty() {
            true => KeyOptions::BUDGETS.to_vec(),
            false => self.budgets.clone(),
        }
    }

    /// Whether keys are knocked out at a layer.
    pub(super) fn acts_at(&self, layer: usize) -> bool {
        self.knockout_layers.is_empty() || self.knockout_layers.contains(&layer)
    }

    /// Refuses settings that no model of `layers` layers can have.
    ///
    /// # Errors
    /// A layer that does not exist; a budget that is too small.
    pub(super) fn check(&self, layers: usize) -> Result<()> {
        if let Some(layer) = self.knockout_layers.iter().find(|layer| **layer >= layers) {
            let problem = format!("keys cannot be knocked out at layer {layer}: the run's model");
            return Err(Error::Request(format!("{problem} has {layers} layers")));
        }
        match self.budgets.iter().find(|budget| **budget < KeyOptions::LEAST_BUDGET) {
            None => Ok(()),
            Some(budget) => Err(Error::Request(format!(
                "a budget of {budget} keys is too small: expected at least {}",
                KeyOptions::LEAST_BUDGET
            ))),
        }
    }
}

impl Default for KeyOptions {
    fn default() -> KeyOptions {
        KeyOptions::DEFAULT
    }
}
