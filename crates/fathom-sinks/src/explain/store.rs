//! `RUN/explain/`: one file per analysis.

use std::io;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::run::durable;

/// Version of the files' layout.
const FORMAT: u32 = 1;

/// An analysis of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Analysis {
    /// [`crate::explain::Stages`]
    Stages,
    /// [`crate::explain::Pca`]
    Pca,
    /// [`crate::explain::Clusters`]
    Clusters,
    /// [`crate::explain::Swap`]
    Swap,
    /// [`crate::explain::Effect`]
    Effect,
    /// [`crate::explain::Entropy`]
    Entropy,
    /// [`crate::explain::Suppress`]
    Suppress,
    /// [`crate::explain::Neurons`]
    Neurons,
}

impl Analysis {
    /// All analyses.
    pub const ALL: [Analysis; 8] = [
        Analysis::Stages,
        Analysis::Pca,
        Analysis::Clusters,
        Analysis::Swap,
        Analysis::Effect,
        Analysis::Entropy,
        Analysis::Suppress,
        Analysis::Neurons,
    ];

    /// Its name: that of its file, and of its flag on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Analysis::Stages => "stages",
            Analysis::Pca => "pca",
            Analysis::Clusters => "clusters",
            Analysis::Swap => "swap",
            Analysis::Effect => "effect",
            Analysis::Entropy => "entropy",
            Analysis::Suppress => "suppress",
            Analysis::Neurons => "neurons",
        }
    }
}

/// A result that is stored.
pub trait AnalysisResult: Serialize + DeserializeOwned {
    /// Which analysis it is the result of.
    const ANALYSIS: Analysis;
}

/// Where the result of an analysis of the run in `run_dir` lies.
pub fn result_file(run_dir: &Path, analysis: Analysis) -> PathBuf {
    run_dir.join("explain").join(format!("{}.json", analysis.name()))
}

/// What bounds and seeds the analyses. With the same options the same run gives the same results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainOptions {
    /// Seed of every choice among tokens, and of t-SNE.
    pub seed: u64,
    /// At most so many sinks are looked at where an analysis keeps vectors or runs the model per
    /// sink.
    pub max_sinks: usize,
}

/// A result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored<T> {
    /// Version of the files' layout.
    pub format: u32,
    /// Version of Fathom.
    pub fathom: String,
    /// Which analysis it is.
    pub analysis: Analysis,
    /// SHA-256 of the run's `detections.jsonl`: a result of other detections is out of date.
    pub detections_sha256: String,
    /// What it was asked with.
    pub options: ExplainOptions,
    /// The result.
    pub result: T,
}

/// The stored result of an analysis of the run in `run_dir`; `None` where there is none.
///
/// # Errors
/// A file that cannot be read, is of another version, or is no such result.
pub fn read<T: AnalysisResult>(run_dir: &Path) -> Result<Option<Stored<T>>> {
    let path = result_file(run_dir, T::ANALYSIS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&path, "cannot be read")(error)),
    };
    /// What every version has.
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

/// Stores a result, in place of an older one.
pub(super) fn write<T: AnalysisResult>(
    run_dir: &Path,
    detections_sha256: &str,
    options: ExplainOptions,
    result: T,
) -> Result<()> {
    let path = result_file(run_dir, T::ANALYSIS);
    let stored = Stored {
        format: FORMAT,
        fathom: env!("CARGO_PKG_VERSION").to_owned(),
        analysis: T::ANALYSIS,
        detections_sha256: detections_sha256.to_owned(),
        options,
        result,
    };
    let dir = run_dir.join("explain");
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir, "cannot be created"))?;
    let text = serde_json::to_string(&stored)
        .map_err(|error| Error::file(&path, format!("cannot be written: {error}")))?;
    durable::replace_bytes(&path, format!("{text}\n").as_bytes())
}

/// Whether the stored result is that of these detections and options, by this version.
pub(super) fn is_current<T: AnalysisResult>(
    run_dir: &Path,
    detections_sha256: &str,
    options: ExplainOptions,
) -> bool {
    read::<T>(run_dir).ok().flatten().is_some_and(|stored| {
        stored.fathom == env!("CARGO_PKG_VERSION")
            && stored.detections_sha256 == detections_sha256
            && stored.options == options
    })
}
