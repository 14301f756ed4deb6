//! Unused, missing and unexpected tensors of a checkpoint, found from its headers.

use std::collections::HashSet;
use std::path::Path;

use super::layout::ModelTensors;
use super::naming::nearest;
use super::{Checkpoint, INDEX, SINGLE, parse_index};
use crate::file_check::exists;
use crate::sanitize::sanitize;
use crate::text_file::read_text;
use crate::{Error, ModelConfig, Remark, Result};

impl Checkpoint {
    /// Checks that every tensor a model of this config reads exists, with the right shape and a
    /// weight dtype. Reads headers only, so that such errors appear before any weights are loaded.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or dtype.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let list = self.list(config);
        for (name, shape) in &list {
            if !self.contains(name) {
                return Err(self.missing_of(
                    name,
                    &list,
                    config.architecture.facts().tensors.lm_head,
                ));
            }
            self.shaped(name, shape)?;
        }
        Ok(())
    }

    /// Remarks about these weights for a model of this config: unused tensors, an output head that
    /// differs from the embedding although the config ties them, renamed tensors, ignored files.
    /// Remarks about an adapter come last. Reads headers only, except that it compares the output
    /// head of a tied config with the embedding.
    ///
    /// # Errors
    /// As [`Checkpoint::ties_word_embeddings`].
    pub fn remarks(&self, config: &ModelConfig) -> Result<Vec<Remark>> {
        let mut remarks = self.remarks.clone();
        if config.tie_word_embeddings && !self.files_tie_word_embeddings(config)? {
            let head = config.architecture.facts().tensors.lm_head;
            let text = format!(
                "holds an `{head}.weight` that differs from the embedding although \
                 `tie_word_embeddings` is true: it is used, as transformers does"
            );
            remarks.push(Remark::file("own-head", &self.origin, text));
        }
        remarks.extend(self.unread(config));
        remarks.extend(self.adapter().iter().flat_map(|adapter| adapter.remarks()).cloned());
        Ok(remarks)
    }

    /// A remark if the adapter was trained on another base than the model called `name`.
    pub fn other_base(&self, name: &str) -> Option<Remark> {
        self.adapter()?.other_base(name)
    }

    /// A remark about the tensors that a model of this config does not read, except for buffers
    /// that older versions of transformers saved.
    fn unread(&self, config: &ModelConfig) -> Option<Remark> {
        let read: HashSet<(usize, usize)> =
            self.list(config).iter().filter_map(|(name, _)| self.place(name)).collect();
        let mut unread = Vec::new();
        for (s, shard) in self.shards.iter().enumerate() {
            for (t, tensor) in shard.tensors.iter().enumerate() {
                if !read.contains(&(s, t)) && !is_buffer(&tensor.name) {
                    unread.push((shard, tensor));
                }
            }
        }
        let (shard, first) = unread.first()?;
        let file = match self.shards.len() {
            1 => shard.path.as_path(),
            _ => self.origin.parent().unwrap_or(&self.origin),
        };
        let beyond = |name: &str| layer_of(name).is_some_and(|layer| layer >= config.layers);
        let why = match unread.iter().all(|(_, tensor)| beyond(&tensor.name)) {
            true => format!(" (`num_hidden_layers` is {})", config.layers),
            false => String::new(),
        };
        let name = sanitize(&first.name);
        let text = match unread.len() {
            1 => format!(
                "holds a tensor that the config does not account for, `{name}`{why}: it is not used"
            ),
            count => format!(
                "holds {count} tensors that the config does not account for, the first \
                 `{name}`{why}: they are not used"
            ),
        };
        Some(Remark::file("unused-tensors", file, text))
    }

    /// Name and shape of the tensors a model of this config reads. An output head counts as read
    /// even if the config ties it, because it is compared with the embedding.
    fn list(&self, config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let head = config.architecture.facts().tensors.lm_head;
        let own_head = !config.tie_word_embeddings || self.contains(&format!("{head}.weight"));
        ModelTensors::of(config).list(own_head)
    }

    /// The error for a missing tensor, with the most similar name in the file.
    pub(super) fn missing(&self, name: &str) -> Error {
        let nearest = nearest(name, self.names());
        let instead = match nearest.map(sanitize) {
            None => String::new(),
            Some(nearest) if nearest.contains(".base_layer.") => format!(
                "; the file has `{nearest}`, from a model with an adapter that is not merged: \
                 merge it (`merge_and_unload`) and save again"
            ),
            Some(nearest) => format!("; the file has `{nearest}`"),
        };
        Error::tensor(&self.origin, sanitize(name), format!("is missing{instead}"))
    }

    /// As [`Checkpoint::missing`], with a more specific cause found from `list`, all the tensors
    /// that the config asks for.
    fn missing_of(&self, name: &str, list: &[(String, Vec<usize>)], head: &str) -> Error {
        let nearest = nearest(name, self.names());
        let problem = if let Some(prefix) = nearest.and_then(|nearest| nearest.strip_suffix(name))
            && list.iter().all(|(name, _)| self.has(&format!("{prefix}{name}")))
        {
            format!(
                "is missing; the file has `{0}{name}` and all other tensors of the model under \
                 `{0}`, next to other tensors: save the model under `{0}` separately and use its \
                 directory",
                sanitize(prefix)
            )
        } else if nearest.is_none() && !list.iter().any(|(name, _)| self.contains(name)) {
            let first = self.names().min().map(sanitize).unwrap_or_default();
            format!("is missing, and so is every other; the file has names such as `{first}`")
        } else if nearest.is_none() && name.strip_suffix(".weight") == Some(head) {
            "is missing, and `tie_word_embeddings` is not true in config.json; was the model saved \
             without its output head?"
                .to_owned()
        } else {
            return self.missing(name);
        };
        Error::tensor(&self.origin, name, problem)
    }

    /// The names of all tensors, as the files write them.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// Remarks about other weight files in a directory with `model.safetensors`.
pub(super) fn next_to_single(dir: &Path) -> Vec<Remark> {
    // The index is not used, so errors in it do not matter.
    let index = dir.join(INDEX);
    let shards = read_text(&index).ok().flatten().and_then(|text| parse_index(&index, &text).ok());
    let named = shards.unwrap_or_default();
    let stale = |shard: &&String| *shard != SINGLE && exists(&dir.join(shard)).unwrap_or(false);
    if named.values().any(|shard| stale(&shard)) {
        let text = format!(
            "is not read, nor are its shards: {SINGLE} takes precedence, as in transformers"
        );
        return vec![Remark::file("two-sets-of-weights", &index, text)];
    }
    unnamed(dir, |_| false).into_iter().collect()
}

/// A remark about shards in the directory whose names `is_read` rejects.
pub(super) fn unnamed(dir: &Path, is_read: impl Fn(&str) -> bool) -> Option<Remark> {
    let entries = std::fs::read_dir(dir).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut unread: Vec<String> = names.filter(|name| is_shard(name) && !is_read(name)).collect();
    unread.sort_unstable();
    let first = unread.first()?;
    let others = match unread.len() {
        1 => String::new(),
        count => format!(" and {} more shards", count - 1),
    };
    let text = format!("holds `{}`{others}, which no index names: ignored", sanitize(first));
    Some(Remark::file("unnamed-shards", dir, text))
}

/// Whether this is the name of a shard, such as `model-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let middle = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    middle.and_then(|middle| middle.split_once("-of-")).is_some_and(|(i, n)| number(i) && number(n))
}

/// Whether this is a computed constant that older checkpoints saved: the frequencies of the rotary
/// embedding, the causal mask, positions.
fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(
        last,
        "inv_freq" | "masked_bias" | "position_ids" | "cos_cached" | "sin_cached" | "causal_mask"
    ) || name.ends_with(".self_attn.bias")
        || name.ends_with(".attn.bias")
}

/// The layer in a name: `3` of `model.layers.3.mlp.up_proj.weight`.
fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| *part == "layers")?;
    parts.next()?.parse().ok()
}
