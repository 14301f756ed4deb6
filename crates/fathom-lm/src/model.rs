//! Finding, opening and loading models.

use std::sync::Arc;

use fathom_backend::{Backend, Precision};
use fathom_kernels::{Cpu, CpuOptions, Isa};
use fathom_model::{Encoded, LoadProgress, ModelConfig, PromptOptions, Remark, Result};

use crate::cpu::{Weights, cpu};
use crate::source::ModelSource;
use crate::text::{Input, TextFiles};

/// Which model to load, and how; see [`Model::options`].
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use fathom_lm::{Model, Precision};
///
/// fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// let model = Model::options(dir.path().display().to_string())
///     .named("planted")        // what tables and runs call it
///     .precision(Precision::Bf16)
///     .threads(1)
///     .chat_template(false)    // prompts are bare text
///     .load()?;
/// assert_eq!(model.name(), "planted");
/// assert!(model.files().text().template.is_none());
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelOptions {
    model: String,
    name: Option<String>,
    adapter: Option<String>,
    chat_template: bool,
    ids_only: bool,
    prompts: PromptOptions,
    cpu: CpuOptions,
}

impl ModelOptions {
    /// Options for a checkpoint directory or a hub id in the HuggingFace cache.
    pub fn new(model: impl Into<String>) -> ModelOptions {
        ModelOptions {
            model: model.into(),
            name: None,
            adapter: None,
            chat_template: true,
            ids_only: false,
            prompts: PromptOptions::default(),
            cpu: CpuOptions::default(),
        }
    }

    /// The name of the model in tables and runs. Default: the directory or hub id.
    pub fn named(self, name: impl Into<String>) -> ModelOptions {
        ModelOptions { name: Some(name.into()), ..self }
    }

    /// Merges a LoRA adapter in PEFT format: a directory, or a hub id in the cache.
    pub fn adapter(self, adapter: impl Into<String>) -> ModelOptions {
        ModelOptions { adapter: Some(adapter.into()), ..self }
    }

    /// Whether prompts are formatted with the checkpoint's chat template, if it has one. Default:
    /// `true`.
    pub fn chat_template(self, chat_template: bool) -> ModelOptions {
        ModelOptions { chat_template, ..self }
    }

    /// How prompts are formatted: system message, template variables, date, BOS.
    pub fn prompt_options(self, prompts: PromptOptions) -> ModelOptions {
        ModelOptions { prompts, ..self }
    }

    /// Reads neither tokenizer nor chat template. Inputs must then be token ids.
    pub fn ids_only(self) -> ModelOptions {
        ModelOptions { ids_only: true, ..self }
    }

    /// The precision of matrix product operands, keys and values. Default: `f32`.
    pub fn precision(self, precision: Precision) -> ModelOptions {
        ModelOptions { cpu: CpuOptions { precision, ..self.cpu }, ..self }
    }

    /// The number of threads. Default: one per CPU this process may use.
    pub fn threads(self, threads: usize) -> ModelOptions {
        ModelOptions { cpu: CpuOptions { threads: Some(threads), ..self.cpu }, ..self }
    }

    /// The instruction set of the kernels. Default: the best this machine supports.
    pub fn isa(self, isa: Isa) -> ModelOptions {
        ModelOptions { cpu: CpuOptions { isa: Some(isa), ..self.cpu }, ..self }
    }

    /// Sets precision, threads and instruction set together.
    pub fn cpu(self, cpu: CpuOptions) -> ModelOptions {
        ModelOptions { cpu, ..self }
    }

    /// Reads all files but the weights, and checks that the weights exist and match the config. All
    /// remarks are known before the weights are packed, which is slow.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let planted = dir.path().display().to_string();
    /// use fathom_lm::{Model, Preset, ScanOptions, Traces};
    ///
    /// fathom_lm::demo::plant(dir.path(), &Default::default())?;
    /// let files = Model::options(planted).open()?;
    /// let traces = Traces::read(dir.path().join("traces.jsonl"), &files)?;
    /// // A strict caller can stop here, before the weights are packed.
    /// let remarks = files.scan_remarks(&traces, &ScanOptions::new(Preset::Paper))?;
    /// assert!(remarks.is_empty() && files.remarks().is_empty());
    ///
    /// let mut layers = 0;
    /// let model = files.load_with(&mut |done, _| layers = done)?;
    /// assert_eq!(layers, model.config().layers);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// A model or an adapter that is not found; unusable files.
    pub fn open(self) -> Result<ModelFiles> {
        let mut source = ModelSource::find(&self.model, self.adapter.as_deref())?;
        if let Some(name) = &self.name {
            source.name = name.clone();
        }
        self.open_at(source)
    }

    /// As [`ModelOptions::open`], with known file locations.
    pub(crate) fn open_at(self, source: ModelSource) -> Result<ModelFiles> {
        let config = ModelConfig::from_dir(&source.dir)?;
        let text = match self.ids_only {
            true => TextFiles::default(),
            false => TextFiles::from_dir(&source.dir, !self.chat_template, self.prompts)?,
        };
        let mut remarks = source.remarks(&config)?;
        remarks.extend(text.remarks());
        Ok(ModelFiles { source, config, text, remarks, cpu: self.cpu })
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`ModelOptions::open`] and [`ModelFiles::load`].
    pub fn load(self) -> Result<Model> {
        self.open()?.load()
    }
}

/// A model's files, read and checked, without the weights.
pub struct ModelFiles {
    source: ModelSource,
    config: ModelConfig,
    text: TextFiles,
    remarks: Vec<Remark>,
    cpu: CpuOptions,
}

impl ModelFiles {
    /// Where the files are.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// The name of the model in tables.
    pub fn name(&self) -> String {
        self.source.display_name()
    }

    /// The config, every default filled in.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &TextFiles {
        &self.text
    }

    /// Remarks: what was ignored, repaired or is doubtful in the files.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The CPU options that the model will run with.
    pub fn cpu(&self) -> CpuOptions {
        self.cpu
    }

    /// The precision's name in runs: `f32` or `bf16`.
    pub fn precision(&self) -> &'static str {
        self.cpu.precision.name()
    }

    /// As [`Model::encode`].
    ///
    /// # Errors
    /// As [`Model::encode`].
    pub fn encode(&self, input: impl Into<Input>) -> Result<Encoded> {
        self.text.encode(input, self.config.vocab)
    }

    /// As [`Model::decode`].
    ///
    /// # Errors
    /// As [`Model::decode`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.text.decode(ids)
    }

    /// Loads and packs the weights.
    ///
    /// # Errors
    /// Unusable weights; CPU options that this machine does not support.
    pub fn load(self) -> Result<Model> {
        self.load_with(&mut |_, _| {})
    }

    /// As [`ModelFiles::load`], calling `progress(layers done, layers)` after each layer.
    ///
    /// # Errors
    /// As [`ModelFiles::load`].
    pub fn load_with(self, progress: &mut dyn LoadProgress) -> Result<Model> {
        let weights = self.weights(cpu(self.cpu)?, progress)?;
        Ok(Model { files: Arc::new(self), weights: Arc::new(weights) })
    }

    /// Loads the weights alone, on a given CPU backend.
    ///
    /// # Errors
    /// Unusable weights.
    pub fn weights(&self, cpu: Cpu, progress: &mut dyn LoadProgress) -> Result<Weights> {
        Weights::load_adapted(&self.source.dir, self.source.adapter_dir(), cpu, progress)
    }
}

impl AsRef<ModelFiles> for ModelFiles {
    fn as_ref(&self) -> &ModelFiles {
        self
    }
}

/// A loaded model: weights, config, tokenizer and chat template. Clones share the weights. Several
/// threads may run one model at the same time.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use fathom_lm::{Message, Model};
///
/// fathom_lm::demo::plant(dir.path(), &Default::default())?; // or a HuggingFace checkpoint
/// let model = Model::load(dir.path().display().to_string())?;
/// assert_eq!(model.config().layers, 20);
/// assert!(model.remarks().is_empty(), "no problems were found in its files");
///
/// // Text is formatted with the model's chat template; the formatted text is in the result.
/// let encoded = model.encode("hello there")?;
/// let text = encoded.text.unwrap();
/// assert!(text.contains("hello there") && text != "hello there", "{text}");
/// assert_eq!(model.encode(vec![Message::user("hello there")])?.ids, encoded.ids);
/// assert_eq!(model.encode(&encoded.ids[..])?.ids, encoded.ids);
/// assert!(model.decode(&encoded.ids)?.contains("hello"));
///
/// // An error is one sentence.
/// let error = model.encode(vec![1, 1_000_000]).unwrap_err();
/// assert!(error.to_string().contains("token id 1000000 at position 1"), "{error}");
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone)]
pub struct Model {
    files: Arc<ModelFiles>,
    weights: Arc<Weights>,
}

impl Model {
    /// Loads a model in f32 on all CPUs. `model` is a HuggingFace checkpoint directory, or the hub
    /// id (`org/name`, `org/name@revision`) of one in the HuggingFace cache.
    ///
    /// # Errors
    /// A model that is not found; unusable files.
    pub fn load(model: impl Into<String>) -> Result<Model> {
        Model::options(model).load()
    }

    /// Options for loading a model; [`Model::load`] uses the defaults.
    pub fn options(model: impl Into<String>) -> ModelOptions {
        ModelOptions::new(model)
    }

    /// The name of the model in tables.
    pub fn name(&self) -> String {
        self.files.name()
    }

    /// The config, every default filled in: layers, heads, widths, vocabulary.
    pub fn config(&self) -> &ModelConfig {
        self.files.config()
    }

    /// Remarks: what was ignored, repaired or is doubtful in the model's files.
    pub fn remarks(&self) -> &[Remark] {
        self.files.remarks()
    }

    /// The model's files, without the weights.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    pub(crate) fn shared(&self) -> (Arc<ModelFiles>, Arc<Weights>) {
        (Arc::clone(&self.files), Arc::clone(&self.weights))
    }

    /// The weights, for direct use of sequences, batches and probes.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The backend and its kernels, as runs record them: `cpu avx512-bf16`. Different kernels agree
    /// up to rounding, not bit for bit.
    pub fn engine(&self) -> String {
        self.weights.backend().name()
    }

    /// The token ids of a text, a conversation or a list of ids, up to where the answer begins,
    /// with the text that the chat template rendered and remarks about it.
    ///
    /// # Errors
    /// No tokenizer for a text, or no chat template for messages; a template that fails; no tokens;
    /// two leading BOS; an id outside the vocabulary.
    pub fn encode(&self, input: impl Into<Input>) -> Result<Encoded> {
        self.files.encode(input)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// No tokenizer, or one that fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.files.decode(ids)
    }
}

impl AsRef<ModelFiles> for Model {
    fn as_ref(&self) -> &ModelFiles {
        &self.files
    }
}
