//! Models built into the library. Nothing is downloaded.

use std::fs;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};

pub use fathom_model::{SyntheticShape, write_synthetic};
pub use fathom_sinks::plant::{
    Mismatch, PlantOptions, PlantedDecoy, PlantedSequence, PlantedSink, PlantedTruth, plant,
};

/// The bytes of a file under `models/`.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../models/", $name)).as_slice()
    };
}
/// `models/draft` is the target of this pair; `models/draft-weak` is its draft.
const TARGET: [(&str, &[u8]); 3] = [
    ("config.json", fixture!("draft/config.json")),
    ("generation_config.json", fixture!("draft/generation_config.json")),
    ("model.safetensors", fixture!("draft/model.safetensors")),
];
const DRAFT: [(&str, &[u8]); 3] = [
    ("config.json", fixture!("draft-weak/config.json")),
    ("generation_config.json", fixture!("draft-weak/generation_config.json")),
    ("model.safetensors", fixture!("draft-weak/model.safetensors")),
];
/// Files that both models share.
const SHARED: [(&str, &[u8]); 3] = [
    ("tokenizer.json", fixture!("draft/tokenizer.json")),
    ("tokenizer_config.json", fixture!("draft/tokenizer_config.json")),
    ("chat_template.jinja", fixture!("draft/chat_template.jinja")),
];

/// Two small trained models with the same vocabulary: a target and a draft for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedPair {
    /// Directory of the target.
    pub target: PathBuf,
    /// Directory of the draft.
    pub draft: PathBuf,
}

/// Writes the built-in pair of trained models (4 MB) to `dir`, which is created if needed.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// let models = fathom_lm::demo::trained_pair(dir.path())?;
/// let target = fathom_lm::Model::load(models.target.display().to_string())?;
/// assert_eq!((target.config().layers, target.config().vocab), (2, 4096));
/// # Ok::<(), fathom_lm::Error>(())
/// ```
///
/// # Errors
/// The directory cannot be written.
pub fn trained_pair(dir: &Path) -> Result<TrainedPair> {
    let pair = TrainedPair { target: dir.join("target"), draft: dir.join("draft") };
    for (dir, own) in [(&pair.target, TARGET), (&pair.draft, DRAFT)] {
        fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
        for (name, bytes) in own.into_iter().chain(SHARED) {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(Error::io(&path, "cannot be written"))?;
        }
    }
    Ok(pair)
}
