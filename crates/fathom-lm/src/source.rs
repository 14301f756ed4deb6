//! Where a model's files are, with the adapter that is merged into it.

use std::path::{Path, PathBuf};

use fathom_model::{
    Checkpoint, Error, ModelConfig, Remark, Result, adapted_name, adapter_text_remarks,
    resolve_model_dir,
};

/// Where a model's files are.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// As the user calls it: a hub id, a directory, or another name.
    pub name: String,
    /// The checkpoint's directory.
    pub dir: PathBuf,
    /// The adapter that is merged into it.
    pub adapter: Option<AdapterSource>,
}

/// Where an adapter's files are.
#[derive(Clone, Debug)]
pub struct AdapterSource {
    /// As the user calls it.
    pub name: String,
    /// The adapter's directory.
    pub dir: PathBuf,
}

/// A directory, or a hub id in the HuggingFace cache, which the environment says where it is.
fn find(name: &str) -> Result<PathBuf> {
    resolve_model_dir(name, |variable| std::env::var_os(variable))
}

impl AdapterSource {
    /// Finds an adapter: a directory, or a hub id in the cache.
    ///
    /// # Errors
    /// It is neither.
    pub fn find(name: &str) -> Result<AdapterSource> {
        let dir = match Path::new(name).is_dir() {
            true => PathBuf::from(name),
            false => find(name).map_err(|error| Error::Request(format!("--adapter: {error}")))?,
        };
        Ok(AdapterSource { name: name.to_owned(), dir })
    }
}

impl ModelSource {
    /// Finds a model and, where one is named, its adapter.
    ///
    /// # Errors
    /// Neither a directory nor a model in the cache.
    pub fn find(name: &str, adapter: Option<&str>) -> Result<ModelSource> {
        let dir = find(name)?;
        let adapter = adapter.map(AdapterSource::find).transpose()?;
        Ok(ModelSource { name: name.to_owned(), dir, adapter })
    }

    /// What tables call it: its name and, after a plus, the adapter's last part.
    pub fn called(&self) -> String {
        let adapter = self.adapter.as_ref().map(|adapter| adapter.name.as_str());
        adapted_name(&self.name, adapter)
    }

    pub(crate) fn adapter_dir(&self) -> Option<&Path> {
        self.adapter.as_ref().map(|adapter| adapter.dir.as_path())
    }

    /// Its weights, mapped and checked, with the adapter merged into those that are read.
    ///
    /// # Errors
    /// Weights that cannot be read; an adapter that does not fit them.
    pub fn checkpoint(&self, config: &ModelConfig) -> Result<Checkpoint> {
        Checkpoint::open_adapted(&self.dir, self.adapter_dir(), config)
    }

    /// What is remarkable about its config, weights and adapter.
    ///
    /// # Errors
    /// Weights that cannot be read, or that lack what the config asks for; an adapter that does not
    /// fit.
    pub fn remarks(&self, config: &ModelConfig) -> Result<Vec<Remark>> {
        let checkpoint = self.checkpoint(config)?;
        let mut remarks = config.remarks.clone();
        if let Some(adapter) = self.adapter_dir() {
            let real = |dir: &Path| dir.canonicalize().ok();
            if real(adapter) == real(&self.dir) {
                remarks.retain(|remark| remark.kind != "adapter"); // that it is not applied
            } else {
                remarks.extend(adapter_text_remarks(adapter, &self.dir));
            }
        }
        remarks.extend(checkpoint.remarks(config)?);
        remarks.extend(checkpoint.other_base(&self.name));
        Ok(remarks)
    }
}
