#!/usr/bin/env python3
"""Converts a GGUF file of the Llama class to a HuggingFace directory of f32 weights.

    python3 gguf_to_hf.py FILE.gguf DIR        # needs gguf 0.19.0 and safetensors 0.8.0

Quantised weights are dequantised, so that every program that reads the directory computes with the
same numbers. The tokenizer and the chat template are those of the GGUF file.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, TokenType, dequantize
from safetensors.numpy import save_file

# GGUF's names of a layer's tensors.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Pre-tokenizers of tokenizer.json by GGUF's name. Others are not supported.
PRE_TOKENIZERS = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def hf_name(name):
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{LAYER[part]}.{kind}"
    part, kind = name.split(".")
    return f"{OTHERS[part]}.{kind}"


def rotate_half_order(weight, heads):
    """Reorders the rows of a q or k projection to HuggingFace's layout. The two dimensions of a
    RoPE pair are adjacent in GGUF and half a head apart in HuggingFace."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def weights(reader, heads, kv_heads):
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if ".attn_q." in tensor.name:
            values = rotate_half_order(values, heads)
        if ".attn_k." in tensor.name:
            values = rotate_half_order(values, kv_heads)
        tensors[hf_name(tensor.name)] = np.ascontiguousarray(values)
    return tensors


def tokenizer(field):
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": index, "content": token, **flags, "special": True}
        for index, (token, kind) in enumerate(zip(tokens, types))
        if kind == TokenType.CONTROL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": PRE_TOKENIZERS[field("tokenizer.ggml.pre")],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": field("tokenizer.ggml.merges"),
        },
    }


def main(source, out):
    reader = GGUFReader(source)

    def field(name):
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors = weights(reader, heads, kv_heads)
    bos, eos = field("tokenizer.ggml.bos_token_id"), field("tokenizer.ggml.eos_token_id")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": field("llama.vocab_size"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 9),
        "rope_theta": float(field("llama.rope.freq_base")),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }
    tokens = field("tokenizer.ggml.tokens")
    tokenizer_config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": field("tokenizer.ggml.add_space_prefix"),
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
        "chat_template": field("tokenizer.chat_template"),
    }

    def write(name, value):
        (out / name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")

    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write("tokenizer.json", tokenizer(field))
    write("tokenizer_config.json", tokenizer_config)
    write("generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
    write("config.json", config)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
