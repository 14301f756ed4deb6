//! A model that writes what a test wants: its next token depends on the last one alone.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

/// Width of the residual stream: the number of tokens that have a successor, and one.
const HIDDEN: usize = 64;
/// Of the trained pair's tokenizer.
const VOCAB: usize = 4096;
const EOS: usize = 2;
const ONE: [u8; 2] = [0x80, 0x3f]; // in bf16

/// Makes the checkpoint at `dir`, which has a tokenizer of the trained pair, one that writes
/// `script` after `before`, and ends. Each part of it becomes a new token; no part occurs twice.
/// Any other token is followed by the end.
pub fn write(dir: &Path, before: &str, script: &[&str]) {
    let path = dir.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let is_known = |part: &&str| tokenizer["model"]["vocab"].get(*part).is_some();
    assert_eq!(script.iter().copied().find(is_known), None, "it is a token already");
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (number, part) in script.iter().enumerate() {
        added.push(json!({
            "id": VOCAB + number, "content": part, "special": false, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }));
    }
    let before = tokenizer["model"]["vocab"][before].as_u64().unwrap() as usize;
    fs::write(&path, tokenizer.to_string()).unwrap();
    let vocab = VOCAB + script.len();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HIDDEN,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "tie_word_embeddings": false, "vocab_size": vocab, "bos_token_id": 1,
        "eos_token_id": EOS, "torch_dtype": "bfloat16",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();

    // The layer adds nothing. Token number i of the chain is one-hot in feature i, which the head
    // turns into the next token; all others share feature 0.
    let chain: Vec<usize> = [before].into_iter().chain(VOCAB..vocab).collect();
    let mut embedding = vec![0; vocab * HIDDEN * 2];
    let mut head = embedding.clone();
    let set = |matrix: &mut [u8], row: usize, column: usize| {
        let place = (row * HIDDEN + column) * 2;
        matrix[place..place + 2].copy_from_slice(&ONE);
    };
    let numbers: HashMap<usize, usize> = chain.iter().copied().zip(1..).collect();
    for token in 0..vocab {
        set(&mut embedding, token, numbers.get(&token).copied().unwrap_or(0));
    }
    set(&mut head, EOS, 0);
    for (token, number) in &numbers {
        let next = chain.get(*number).copied().unwrap_or(EOS);
        debug_assert_ne!(next, *token);
        set(&mut head, next, *number);
    }
    let (zeros, ones) = (vec![0; HIDDEN * HIDDEN * 2], ONE.repeat(HIDDEN));
    let matrix = |rows: usize, data| TensorView::new(Dtype::BF16, vec![rows, HIDDEN], data);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), matrix(vocab, &embedding).unwrap()),
        ("lm_head.weight".to_owned(), matrix(vocab, &head).unwrap()),
    ];
    for name in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"]
        .into_iter()
        .chain(["mlp.gate", "mlp.up", "mlp.down"])
    {
        let name = format!("model.layers.0.{name}_proj.weight");
        tensors.push((name, matrix(HIDDEN, &zeros).unwrap()));
    }
    for name in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"] {
        let vector = TensorView::new(Dtype::BF16, vec![HIDDEN], &ones).unwrap();
        tensors.push((format!("model.{name}.weight"), vector));
    }
    fs::write(dir.join("model.safetensors"), serialize(tensors, None).unwrap()).unwrap();
}
