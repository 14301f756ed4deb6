//! A model, from a name to something that can be run.

use std::sync::Arc;

use fathom_backend::{Backend, Precision};
use fathom_kernels::{Cpu, CpuOptions, Isa};
use fathom_model::{Encoded, LoadProgress, ModelConfig, PromptOptions, Remark, Result};

use crate::cpu::{Weights, cpu};
use crate::source::ModelSource;
use crate::text::{Input, TextFiles};

/// Which model to load, and how. Made by [`Model::options`].
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
    /// Of the checkpoint in a directory, or of a hub id in the HuggingFace cache.
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

    /// What tables and runs call the model, where that is not what it is found by.
    pub fn named(self, name: impl Into<String>) -> ModelOptions {
        ModelOptions { name: Some(name.into()), ..self }
    }

    /// Merges a LoRA adapter in PEFT's format: a directory, or a hub id in the cache.
    pub fn adapter(self, adapter: impl Into<String>) -> ModelOptions {
        ModelOptions { adapter: Some(adapter.into()), ..self }
    }

    /// Whether prompts go through the checkpoint's chat template, where it has one; `true` unless
    /// said.
    pub fn chat_template(self, chat_template: bool) -> ModelOptions {
        ModelOptions { chat_template, ..self }
    }

    /// What is said about prompts beside the checkpoint's own files: a system message, template
    /// variables, the day, BOS.
    pub fn prompt_options(self, prompts: PromptOptions) -> ModelOptions {
        ModelOptions { prompts, ..self }
    }

    /// Reads neither tokenizer nor chat template: for those who give token ids.
    pub fn ids_only(self) -> ModelOptions {
        ModelOptions { ids_only: true, ..self }
    }

    /// Operands of matrix products, keys and values; `f32` unless said.
    pub fn precision(self, precision: Precision) -> ModelOptions {
        ModelOptions { cpu: CpuOptions { precision, ..self.cpu }, ..self }
    }

    /// Threads to compute with; one per CPU this process may use unless said.
    pub fn threads(self, threads: usize) -> ModelOptions {
        ModelOptions { cpu: CpuOptions { threads: Some(threads), ..self.cpu }, ..self }
    }

    /// Instruction set of the kernels; the best this machine runs unless said.
    pub fn isa(self, isa: Isa) -> ModelOptions {
        ModelOptions { cpu: CpuOptions { isa: Some(isa), ..self.cpu }, ..self }
    }

    /// Precision, threads and instruction set at once.
    pub fn cpu(self, cpu: CpuOptions) -> ModelOptions {
        ModelOptions { cpu, ..self }
    }

    /// Finds the files, reads all but the weights, and checks that the weights are there and fit:
    /// what is remarkable is known before the work of packing them.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let planted = dir.path().display().to_string();
    /// use fathom_lm::{Model, Preset, ScanOptions, Traces};
    ///
    /// fathom_lm::demo::plant(dir.path(), &Default::default())?;
    /// let files = Model::options(planted).open()?;
    /// let traces = Traces::read(dir.path().join("traces.jsonl"), &files)?;
    /// // Whoever minds remarks stops here, before the weights are packed.
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
    /// A model or an adapter that is not here; files that cannot be used.
    pub fn open(self) -> Result<ModelFiles> {
        let mut source = ModelSource::find(&self.model, self.adapter.as_deref())?;
        if let Some(name) = &self.name {
            source.name = name.clone();
        }
        self.open_at(source)
    }

    /// As [`ModelOptions::open`], with files that are found already.
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

/// A model's files, read and checked, but for the weights.
pub struct ModelFiles {
    source: ModelSource,
    config: ModelConfig,
    text: TextFiles,
    remarks: Vec<Remark>,
    cpu: CpuOptions,
}

impl ModelFiles {
    /// Where they are.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// What tables call the model.
    pub fn name(&self) -> String {
        self.source.called()
    }

    /// `config.json`, every default filled in.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &TextFiles {
        &self.text
    }

    /// What was ignored, repaired or is doubtful about them.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// How the model is to be run.
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

    /// Packs the weights.
    ///
    /// # Errors
    /// Weights that cannot be read or used; a CPU that lacks what was asked of it.
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

    /// The weights alone, on a CPU that is set up already.
    ///
    /// # Errors
    /// Weights that cannot be read or used.
    pub fn weights(&self, cpu: Cpu, progress: &mut dyn LoadProgress) -> Result<Weights> {
        Weights::load_adapted(&self.source.dir, self.source.adapter_dir(), cpu, progress)
    }
}

impl AsRef<ModelFiles> for ModelFiles {
    fn as_ref(&self) -> &ModelFiles {
        self
    }
}

/// A model, ready to run: weights, config, tokenizer and chat template. A clone is the same model,
/// and costs nothing; several threads may run one at the same time.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use fathom_lm::{Message, Model};
///
/// fathom_lm::demo::plant(dir.path(), &Default::default())?; // or a HuggingFace checkpoint
/// let model = Model::load(dir.path().display().to_string())?;
/// assert_eq!(model.config().layers, 20);
/// assert!(model.remarks().is_empty(), "nothing is doubtful about its files");
///
/// // Text goes through the model's own chat template, which is not hidden.
/// let encoded = model.encode("hello there")?;
/// let text = encoded.text.unwrap();
/// assert!(text.contains("hello there") && text != "hello there", "{text}");
/// assert_eq!(model.encode(vec![Message::user("hello there")])?.ids, encoded.ids);
/// assert_eq!(model.encode(&encoded.ids[..])?.ids, encoded.ids);
/// assert!(model.decode(&encoded.ids)?.contains("hello"));
///
/// // What cannot be used is one sentence.
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
    /// Loads a model in f32 on all CPUs: a HuggingFace checkpoint directory, or the hub id
    /// (`org/name`, `org/name@revision`) of one in the HuggingFace cache.
    ///
    /// # Errors
    /// A model that is not here; files that cannot be used.
    pub fn load(model: impl Into<String>) -> Result<Model> {
        Model::options(model).load()
    }

    /// As [`Model::load`], with more to say.
    pub fn options(model: impl Into<String>) -> ModelOptions {
        ModelOptions::new(model)
    }

    /// What tables call it.
    pub fn name(&self) -> String {
        self.files.name()
    }

    /// `config.json`, every default filled in: layers, heads, widths, vocabulary.
    pub fn config(&self) -> &ModelConfig {
        self.files.config()
    }

    /// What was ignored, repaired or is doubtful about the model's files.
    pub fn remarks(&self) -> &[Remark] {
        self.files.remarks()
    }

    /// Everything but the weights.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    pub(crate) fn shared(&self) -> (Arc<ModelFiles>, Arc<Weights>) {
        (Arc::clone(&self.files), Arc::clone(&self.weights))
    }

    /// The weights: for sequences, batches and probes of one's own.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Which kernels it computes with, as runs record it: `cpu avx512-bf16`. Results of different
    /// ones agree, but not in every bit.
    pub fn engine(&self) -> String {
        self.weights.backend().name()
    }

    /// The ids of a text, a conversation or a list of ids, up to where the answer begins: with what
    /// the chat template made of it, and what was remarkable about that.
    ///
    /// # Errors
    /// No tokenizer for a text, or no chat template for messages; a template that fails; no tokens
    /// at all; two leading BOS; an id outside the vocabulary.
    pub fn encode(&self, input: impl Into<Input>) -> Result<Encoded> {
        self.files.encode(input)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// No tokenizer, or one that cannot.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.files.decode(ids)
    }
}

impl AsRef<ModelFiles> for Model {
    fn as_ref(&self) -> &ModelFiles {
        &self.files
    }
}
