//! The planted model as a HuggingFace checkpoint.

use std::path::Path;

use fathom_model::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::attention::Attention;
use super::linalg::{Basis, Matrix, add_scaled, bytes, scaled};
use super::mlp::Mlp;
use super::plan::{
    CONSTANT, Direction, EMBED_NORM, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, MARKER, Plan,
    ROPE_THETA, TRIGGERS,
};
use super::rng::Rng;
use super::vocabulary::{BOS, IM_END, Vocabulary};

/// Scale of the output head; a larger one makes next-token probabilities sharper.
const HEAD_GAIN: f64 = 2.0;

/// A named tensor of little-endian bfloat16.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn matrix(name: impl Into<String>, matrix: &Matrix) -> Tensor {
        let shape = vec![matrix.rows, matrix.columns];
        Tensor { name: name.into(), shape, bytes: matrix.to_bytes() }
    }

    fn vector(name: impl Into<String>, values: &[f64]) -> Tensor {
        Tensor { name: name.into(), shape: vec![values.len()], bytes: bytes(values) }
    }
}

/// The contents of `model.safetensors`. `path` is only for messages.
pub(super) fn weights(
    path: &Path,
    plan: &Plan,
    rng: &mut Rng,
    vocabulary: &Vocabulary,
    texts: &[&[u32]],
) -> Result<Vec<u8>> {
    let basis = Basis::random(plan, rng);
    let contents = contents(plan, &basis, rng, vocabulary);
    let ones = [1.0; HIDDEN];
    let mut tensors = vec![
        Tensor::matrix(
            "model.embed_tokens.weight",
            &embedding(plan, &basis, vocabulary, &contents),
        ),
        Tensor::vector("model.norm.weight", &ones),
        Tensor::matrix("lm_head.weight", &output_head(&contents, texts)),
    ];
    for layer in 0..plan.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let attention = Attention::plant(layer, plan, &basis, rng);
        let mlp = Mlp::plant(layer, plan, &basis, rng);
        tensors.extend([
            Tensor::vector(name("input_layernorm"), &ones),
            Tensor::matrix(name("self_attn.q_proj"), &attention.q),
            Tensor::matrix(name("self_attn.k_proj"), &attention.k),
            Tensor::matrix(name("self_attn.v_proj"), &attention.v),
            Tensor::matrix(name("self_attn.o_proj"), &attention.o),
            Tensor::vector(name("self_attn.q_norm"), &attention.q_norm),
            Tensor::vector(name("self_attn.k_norm"), &attention.k_norm),
            Tensor::vector(name("post_attention_layernorm"), &ones),
            Tensor::matrix(name("mlp.gate_proj"), &mlp.gate),
            Tensor::matrix(name("mlp.up_proj"), &mlp.up),
            Tensor::matrix(name("mlp.down_proj"), &mlp.down),
        ]);
    }

    let failed = |error| Error::file(path, format!("cannot be written: {error}"));
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(Dtype::BF16, tensor.shape.clone(), &tensor.bytes)?;
        Ok((tensor.name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let format = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(format)).map_err(failed)
}

/// The components of a token's embedding other than its content.
fn components(plan: &Plan, vocabulary: &Vocabulary, id: usize) -> Vec<(Direction, f64)> {
    let is = |text: &&str| vocabulary.id(text) == u32::try_from(id).ok();
    let kinds = (0..plan.kinds.len()).filter(|kind| plan.kinds[*kind].tokens.iter().any(&is));
    let mut components = vec![(Direction::Constant, CONSTANT)];
    components.extend(kinds.map(|kind| (Direction::Kind(kind), MARKER)));
    if TRIGGERS.iter().any(is) {
        components.push((Direction::Trigger, MARKER));
    }
    components
}

/// The random content of every token's embedding, whose norm brings the embedding's norm to
/// [`EMBED_NORM`].
fn contents(plan: &Plan, basis: &Basis, rng: &mut Rng, vocabulary: &Vocabulary) -> Vec<Vec<f64>> {
    let content = |id| {
        let squared: f64 =
            components(plan, vocabulary, id).iter().map(|(_, amount)| amount.powi(2)).sum();
        basis.content(rng, (EMBED_NORM.powi(2) - squared).sqrt())
    };
    (0..vocabulary.len()).map(content).collect()
}

/// The embedding matrix, `[vocabulary, HIDDEN]`.
fn embedding(plan: &Plan, basis: &Basis, vocabulary: &Vocabulary, contents: &[Vec<f64>]) -> Matrix {
    let mut embedding = Matrix::zeros(contents.len(), HIDDEN);
    for (id, content) in contents.iter().enumerate() {
        let mut row = basis.vector(&components(plan, vocabulary, id));
        add_scaled(&mut row, 1.0, content);
        embedding.set_row(id, &row);
    }
    embedding
}

/// The output head, `[vocabulary, HIDDEN]`. It predicts the tokens that follow the current token in
/// `texts`, so that the model generates words.
fn output_head(contents: &[Vec<f64>], texts: &[&[u32]]) -> Matrix {
    let mut follows = vec![0usize; contents.len()];
    for pair in texts.iter().flat_map(|ids| ids.windows(2)) {
        follows[pair[0] as usize] += 1;
    }
    let mut head = Matrix::zeros(contents.len(), HIDDEN);
    for pair in texts.iter().flat_map(|ids| ids.windows(2)) {
        let (before, after) = (pair[0] as usize, pair[1] as usize);
        let content = &contents[before];
        let norm = super::linalg::dot(content, content).sqrt();
        let share = HEAD_GAIN / follows[before] as f64;
        add_scaled(head.row_mut(after), 1.0, &scaled(content, share / norm));
    }
    head
}

/// The contents of `config.json`.
pub(super) fn config_json(plan: &Plan, vocabulary: &Vocabulary) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.id(BOS),
        "eos_token_id": vocabulary.id(IM_END),
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096,
        "max_window_layers": plan.layers,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": plan.layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "rope_theta": ROPE_THETA,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": vocabulary.len(),
    })
}

/// The contents of `generation_config.json`.
pub(super) fn generation_config_json(vocabulary: &Vocabulary) -> Value {
    json!({
        "bos_token_id": vocabulary.id(BOS),
        "eos_token_id": [vocabulary.id(IM_END)],
    })
}
