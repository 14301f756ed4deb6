//! A model: a checkpoint's weights, packed for a backend.

use std::path::Path;
use std::sync::Mutex;

use fathom_backend::{Backend, KeyMask, KvShape};

use crate::reference_rows::ReferenceRows;
use crate::weights::{LayerTensors, ModelTensors, ProjectionSpec, VectorSpec};
use crate::workspace::Workspace;
use crate::{Checkpoint, Error, LoadProgress, ModelConfig, Result, Sequence, SequenceOptions};

/// A decoder-only language model on a backend.
pub struct Transformer<B: Backend> {
    pub(crate) backend: B,
    pub(crate) config: ModelConfig,
    weights_fingerprint: String,
    pub(crate) embed: B::Linear, // [vocab, hidden]
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) final_norm: B::Vector,      // [hidden]
    pub(crate) lm_head: Option<B::Linear>, // [vocab, hidden]; None: tied to `embed`
    /// Memory of finished passes, to be reused.
    pub(crate) workspaces: Mutex<Vec<Workspace<B>>>,
}

/// One decoder layer.
pub(crate) struct Layer<B: Backend> {
    // attention
    pub attn_norm: B::Vector,      // [hidden]
    pub q: B::Linear,              // [heads · head_dim, hidden]
    pub k: B::Linear,              // [kv_heads · head_dim, hidden]
    pub v: B::Linear,              // [kv_heads · head_dim, hidden]
    pub q_norm: Option<B::Vector>, // [head_dim]
    pub k_norm: Option<B::Vector>, // [head_dim]
    pub o: B::Linear,              // [hidden, heads · head_dim]
    // MLP
    pub mlp_norm: B::Vector, // [hidden]
    pub gate: B::Linear,     // [intermediate, hidden]
    pub up: B::Linear,       // [intermediate, hidden]
    pub down: B::Linear,     // [hidden, intermediate]
}

impl<B: Backend> Transformer<B> {
    /// Loads a HuggingFace checkpoint directory.
    ///
    /// # Errors
    /// The config, a tensor or a value is invalid; the message names file and field or tensor.
    pub fn load(dir: &Path, backend: B) -> Result<Transformer<B>> {
        Transformer::load_with_progress(dir, backend, &mut |_, _| {})
    }

    /// As [`Transformer::load`], reporting to `progress`, which can also stop the loading.
    ///
    /// # Errors
    /// As [`Transformer::load`].
    pub fn load_with_progress(
        dir: &Path,
        backend: B,
        progress: &mut dyn LoadProgress,
    ) -> Result<Transformer<B>> {
        Transformer::load_adapted(dir, None, backend, progress)
    }

    /// As [`Transformer::load_with_progress`], with the LoRA adapter in the directory `adapter`, if
    /// given, merged into the weights one matrix at a time, as by PEFT's `merge_and_unload`.
    ///
    /// # Errors
    /// As [`Transformer::load`] and [`Checkpoint::open_adapted`].
    pub fn load_adapted(
        dir: &Path,
        adapter: Option<&Path>,
        backend: B,
        progress: &mut dyn LoadProgress,
    ) -> Result<Transformer<B>> {
        let config = ModelConfig::from_dir(dir)?;
        let checkpoint = Checkpoint::open_adapted(dir, adapter, &config)?;
        checkpoint.check(&config)?;
        let tensors = ModelTensors::of(&config);
        let mut packer = Packer { backend: &backend, checkpoint: &checkpoint, progress };

        let embed = packer.linear(&tensors.embed)?;
        let final_norm = packer.vector(&tensors.final_norm)?;
        let lm_head = match checkpoint.ties_word_embeddings(&config)? {
            true => None,
            false => Some(packer.linear(&tensors.lm_head)?),
        };
        let mut layers = Vec::with_capacity(config.layers);
        for layer in &tensors.layers {
            layers.push(packer.layer(layer)?);
            packer.progress.layer(layers.len(), config.layers);
        }
        let weights_fingerprint = checkpoint.fingerprint();
        Ok(Transformer {
            backend,
            config,
            weights_fingerprint,
            embed,
            layers,
            final_norm,
            lm_head,
            workspaces: Mutex::default(),
        })
    }

    /// The model's config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// [`Checkpoint::fingerprint`] of the weights.
    pub fn weights_fingerprint(&self) -> &str {
        &self.weights_fingerprint
    }

    /// The backend that holds the weights and runs the passes.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Size in bytes of the weight matrices that a pass with logits reads, for any number of rows:
    /// those of all layers and of the output head.
    pub fn bytes_read(&self) -> usize {
        let bytes = |linear: &B::Linear| self.backend.linear_bytes(linear);
        let layer = |layer: &Layer<B>| {
            let Layer { q, k, v, o, gate, up, down, .. } = layer;
            [q, k, v, o, gate, up, down].map(bytes).iter().sum::<usize>()
        };
        let head = bytes(self.lm_head.as_ref().unwrap_or(&self.embed));
        self.layers.iter().map(layer).sum::<usize>() + head
    }

    /// An empty sequence.
    pub fn new_sequence(&self, options: SequenceOptions) -> Sequence<B> {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        let layers = self.config.layers.min(options.layers.unwrap_or(usize::MAX));
        Sequence {
            tokens: Vec::new(),
            kv: self.backend.new_kv(KvShape { layers, kv_heads, head_dim }),
            column_sums: options
                .sink_scores
                .then(|| self.backend.new_column_sums(layers, heads, options.attention_entropy)),
            attention_entropy: options.attention_entropy,
            key_mask: KeyMask::default(),
            planned_len: options.planned_len,
            layers,
            regime: None,
            reference_rows: ReferenceRows::new(),
        }
    }

    /// Truncates a sequence to its first `len` tokens. Does nothing if the sequence is not longer.
    ///
    /// # Errors
    /// The sequence accumulates sink scores, which cannot be undone.
    pub fn truncate(&self, sequence: &mut Sequence<B>, len: usize) -> Result<()> {
        if len >= sequence.len() {
            return Ok(());
        }
        if sequence.column_sums.is_some() {
            let message = "a sequence that accumulates sink scores cannot be truncated";
            return Err(Error::Request(message.to_owned()));
        }
        sequence.tokens.truncate(len);
        self.backend.truncate_kv(&mut sequence.kv, len);
        sequence.reference_rows.truncate(len);
        Ok(())
    }

    /// Sink scores of one layer, `[heads, T]`: for each position k, the mean over t = k..=T-1 of
    /// the attention weight from t to k. Sink score (docs/definitions.md). `None` unless
    /// [`SequenceOptions::sink_scores`] was set, and for layers that the sequence does not compute.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn sink_score(&self, sequence: &Sequence<B>, layer: usize) -> Result<Option<Vec<f32>>> {
        let Some(sums) = self.attention_received(sequence, layer)? else { return Ok(None) };
        let tokens = sequence.len();
        let mean = |(i, sum)| (sum / (tokens - i % tokens) as f64) as f32;
        Ok(Some(sums.into_iter().enumerate().map(mean).collect()))
    }

    /// The entropy in nats of the attention of a position at one layer, by head `[heads]`: the mean
    /// over all positions so far. `None` unless [`SequenceOptions::attention_entropy`] was set, and
    /// where [`Transformer::sink_score`] is `None`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn attention_entropy(
        &self,
        sequence: &Sequence<B>,
        layer: usize,
    ) -> Result<Option<Vec<f64>>> {
        let wanted = sequence.attention_entropy && layer < sequence.layers;
        let Some(sums) = sequence.column_sums.as_ref().filter(|_| wanted) else { return Ok(None) };
        let sums = self.backend.attention_entropies(sums, layer)?;
        Ok(Some(sums.into_iter().map(|sum| sum / sequence.len() as f64).collect()))
    }

    /// The attention that each position of one layer has received so far, `[heads, T]`: the sum
    /// over t = k..=T-1 of the attention weight from t to k. `None` where
    /// [`Transformer::sink_score`] is `None`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn attention_received(
        &self,
        sequence: &Sequence<B>,
        layer: usize,
    ) -> Result<Option<Vec<f64>>> {
        match sequence.column_sums.as_ref().filter(|_| layer < sequence.layers) {
            Some(sums) => Ok(Some(self.backend.column_sums(sums, layer, sequence.len())?)),
            None => Ok(None),
        }
    }
}

/// Reads tensors, checks them and packs them for the backend.
struct Packer<'a, B: Backend> {
    backend: &'a B,
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn LoadProgress,
}

impl<B: Backend> Packer<'_, B> {
    fn layer(&mut self, tensors: &LayerTensors) -> Result<Layer<B>> {
        Ok(Layer {
            attn_norm: self.vector(&tensors.attn_norm)?,
            q: self.linear(&tensors.q)?,
            k: self.linear(&tensors.k)?,
            v: self.linear(&tensors.v)?,
            q_norm: self.optional(&tensors.q_norm)?,
            k_norm: self.optional(&tensors.k_norm)?,
            o: self.linear(&tensors.o)?,
            mlp_norm: self.vector(&tensors.mlp_norm)?,
            gate: self.linear(&tensors.gate)?,
            up: self.linear(&tensors.up)?,
            down: self.linear(&tensors.down)?,
        })
    }

    fn linear(&mut self, projection: &ProjectionSpec) -> Result<B::Linear> {
        self.progress.check()?;
        let ProjectionSpec { name, rows, total_rows, columns, bias } = projection;
        let weight =
            self.checkpoint.rows(&format!("{name}.weight"), rows.clone(), *total_rows, *columns)?;
        let bias = match bias {
            true => Some(self.checkpoint.vector(&format!("{name}.bias"), *total_rows)?),
            false => None,
        };
        let linear = self
            .backend
            .linear_from(weight.view(), bias.as_ref().map(|bias| &bias[rows.clone()]))?;
        self.checkpoint.release();
        Ok(linear)
    }

    fn vector(&mut self, vector: &VectorSpec) -> Result<B::Vector> {
        self.progress.check()?;
        Ok(self.backend.vector_from(&self.checkpoint.vector(&vector.name, vector.len)?)?)
    }

    fn optional(&mut self, vector: &Option<VectorSpec>) -> Result<Option<B::Vector>> {
        vector.as_ref().map(|vector| self.vector(vector)).transpose()
    }
}
