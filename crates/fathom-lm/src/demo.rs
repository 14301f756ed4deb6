//! Models that come with the library: nothing is downloaded.

use std::fs;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};

pub use fathom_model::{SyntheticShape, write_synthetic};
pub use fathom_sinks::plant::{
    Mismatch, PlantOptions, PlantedDecoy, PlantedSequence, PlantedSink, PlantedTruth, plant,
};

/// A file of the fixtures that the pair is made of.
macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../models/", $name)).as_slice()
    };
}
/// The files of the target, which is the fixtures' draft, and of the draft.
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
/// Those that are the same in both.
const SHARED: [(&str, &[u8]); 3] = [
    ("tokenizer.json", fixture!("draft/tokenizer.json")),
    ("tokenizer_config.json", fixture!("draft/tokenizer_config.json")),
    ("chat_template.jinja", fixture!("draft/chat_template.jinja")),
];

/// Two small models that were really trained on one vocabulary, the second to draft for the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedPair {
    /// Directory of the target.
    pub target: PathBuf,
    /// Directory of the draft.
    pub draft: PathBuf,
}

/// Writes the built-in pair of trained models (4 MB) to a directory, which is made where it is not
/// there.
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
/// A directory that cannot be written.
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
