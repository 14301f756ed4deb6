//! The tensors a model of some config is made of. Loading reads what is listed here, and what a
//! checkpoint holds beyond it is not used: one list, so that the two cannot drift.

use std::ops::Range;

use crate::ModelConfig;

/// A weight matrix, or those rows of one that belong to one of the projections it stacks; perhaps
/// with a bias.
pub(crate) struct Projection {
    /// HuggingFace name without `.weight` and `.bias`.
    pub name: String,
    /// Rows of the tensor that are this projection's outputs.
    pub rows: Range<usize>,
    /// Rows of the tensor.
    pub total_rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether there is a bias, `[total_rows]`.
    pub bias: bool,
}

/// A vector of weights: those of a norm.
pub(crate) struct Vector {
    /// HuggingFace name.
    pub name: String,
    pub len: usize,
}

/// The tensors of one decoder layer.
pub(crate) struct LayerTensors {
    pub attn_norm: Vector,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub q_norm: Option<Vector>,
    pub k_norm: Option<Vector>,
    pub o: Projection,
    pub mlp_norm: Vector,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

/// The tensors of a model.
pub(crate) struct ModelTensors {
    pub embed: Projection,
    pub layers: Vec<LayerTensors>,
    pub final_norm: Vector,
    /// Read unless it is the embedding.
    pub lm_head: Projection,
}

impl ModelTensors {
    /// Those of a config.
    pub(crate) fn of(config: &ModelConfig) -> ModelTensors {
        let ModelConfig { vocab, hidden, .. } = *config;
        ModelTensors {
            embed: whole("model.embed_tokens".into(), vocab, hidden, false),
            layers: (0..config.layers).map(|l| LayerTensors::of(config, l)).collect(),
            final_norm: Vector { name: "model.norm.weight".into(), len: hidden },
            lm_head: whole("lm_head".into(), vocab, hidden, false),
        }
    }

    /// Name and shape of every tensor, stacked ones once; that of the output head with `own_head`.
    pub(crate) fn list(&self, own_head: bool) -> Vec<(String, Vec<usize>)> {
        let ModelTensors { embed, layers, final_norm, lm_head } = self;
        let mut list = List::default();
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
struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn vector(&mut self, vector: &Vector) {
        self.0.push((vector.name.clone(), vec![vector.len]));
    }

    fn projection(&mut self, projection: &Projection) {
        let Projection { name, rows, total_rows, columns, bias } = projection;
        if rows.start > 0 {
            return; // listed with the first projection of the stack
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
        let name = |part: &str| format!("model.layers.{l}.{part}");
        let norm = |part, len| Vector { name: name(part), len };

        let [q, k, v] = match config.fused_projections {
            true => stacked(
                name("self_attn.qkv_proj"),
                [q_rows, kv_rows, kv_rows],
                hidden,
                config.qkv_bias,
            ),
            false => [("q", q_rows), ("k", kv_rows), ("v", kv_rows)].map(|(part, rows)| {
                whole(name(&format!("self_attn.{part}_proj")), rows, hidden, config.qkv_bias)
            }),
        };
        let [gate, up] = match config.fused_projections {
            true => stacked(name("mlp.gate_up_proj"), [intermediate; 2], hidden, config.mlp_bias),
            false => ["mlp.gate_proj", "mlp.up_proj"]
                .map(|part| whole(name(part), intermediate, hidden, config.mlp_bias)),
        };
        LayerTensors {
            attn_norm: norm("input_layernorm.weight", hidden),
            q,
            k,
            v,
            q_norm: config.qk_norm.then(|| norm("self_attn.q_norm.weight", head_dim)),
            k_norm: config.qk_norm.then(|| norm("self_attn.k_norm.weight", head_dim)),
            o: whole(name("self_attn.o_proj"), hidden, q_rows, config.o_bias),
            mlp_norm: norm("post_attention_layernorm.weight", hidden),
            gate,
            up,
            down: whole(name("mlp.down_proj"), hidden, intermediate, config.mlp_bias),
        }
    }
}

/// A projection with a tensor of its own.
fn whole(name: String, rows: usize, columns: usize, bias: bool) -> Projection {
    Projection { name, rows: 0..rows, total_rows: rows, columns, bias }
}

/// Projections that one tensor stacks.
fn stacked<const N: usize>(
    name: String,
    rows: [usize; N],
    columns: usize,
    bias: bool,
) -> [Projection; N] {
    let total_rows = rows.iter().sum();
    let mut end = 0;
    rows.map(|rows| {
        let start = end;
        end += rows;
        Projection { name: name.clone(), rows: start..end, total_rows, columns, bias }
    })
}
