//! LoRA adapters in PEFT's format, merged into the weights as they are loaded.
//!
//! A merge gives what PEFT's `merge_and_unload` gives: W + scale · B·A in f32, rounded to the
//! weight's type (see `fathom_vector::LowRank` for the order of the sum). Which tensors are in the
//! file decides what is merged; the config says by which factor, and must name their modules as
//! PEFT's does.

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
pub(crate) use plan::Merge;
use plan::Plan;
pub use tokens::adapter_text_remarks;

use crate::file_check::exists;
use crate::text_file::read_text;
use crate::weights::Shard;
use crate::{Checkpoint, Error, ModelConfig, Remark, Result};

/// What to merge, and how.
const CONFIG: &str = "adapter_config.json";
/// The tensors.
const WEIGHTS: &str = "adapter_model.safetensors";
/// The tensors as older versions of PEFT saved them: a pickle, which is a program.
const PICKLE: &str = "adapter_model.bin";

/// An adapter that fits a checkpoint.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// What the config calls the model it was trained on.
    base: Option<String>,
    /// SHA-256 of the config's text.
    config_sha256: String,
    weights: Shard,
    plan: Plan,
}

impl Adapter {
    /// Opens the adapter in `dir` for a checkpoint. Everything about it is checked here, its values
    /// included, before any of the checkpoint's weights are touched.
    ///
    /// # Errors
    /// A directory without an adapter, or with one that is of another kind, of another model, or
    /// damaged; the message names file and field or tensor.
    pub(crate) fn open(dir: &Path, base: &Checkpoint, model: &ModelConfig) -> Result<Adapter> {
        let config_path = dir.join(CONFIG);
        let Some(text) = read_text(&config_path)? else { return Err(no_adapter(dir)) };
        let config = AdapterConfig::parse(&config_path, &text)?;
        let path = dir.join(WEIGHTS);
        if !exists(&path)? {
            return Err(no_weights(dir, &path));
        }
        let weights = Shard::open(path)?;
        let plan = Plan::new(&config, &weights, base, model)?;
        let config_sha256 = format!("{:x}", Sha256::digest(text));
        let base = config.base().map(str::to_owned);
        Ok(Adapter { base, config_sha256, weights, plan })
    }

    /// What a user should know about it.
    pub(crate) fn remarks(&self) -> &[Remark] {
        &self.plan.remarks
    }

    /// A remark where the config names another base than a model called `name`.
    pub(crate) fn other_base(&self, name: &str) -> Option<Remark> {
        base::other_base(self.base.as_deref()?, name)
    }

    /// Whether an output head that was the embedding is a matrix of its own now.
    pub(crate) fn unties(&self) -> bool {
        self.plan.unties
    }

    /// A fingerprint of a checkpoint with this adapter, given that of the checkpoint alone.
    pub(crate) fn fingerprint(&self, base: &str) -> String {
        let mut sha = Sha256::new();
        sha.update(format!("{base}\n{}\n", self.config_sha256));
        sha.update(&self.weights.map[..]);
        self.weights.release();
        format!("sampled-sha256:{:x}", sha.finalize())
    }

    /// [`Checkpoint::release`] of the adapter's file.
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
