//! `RUN/explain/`: one file per analysis.

use std::io;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Analysis, ExplainOptions};
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
