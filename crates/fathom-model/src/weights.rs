//! The weights of a checkpoint: memory-mapped safetensors, checked before they are believed.

use std::path::Path;

use fathom_kernels::{DType, WeightView};

use crate::{ModelConfig, Result};

/// The weights of a checkpoint directory, memory-mapped.
#[derive(Debug)]
pub struct Checkpoint {}

/// One tensor of a [`Checkpoint`], borrowed from the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Element type.
    pub dtype: DType,
    /// Row-major little-endian elements, not necessarily aligned.
    pub bytes: &'a [u8],
    /// The file it lies in, for messages.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names, and checks
    /// their headers.
    pub fn open(_dir: &Path) -> Result<Checkpoint> {
        todo!()
    }

    /// Whether there is a tensor of this HuggingFace name.
    pub fn contains(&self, _name: &str) -> bool {
        todo!()
    }

    /// The tensor of this HuggingFace name.
    pub fn tensor(&self, _name: &str) -> Result<TensorView<'_>> {
        todo!()
    }

    /// A weight matrix of exactly this shape, every element finite.
    pub fn matrix(&self, _name: &str, _rows: usize, _columns: usize) -> Result<WeightView<'_>> {
        todo!()
    }

    /// A vector of exactly this length, widened to f32, every element finite.
    pub fn vector(&self, _name: &str, _len: usize) -> Result<Vec<f32>> {
        todo!()
    }

    /// The output head `[vocab, hidden]`, which is the embedding when tied.
    pub fn lm_head(&self, _config: &ModelConfig) -> Result<WeightView<'_>> {
        todo!()
    }

    /// Tells the operating system that the pages under `bytes` (of a tensor of this checkpoint) are
    /// not needed any more; reading them again is correct, only slower.
    pub fn release(&self, _bytes: &[u8]) {
        todo!()
    }

    /// `sampled-sha256:…` of the weights.
    pub fn fingerprint(&self) -> String {
        todo!()
    }
}
