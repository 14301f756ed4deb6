//! The locations of a model's files and of its adapter.

use std::path::{Path, PathBuf};

use fathom_model::{
    Checkpoint, Error, ModelConfig, Remark, Result, adapted_name, adapter_text_remarks,
    resolve_model_dir,
};

/// The location of a model's files.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// The name that the user gave: a hub id, a directory, or another name.
    pub name: String,
    /// The checkpoint's directory.
    pub dir: PathBuf,
    /// The adapter to merge into the weights.
    pub adapter: Option<AdapterSource>,
}

/// The location of an adapter's files.
#[derive(Clone, Debug)]
pub struct AdapterSource {
    /// The name that the user gave: a hub id or a directory.
    pub name: String,
    /// The adapter's directory.
    pub dir: PathBuf,
}

/// Resolves a directory or a hub id. The HuggingFace cache is found through the environment
/// (`HF_HUB_CACHE`, `HF_HOME`).
fn find(name: &str) -> Result<PathBuf> {
    resolve_model_dir(name, |variable| std::env::var_os(variable))
}

impl AdapterSource {
    /// Finds an adapter: a directory, or a hub id in the cache.
    ///
    /// # Errors
    /// `name` is neither a directory nor a hub id in the cache.
    pub fn find(name: &str) -> Result<AdapterSource> {
        let dir = match Path::new(name).is_dir() {
            true => PathBuf::from(name),
            false => find(name).map_err(|error| Error::Request(format!("adapter: {error}")))?,
        };
        Ok(AdapterSource { name: name.to_owned(), dir })
    }
}

impl ModelSource {
    /// Finds a model and its adapter, if one is named.
    ///
    /// # Errors
    /// A name that is neither a directory nor in the cache.
    pub fn find(name: &str, adapter: Option<&str>) -> Result<ModelSource> {
        let dir = find(name)?;
        let adapter = adapter.map(AdapterSource::find).transpose()?;
        Ok(ModelSource { name: name.to_owned(), dir, adapter })
    }

    /// The name in tables: the model's, with `+` and the last part of the adapter's name.
    pub fn display_name(&self) -> String {
        let adapter = self.adapter.as_ref().map(|adapter| adapter.name.as_str());
        adapted_name(&self.name, adapter)
    }

    pub(crate) fn adapter_dir(&self) -> Option<&Path> {
        self.adapter.as_ref().map(|adapter| adapter.dir.as_path())
    }

    /// Maps and checks the weights. The adapter is merged into each tensor when it is read.
    ///
    /// # Errors
    /// Weights that cannot be read; an adapter that does not match them.
    pub fn checkpoint(&self, config: &ModelConfig) -> Result<Checkpoint> {
        Checkpoint::open_adapted(&self.dir, self.adapter_dir(), config)
    }

    /// Remarks about the config, the weights and the adapter.
    ///
    /// # Errors
    /// Weights that cannot be read, or that lack a tensor of the config; an adapter that does not
    /// match them.
    pub fn remarks(&self, config: &ModelConfig) -> Result<Vec<Remark>> {
        let checkpoint = self.checkpoint(config)?;
        let mut remarks = config.remarks.clone();
        if let Some(adapter) = self.adapter_dir() {
            let real = |dir: &Path| dir.canonicalize().ok();
            if real(adapter) == real(&self.dir) {
                // The config's remark that this directory's adapter is not applied no longer holds.
                remarks.retain(|remark| remark.kind != "adapter");
            } else {
                remarks.extend(adapter_text_remarks(adapter, &self.dir));
            }
        }
        remarks.extend(checkpoint.remarks(config)?);
        remarks.extend(checkpoint.other_base(&self.name));
        Ok(remarks)
    }
}
