//! `RUN/explain/`: one file per analysis.

use std::io;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Analysis;
use crate::run::durable;

/// Version of the files' layout.
const FORMAT: u32 = 1;

/// The result of an analysis, as it is stored.
pub trait AnalysisResult: Serialize + DeserializeOwned {
    /// The analysis.
    const ANALYSIS: Analysis;

    /// Whether it depends on [`ExplainOptions::keys`].
    const HIDES_KEYS: bool = false;
}

/// The file with the result of an analysis of the run in `run_dir`.
pub fn result_file(run_dir: &Path, analysis: Analysis) -> PathBuf {
    run_dir.join("explain").join(format!("{}.json", analysis.name()))
}

/// Limit and seed of the analyses. The same run with the same options gives the same results.
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
    pub const LEAST_BUDGET: usize = 2 * super::keys::CHUNK;

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

/// A result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored<T> {
    /// Version of the files' layout.
    pub format: u32,
    /// Version of Fathom.
    pub fathom: String,
    /// The analysis.
    pub analysis: Analysis,
    /// SHA-256 of the `detections.jsonl` it was computed from. The result is out of date if the
    /// run's differs.
    pub detections_sha256: String,
    /// The options it was made with.
    pub options: ExplainOptions,
    /// The result.
    pub result: T,
}

/// The stored result of an analysis of the run in `run_dir`; `None` if there is none.
///
/// # Errors
/// A file that cannot be read, is of another version, or is not such a result.
pub fn read<T: AnalysisResult>(run_dir: &Path) -> Result<Option<Stored<T>>> {
    let path = result_file(run_dir, T::ANALYSIS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&path, "cannot be read")(error)),
    };
    /// The field that every version has.
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let wrong = |error| {
        let name = T::ANALYSIS.name();
        Error::file(&path, format!("is not the result of `fathom explain --{name}`: {error}"))
    };
    let Head { format } = serde_json::from_str(&text).map_err(wrong)?;
    if format != FORMAT {
        let problem = format!("is {format}, but this version of Fathom reads {FORMAT}");
        return Err(Error::field(&path, "format", problem));
    }
    serde_json::from_str(&text).map(Some).map_err(wrong)
}

/// The stored results of one run, for one set of detections and options.
pub(super) struct ResultStore<'a> {
    /// The run's directory.
    pub run_dir: &'a Path,
    /// SHA-256 of its detections.
    pub detections_sha256: &'a str,
    /// Limit and seed of the analyses.
    pub options: ExplainOptions,
}

impl ResultStore<'_> {
    /// Stores a result, replacing an older one.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write<T: AnalysisResult>(&self, result: T) -> Result<()> {
        let path = result_file(self.run_dir, T::ANALYSIS);
        let stored = Stored {
            format: FORMAT,
            fathom: env!("CARGO_PKG_VERSION").to_owned(),
            analysis: T::ANALYSIS,
            detections_sha256: self.detections_sha256.to_owned(),
            options: self.options.of(T::HIDES_KEYS),
            result,
        };
        let dir = self.run_dir.join("explain");
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir, "cannot be created"))?;
        let text = serde_json::to_string(&stored)
            .map_err(|error| Error::file(&path, format!("cannot be written: {error}")))?;
        durable::replace_bytes(&path, format!("{text}\n").as_bytes())
    }

    /// Whether a stored result was computed by this version, from these detections, with these
    /// options.
    pub fn is_current<T: AnalysisResult>(&self) -> bool {
        read::<T>(self.run_dir).ok().flatten().is_some_and(|stored| {
            stored.fathom == env!("CARGO_PKG_VERSION")
                && stored.detections_sha256 == self.detections_sha256
                && stored.options == self.options.of(T::HIDES_KEYS)
        })
    }
}
