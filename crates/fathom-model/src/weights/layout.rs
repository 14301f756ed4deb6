//! The tensors of a model with a given config. Loading a checkpoint, checking it and merging an
//! adapter all use this list; other tensors of a checkpoint are not used.

use std::ops::Range;

use crate::ModelConfig;
use crate::config::architecture::Stacking;

/// A projection: a weight matrix, or its rows of a fused weight matrix, and possibly a bias.
pub(crate) struct ProjectionSpec {
    /// HuggingFace name without `.weight` and `.bias`.
    pub name: String,
    /// Rows of the tensor that belong to this projection: its outputs.
    pub rows: Range<usize>,
    /// All rows of the tensor.
    pub total_rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether there is a bias `[total_rows]`.
    pub bias: bool,
}

/// The weight vector of a norm.
pub(crate) struct VectorSpec {
    /// HuggingFace name.
    pub name: String,
    pub len: usize,
}

/// The tensors of one decoder layer.
pub(crate) struct LayerTensors {
    pub attn_norm: VectorSpec,
    pub q: ProjectionSpec,
    pub k: ProjectionSpec,
    pub v: ProjectionSpec,
    pub q_norm: Option<VectorSpec>,
    pub k_norm: Option<VectorSpec>,
    pub o: ProjectionSpec,
    pub mlp_norm: VectorSpec,
    pub gate: ProjectionSpec,
    pub up: ProjectionSpec,
    pub down: ProjectionSpec,
}

/// The tensors of a model.
pub(crate) struct ModelTensors {
    pub embed: ProjectionSpec,
    pub layers: Vec<LayerTensors>,
    pub final_norm: VectorSpec,
    /// Not read if the output head is tied to the embedding.
    pub lm_head: ProjectionSpec,
}

impl ModelTensors {
    /// The tensors of a config.
    pub(crate) fn of(config: &ModelConfig) -> ModelTensors {
        let ModelConfig { vocab, hidden, .. } = *config;
        let names = &config.architecture.facts().tensors;
        ModelTensors {
            embed: separate(names.embed.into(), vocab, hidden, false),
            layers: (0..config.layers).map(|l| LayerTensors::of(config, l)).collect(),
            final_norm: VectorSpec { name: format!("{}.weight", names.final_norm), len: hidden },
            lm_head: separate(names.lm_head.into(), vocab, hidden, false),
        }
    }

    /// Name and shape of every tensor, fused ones once; the output head only with `own_head`.
    pub(crate) fn list(&self, own_head: bool) -> Vec<(String, Vec<usize>)> {
        let ModelTensors { embed, layers, final_norm, lm_head } = self;
        let mut list = TensorList::default();
        list.projection(embed);
        for layer in layers {
            let LayerTensors { attn_norm, q, k, v, q_norm, k_norm, o, mlp_norm, gate, up, down } =
                layer;
            [attn_norm, mlp_norm]
                .into_iter()
                .chain(q_norm)
                .chain(k_norm)
                .for_each(|norm| list.vector(norm));
            [q, k, v, o, gate, up, down].into_iter().for_each(|linear| list.projection(linear));
        }
        list.vector(final_norm);
        if own_head {
            list.projection(lm_head);
        }
        list.0
    }
}

#[derive(Default)]
struct TensorList(Vec<(String, Vec<usize>)>);

impl TensorList {
    fn vector(&mut self, vector: &VectorSpec) {
        self.0.push((vector.name.clone(), vec![vector.len]));
    }

    fn projection(&mut self, projection: &ProjectionSpec) {
        let ProjectionSpec { name, rows, total_rows, columns, bias } = projection;
        if rows.start > 0 {
            return; // the first projection of a fused tensor lists it
        }
        self.0.push((format!("{name}.weight"), vec![*total_rows, *columns]));
        if *bias {
            self.0.push((format!("{name}.bias"), vec![*total_rows]));
        }
    }
}

impl LayerTensors {
    fn of(config: &ModelConfig, l: usize) -> LayerTensors {
        let ModelConfig { hidden, intermediate, heads, kv_heads, head_dim, .. } = *config;
        let (q_rows, kv_rows) = (heads * head_dim, kv_heads * head_dim);
        let names = &config.architecture.facts().tensors;
        let name = |module: &str| format!("{}.{l}.{module}", names.layers);
        let norm = |module, len| VectorSpec { name: name(module) + ".weight", len };

        let qkv_rows = [q_rows, kv_rows, kv_rows];
        let [q, k, v] = projections(names.qkv, name, qkv_rows, hidden, config.qkv_bias);
        let [gate, up] =
            projections(names.gate_up, name, [intermediate; 2], hidden, config.mlp_bias);
        LayerTensors {
            attn_norm: norm(names.attn_norm, hidden),
            q,
            k,
            v,
            q_norm: config.qk_norm.then(|| norm(names.q_norm, head_dim)),
            k_norm: config.qk_norm.then(|| norm(names.k_norm, head_dim)),
            o: separate(name(names.o), hidden, q_rows, config.o_bias),
            mlp_norm: norm(names.mlp_norm, hidden),
            gate,
            up,
            down: separate(name(names.down), hidden, intermediate, config.mlp_bias),
        }
    }
}

/// Projections of the same input, with `rows` outputs each.
fn projections<const N: usize>(
    stacking: Stacking<N>,
    name: impl Fn(&str) -> String,
    rows: [usize; N],
    columns: usize,
    bias: bool,
) -> [ProjectionSpec; N] {
    match stacking {
        Stacking::Separate(modules) => {
            std::array::from_fn(|i| separate(name(modules[i]), rows[i], columns, bias))
        }
        Stacking::Fused(module) => {
            let total_rows = rows.iter().sum();
            let mut end = 0;
            rows.map(|rows| {
                let start = end;
                end += rows;
                ProjectionSpec { name: name(module), rows: start..end, total_rows, columns, bias }
            })
        }
    }
}

/// A projection with a tensor of its own.
fn separate(name: String, rows: usize, columns: usize, bias: bool) -> ProjectionSpec {
    ProjectionSpec { name, rows: 0..rows, total_rows: rows, columns, bias }
}
