//! LoRA adapters in PEFT's format, merged into the weights as they are loaded.
//!
//! A merge computes what PEFT's `merge_and_unload` computes: W + scale · B·A in f32, rounded to the
//! weight's type (see `fathom_vector::LowRank` for the order of the sum). The tensors in the file
//! determine what is merged; low-rank tensors of a module that the config does not target are
//! skipped with a remark. The config determines ranks and scales.

mod base;
mod config;
mod found;
mod merge;
mod names;
mod pattern;
mod plan;
mod tokens;

use std::path::Path;

use sha2::{Digest, Sha256};

pub use base::adapted_name;
pub use config::AdapterConfig;
pub(crate) use found::FoundAdapter;
pub(crate) use merge::widen;
use plan::MergePlan;
pub(crate) use plan::TensorMerge;
pub use tokens::adapter_text_remarks;

use crate::file_check::exists;
use crate::text_file::read_text;
use crate::weights::Shard;
use crate::{Checkpoint, Error, ModelConfig, Remark, Result};

/// The configuration: which modules are adapted, ranks and scales.
const CONFIG: &str = "adapter_config.json";
/// The tensors.
const WEIGHTS: &str = "adapter_model.safetensors";
/// The tensors as older versions of PEFT saved them. A pickle can run arbitrary code.
const PICKLE: &str = "adapter_model.bin";

/// An adapter that was checked against a checkpoint.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Name of the model it was trained on, as its config states it.
    base: Option<String>,
    /// SHA-256 of the config's text.
    config_sha256: String,
    weights: Shard,
    plan: MergePlan,
}

impl Adapter {
    /// Opens the adapter in `dir` for a checkpoint. All checks of the adapter, including those of
    /// its values, happen here, before any of the checkpoint's weights are read.
    ///
    /// # Errors
    /// The directory has no adapter, or one that is unsupported, of another model, or damaged. The
    /// message names file and field or tensor.
    pub(crate) fn open(dir: &Path, base: &Checkpoint, model: &ModelConfig) -> Result<Adapter> {
        let config_path = dir.join(CONFIG);
        let Some(text) = read_text(&config_path)? else { return Err(no_adapter(dir)) };
        let config = AdapterConfig::parse(&config_path, &text)?;
        let path = dir.join(WEIGHTS);
        if !exists(&path)? {
            return Err(no_weights(dir, &path));
        }
        let weights = Shard::open(path)?;
        let plan = MergePlan::new(&config, &weights, base, model)?;
        let config_sha256 = format!("{:x}", Sha256::digest(text));
        let base = config.base().map(str::to_owned);
        Ok(Adapter { base, config_sha256, weights, plan })
    }

    /// Remarks about the adapter.
    pub(crate) fn remarks(&self) -> &[Remark] {
        &self.plan.remarks
    }

    /// A remark if the config names another base than the model called `name`.
    pub(crate) fn other_base(&self, name: &str) -> Option<Remark> {
        base::other_base(self.base.as_deref()?, name)
    }

    /// Whether merging turns an output head that was tied to the embedding into its own matrix.
    pub(crate) fn unties(&self) -> bool {
        self.plan.unties
    }

    /// The fingerprint of a checkpoint with this adapter, given that of the checkpoint alone.
    pub(crate) fn fingerprint(&self, base: &str) -> String {
        let mut sha = Sha256::new();
        sha.update(format!("{base}\n{}\n", self.config_sha256));
        sha.update(&self.weights.map[..]);
        self.weights.release();
        format!("sampled-sha256:{:x}", sha.finalize())
    }

    /// [`Checkpoint::release`] for the adapter's file.
    pub(crate) fn release(&self) {
        self.weights.release();
    }
}

fn no_adapter(dir: &Path) -> Error {
    if !dir.is_dir() {
        return Error::file(dir, "is not a directory, expected one of a LoRA adapter");
    }
    let model = match dir.join("config.json").is_file() {
        true => "; it holds a model, which needs no `--adapter`",
        false => "",
    };
    Error::file(dir, format!("holds no adapter: there is no {CONFIG}{model}"))
}

fn no_weights(dir: &Path, path: &Path) -> Error {
    match dir.join(PICKLE).is_file() {
        false => Error::file(path, "does not exist, expected the adapter's tensors"),
        true => Error::file(
            path,
            format!(
                "does not exist, and {PICKLE} is not read; convert it with \
                 `safetensors.torch.save_file(torch.load(\"{PICKLE}\"), \"{WEIGHTS}\")`"
            ),
        ),
    }
}
