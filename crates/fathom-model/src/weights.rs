//! The weights of a checkpoint: memory-mapped safetensors files, validated before use.

mod header;
mod index;
mod layout;
mod matrix;
mod naming;
mod remarks;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fathom_backend::{DType, WeightView};
use fathom_vector::first_non_finite;
use memmap2::Mmap;

use crate::adapter::{Adapter, FoundAdapter, TensorMerge, widen};
use crate::file_check::{check_file, exists};
use crate::sanitize::sanitize;
use crate::text_file::read_text;
use crate::{Error, ModelConfig, Remark, Result};

pub use header::{TensorInfo, parse_header};
pub use index::parse_index;
pub(crate) use layout::{LayerTensors, ModelTensors, ProjectionSpec, VectorSpec};
pub use matrix::Matrix;
use naming::Naming;

/// The file that holds all the weights of an unsharded checkpoint.
const SINGLE: &str = "model.safetensors";
/// The file that maps tensors to shards.
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a checkpoint directory, memory-mapped.
///
/// Opening checks headers and index, so every tensor is known to be inside its file. Values are
/// checked when they are read.
#[derive(Debug)]
pub struct Checkpoint {
    /// Sorted by name.
    pub(crate) shards: Vec<Shard>,
    /// Index of the shard and index into its `tensors`, by name.
    tensors: HashMap<String, (usize, usize)>,
    naming: Naming,
    /// The file that lists the tensors: `SINGLE` or `INDEX`.
    origin: PathBuf,
    /// Remarks about the files, collected when they were opened.
    remarks: Vec<Remark>,
    /// The adapter to merge into the weights.
    adapter: Option<Adapter>,
}

/// One mapped safetensors file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    pub map: Mmap,
    /// Sorted by position in the file.
    pub tensors: Vec<TensorInfo>,
}

/// One tensor of a [`Checkpoint`], borrowed from the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Element type.
    pub dtype: DType,
    /// Row-major little-endian elements, not necessarily aligned.
    pub bytes: &'a [u8],
    /// The file that contains it, for messages.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or else the shards that `model.safetensors.index.json` names, and
    /// checks their headers.
    ///
    /// # Errors
    /// Neither exists, or one of the files cannot be read or is invalid.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let single = dir.join(SINGLE);
        if exists(&single)? {
            return Checkpoint::single(dir, single);
        }
        let index = dir.join(INDEX);
        match read_text(&index)? {
            Some(text) => Checkpoint::sharded(dir, index, &text),
            None => Err(no_weights(dir)),
        }
    }

    /// As [`Checkpoint::open`], with the LoRA adapter in the directory `adapter`, if given, in
    /// PEFT's format. Matrices, vectors and the fingerprint are then those of the merged model.
    /// Tensors are merged one at a time, when they are read.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; with an adapter also as [`Checkpoint::check`], and an unsupported
    /// or damaged adapter or one of another model.
    pub fn open_adapted(
        dir: &Path,
        adapter: Option<&Path>,
        config: &ModelConfig,
    ) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::open(dir)?;
        if let Some(adapter) = adapter {
            checkpoint.check(config)?;
            checkpoint.adapter = Some(Adapter::open(adapter, &checkpoint, config)?);
        }
        Ok(checkpoint)
    }

    fn single(dir: &Path, path: PathBuf) -> Result<Checkpoint> {
        let shard = Shard::open(path.clone())?;
        let names =
            shard.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), (0, i)));
        let tensors = names.collect();
        Ok(Checkpoint::new(path, vec![shard], tensors, remarks::next_to_single(dir)))
    }

    fn sharded(dir: &Path, index: PathBuf, text: &str) -> Result<Checkpoint> {
        let weight_map = parse_index(&index, text)?;
        let mut names: Vec<&str> = weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();

        let mut shards = Vec::with_capacity(names.len());
        let mut places = Vec::with_capacity(names.len()); // per shard: index by tensor name
        for &name in &names {
            let path = dir.join(name);
            if !exists(&path)? {
                return Err(Error::file(
                    &path,
                    format!("does not exist, although {INDEX} names it"),
                ));
            }
            let shard = Shard::open(path)?;
            let place =
                shard.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i));
            places.push(place.collect::<HashMap<String, usize>>());
            shards.push(shard);
        }

        let mut tensors = HashMap::with_capacity(weight_map.len());
        for (tensor, name) in &weight_map {
            let found = names.binary_search(&name.as_str()).ok();
            let place = found.and_then(|shard| Some((shard, *places[shard].get(tensor)?)));
            let Some(place) = place else {
                let problem = format!("is missing, although {INDEX} places it there");
                return Err(Error::tensor(&dir.join(name), sanitize(tensor), problem));
            };
            tensors.insert(tensor.clone(), place);
        }
        let unnamed = remarks::unnamed(dir, |name| names.binary_search(&name).is_ok());
        Ok(Checkpoint::new(index, shards, tensors, unnamed.into_iter().collect()))
    }

    fn new(
        origin: PathBuf,
        shards: Vec<Shard>,
        tensors: HashMap<String, (usize, usize)>,
        mut remarks: Vec<Remark>,
    ) -> Checkpoint {
        let naming = Naming::of(tensors.keys().map(String::as_str));
        if !naming.prefix.is_empty() {
            let prefix = sanitize(&naming.prefix);
            let text = format!("all tensor names begin with `{prefix}`, which is removed");
            remarks.push(Remark::file("tensor-prefix", &origin, text));
        }
        Checkpoint { shards, tensors, naming, origin, remarks, adapter: None }
    }

    /// Whether there is a tensor with this HuggingFace name.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor with this HuggingFace name, as stored in the files. It is found even if the
    /// checkpoint's names lack the leading `model.` or all have an additional prefix.
    ///
    /// # Errors
    /// There is no such tensor, or its elements are not BF16, F16 or F32.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((shard, tensor)) = self.find(name) else {
            return Err(self.missing(name));
        };
        let Some(dtype) = tensor.weight_dtype() else {
            let problem = format!("is of dtype {}, expected BF16, F16 or F32", tensor.dtype);
            return Err(Error::tensor(&shard.path, name, problem));
        };
        let bytes = &shard.map[tensor.range.clone()];
        Ok(TensorView { shape: &tensor.shape, dtype, bytes, file: &shard.path })
    }

    /// A weight matrix of exactly this shape, every element finite.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`]; another shape, or an element that is NaN or infinite.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix<'_>> {
        self.rows(name, 0..rows, rows, columns)
    }

    /// Some rows of a weight matrix of `total_rows`, every element finite.
    pub(crate) fn rows(
        &self,
        name: &str,
        rows: Range<usize>,
        total_rows: usize,
        columns: usize,
    ) -> Result<Matrix<'_>> {
        let merge = self.merge(name);
        let stored = merge.map_or(name, |(_, merge)| &merge.base);
        let TensorView { dtype, bytes, file, .. } = self.shaped(stored, &[total_rows, columns])?;
        let part = WeightView { bytes, dtype, rows: total_rows, columns }.slice_rows(rows.clone());
        if let Some((row, column)) = first_non_finite(part) {
            return Err(not_finite(file, stored, &[rows.start + row, column]));
        }
        let Some((adapter, merge)) = merge else { return Ok(Matrix::stored(part)) };
        let merged = Matrix::merged(adapter.merged_rows(merge, part, rows.clone()), part);
        match first_non_finite(merged.view()) {
            None => Ok(merged),
            Some((row, column)) => Err(too_large(file, name, &[rows.start + row, column], dtype)),
        }
    }

    /// A vector of exactly this length, widened to f32, every element finite.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let TensorView { dtype, bytes, file, .. } = self.shaped(name, &[len])?;
        if let Some((_, i)) = first_non_finite(WeightView { bytes, dtype, rows: 1, columns: len }) {
            return Err(not_finite(file, name, &[i]));
        }
        let values = widen(bytes, dtype);
        let Some((adapter, merge)) = self.merge(name) else { return Ok(values) };
        let merged = adapter.merged_vector(merge, values, dtype);
        match merged.iter().position(|value| !value.is_finite()) {
            None => Ok(merged),
            Some(i) => Err(too_large(file, name, &[i], dtype)),
        }
    }

    /// How the adapter changes a tensor.
    fn merge(&self, name: &str) -> Option<(&Adapter, &TensorMerge)> {
        let adapter = self.adapter.as_ref()?;
        Some((adapter, adapter.merge(name)?))
    }

    /// Whether the output head is the embedding. As in HuggingFace, the config decides, except that
    /// an `lm_head.weight` that differs from the embedding is used.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn ties_word_embeddings(&self, config: &ModelConfig) -> Result<bool> {
        let unties = self.adapter.as_ref().is_some_and(Adapter::unties);
        Ok(!unties && self.files_tie_word_embeddings(config)?)
    }

    /// As [`Checkpoint::ties_word_embeddings`], without the adapter.
    fn files_tie_word_embeddings(&self, config: &ModelConfig) -> Result<bool> {
        let names = &config.architecture.facts().tensors;
        let (head, embed) =
            (format!("{}.weight", names.lm_head), format!("{}.weight", names.embed));
        if !config.tie_word_embeddings || !self.contains(&head) {
            return Ok(config.tie_word_embeddings);
        }
        let (head, embed) = (self.tensor(&head)?, self.tensor(&embed)?);
        Ok((head.dtype, head.shape, head.bytes) == (embed.dtype, embed.shape, embed.bytes))
    }

    /// Tells the operating system to drop the pages of the files that were read so far, so that
    /// packed copies and the files do not both occupy memory. Reading them again is correct but
    /// slower. Does nothing on systems without such a call.
    pub fn release(&self) {
        self.shards.iter().for_each(Shard::release);
        self.adapter.iter().for_each(Adapter::release);
    }

    /// The adapter to merge into the weights.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// A tensor of exactly this shape.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        let found = sanitize(&format!("{:?}", tensor.shape));
        let problem = format!("has shape {found}, expected {shape:?}");
        Err(Error::tensor(tensor.file, name, problem))
    }

    fn find(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let (shard, tensor) = self.place(name)?;
        let shard = &self.shards[shard];
        Some((shard, &shard.tensors[tensor]))
    }

    /// Index of the shard and index within it of the tensor with a HuggingFace name.
    fn place(&self, name: &str) -> Option<(usize, usize)> {
        self.naming.candidates(name).find_map(|name| self.tensors.get(&name).copied())
    }
}

fn not_finite(file: &Path, name: &str, place: &[usize]) -> Error {
    let problem = format!("is NaN or infinite at {place:?}, expected finite numbers");
    Error::tensor(file, name, problem)
}

fn too_large(file: &Path, name: &str, place: &[usize], dtype: DType) -> Error {
    let problem = format!("with the adapter is too large for {dtype:?} at {place:?}");
    Error::tensor(file, name, problem)
}

impl Shard {
    pub(crate) fn open(path: PathBuf) -> Result<Shard> {
        check_file(&path)?;
        let metadata = std::fs::metadata(&path).map_err(Error::io(&path, "cannot be read"))?;
        // Before opening: a pipe would wait for a writer.
        if !metadata.is_file() {
            return Err(Error::file(&path, "is not a regular file"));
        }
        let file = File::open(&path).map_err(Error::io(&path, "cannot be read"))?;
        if metadata.len() == 0 {
            return Err(Error::file(&path, "is empty, expected a safetensors file"));
        }
        // SAFETY: the mapping is read-only and outlives every slice borrowed from it. As with every
        // reader that maps a checkpoint, nobody may modify the file meanwhile; published files are
        // replaced, not rewritten. Truncating it would raise SIGBUS and rewriting it would change
        // weights; neither can reach outside the mapped range.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path, "cannot be mapped"))?;
        let tensors = parse_header(&path, &map)?;
        Ok(Shard { path, map, tensors })
    }

    /// [`Checkpoint::release`] for one file. It drops the pages of the whole file, because reading
    /// a few bytes can map a few megabytes.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the mapping is read-only and backed by a file, so dropped pages are read from
            // the file again and borrowed slices keep their contents. A failure changes nothing.
            let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

/// The error for a directory without weights, which may hold another format or an adapter.
fn no_weights(dir: &Path) -> Error {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return Error::io(dir, "cannot be read as a directory")(error),
    };
    match FoundAdapter::find(dir) {
        Ok(None) => {}
        Ok(Some(adapter)) => return adapter.refusal(),
        Err(error) => return error,
    }
    let mut others: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("bin" | "gguf" | "pt" | "pth" | "safetensors"))
        })
        .collect();
    others.sort_unstable();
    let instead = match others.first() {
        None => String::new(),
        Some(other) => format!("; `{other}` is not read, only safetensors of these names are"),
    };
    Error::file(dir, format!("has no weights, expected {SINGLE} or {INDEX}{instead}"))
}
