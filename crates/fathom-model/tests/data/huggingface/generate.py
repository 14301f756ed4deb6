"""Writes what HuggingFace transformers makes of a set of configs.

    pip install torch==2.15.0 transformers==5.23.0
    python generate.py

rope.json     rotary frequencies, attention scaling, cosines and sines of every rope type
configs.json  the values of keys that are absent or null, and sliding windows per layer
"""

import json
import struct
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

HERE = Path(__file__).parent
ROTARY = {
    "llama": ("LlamaForCausalLM", LlamaRotaryEmbedding),
    "mistral": ("MistralForCausalLM", MistralRotaryEmbedding),
    "qwen2": ("Qwen2ForCausalLM", Qwen2RotaryEmbedding),
    "qwen3": ("Qwen3ForCausalLM", Qwen3RotaryEmbedding),
    "phi3": ("Phi3ForCausalLM", Phi3RotaryEmbedding),
}


def load(config):
    """The config class's reading of a config.json, through a file as from_pretrained does it."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        return AutoConfig.from_pretrained(directory)


def config(family, **fields):
    return {"architectures": [ROTARY[family][0]], "model_type": family, **fields}


def small(family, **fields):
    return config(
        family, hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, vocab_size=32, **fields,
    )


SHORT = [1.0 + 0.02 * i for i in range(48)]
LONG = [1.0 + 0.9 * i for i in range(48)]

ROPE = [
    ("default", small("llama", rope_theta=10000.0), [1, 5000]),
    ("default, odd base", small("mistral", rope_theta=123456.7), [7]),
    ("default, v5", small("qwen3", head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1e6}), [7]),
    ("partial", small("phi3", rope_theta=10000.0, partial_rotary_factor=0.45), [7]),
    ("linear", small("llama", max_position_embeddings=4096, rope_theta=10000.0,
                     rope_scaling={"type": "linear", "factor": 4.0}), [9, 5000]),
    ("linear, factor 2.5", small("llama", rope_theta=1e6, rope_scaling={"rope_type": "linear", "factor": 2.5}), [9]),
    ("dynamic", small("llama", max_position_embeddings=2048, rope_theta=10000.0,
                      rope_scaling={"type": "dynamic", "factor": 2.0}), [1, 2047, 2048, 2049, 3000, 8192]),
    ("dynamic, factor 1.5, v5", small("qwen2", max_position_embeddings=100,
                                      rope_parameters={"rope_type": "dynamic", "factor": 1.5, "rope_theta": 1e6}),
     [100, 101, 163, 401]),
    ("llama3, as Llama 3.1", small("llama", head_dim=128, max_position_embeddings=131072, rope_theta=500000.0,
                                   rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                 "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
     [9, 20000]),
    ("llama3, as Llama 3.2", small("llama", max_position_embeddings=131072, rope_theta=500000.0,
                                   rope_scaling={"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                 "original_max_position_embeddings": 8192, "rope_type": "llama3"}),
     [9]),
    ("yarn, as Qwen2.5", small("qwen2", head_dim=128, max_position_embeddings=32768, rope_theta=1e6,
                               rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768,
                                             "type": "yarn"}), [9, 40000]),
    ("yarn, original absent", small("qwen3", head_dim=128, max_position_embeddings=40960, rope_theta=1e6,
                                    rope_scaling={"factor": 4.0, "rope_type": "yarn"}), [9]),
    ("yarn, original at the top level", small("qwen2", max_position_embeddings=4096, rope_theta=1e6,
                                              original_max_position_embeddings=512,
                                              rope_scaling={"factor": 8.0, "rope_type": "yarn",
                                                            "original_max_position_embeddings": 1024}), [9]),
    ("yarn, factor null", small("llama", max_position_embeddings=4096, rope_theta=10000.0,
                                rope_scaling={"factor": None, "rope_type": "yarn",
                                              "original_max_position_embeddings": 1024}), [9]),
    ("yarn, not truncated", small("qwen2", max_position_embeddings=4096, rope_theta=1e6,
                                  rope_scaling={"factor": 4.0, "rope_type": "yarn", "truncate": False,
                                                "original_max_position_embeddings": 1024}), [9]),
    ("yarn, betas", small("mistral", max_position_embeddings=4096, rope_theta=10000.0,
                          rope_scaling={"factor": 16.0, "rope_type": "yarn", "beta_fast": 64, "beta_slow": 0.5,
                                        "original_max_position_embeddings": 256}), [9]),
    ("yarn, mscale", small("llama", max_position_embeddings=4096, rope_theta=10000.0,
                           rope_scaling={"factor": 40.0, "rope_type": "yarn", "mscale": 0.707, "mscale_all_dim": 1.0,
                                         "original_max_position_embeddings": 4096}), [9]),
    ("yarn, mscale alone", small("llama", max_position_embeddings=4096, rope_theta=10000.0,
                                 rope_scaling={"factor": 40.0, "rope_type": "yarn", "mscale": 0.707,
                                               "original_max_position_embeddings": 4096}), [9]),
    ("yarn, attention factor", small("llama", max_position_embeddings=4096, rope_theta=10000.0,
                                     rope_scaling={"factor": 40.0, "rope_type": "yarn", "attention_factor": 1.25,
                                                   "original_max_position_embeddings": 4096}), [9]),
    ("yarn, empty ramp", small("llama", head_dim=8, max_position_embeddings=64, rope_theta=10000.0,
                               rope_scaling={"factor": 4.0, "rope_type": "yarn", "beta_fast": 32, "beta_slow": 20,
                                             "original_max_position_embeddings": 64}), [9]),
    ("longrope, as Phi-3-mini-128k", config("phi3", hidden_size=192, num_attention_heads=2,
                                            max_position_embeddings=131072, original_max_position_embeddings=4096,
                                            rope_theta=10000.0,
                                            rope_scaling={"type": "longrope", "short_factor": SHORT,
                                                          "long_factor": LONG}), [9, 4096, 4097]),
    ("longrope called su", config("phi3", hidden_size=192, num_attention_heads=2, max_position_embeddings=131072,
                                  original_max_position_embeddings=4096, rope_theta=10000.0,
                                  rope_scaling={"type": "su", "short_factor": SHORT, "long_factor": LONG,
                                                "original_max_position_embeddings": 4096}), [9, 4097]),
    ("longrope called yarn", config("phi3", hidden_size=192, num_attention_heads=2, max_position_embeddings=131072,
                                    original_max_position_embeddings=4096, rope_theta=10000.0,
                                    rope_scaling={"type": "yarn", "short_factor": SHORT, "long_factor": LONG}), [9]),
    ("longrope, nested original does not count for Phi3",
     config("phi3", hidden_size=192, num_attention_heads=2, max_position_embeddings=131072, rope_theta=10000.0,
            rope_scaling={"type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                          "original_max_position_embeddings": 1000}), [1001, 4097]),
    ("longrope, factor", small("llama", head_dim=96, max_position_embeddings=4096, rope_theta=10000.0,
                               rope_scaling={"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                                             "factor": 8.0, "original_max_position_embeddings": 1024}), [9, 1025]),
    ("longrope, attention factor", small("llama", head_dim=96, max_position_embeddings=4096, rope_theta=10000.0,
                                         rope_scaling={"rope_type": "longrope", "short_factor": SHORT,
                                                       "long_factor": LONG, "attention_factor": 1.19,
                                                       "original_max_position_embeddings": 1024}), [9]),
    ("base in and beside rope_parameters", small("llama", rope_theta=5000.0,
                                                 rope_parameters={"rope_type": "default", "rope_theta": 1e6}), [9]),
    ("base beside rope_parameters", small("llama", rope_theta=1e6, rope_parameters={"rope_type": "default"}), [9]),
]


def floats(tensor):
    """Shortest decimals that read back as the same f32."""
    def shortest(x):
        for digits in range(1, 18):
            text = f"{x:.{digits}g}"
            if struct.pack("f", float(text)) == struct.pack("f", x):
                return float(text)
        return x
    return [shortest(x) for x in tensor.double().flatten().tolist()]


def rope_cases():
    for name, fields, lengths in ROPE:
        loaded = load(fields)
        for length in lengths:
            rotary = ROTARY[fields["model_type"]][1](loaded)  # afresh: the class keeps state between lengths
            positions = sorted({0, 1, length // 2, length - 1})
            cos, sin = rotary(torch.zeros(1), torch.tensor([positions]))
            half = cos.shape[-1] // 2
            yield {
                "name": name,
                "config": fields,
                "length": length,
                "attention_scaling": float(rotary.attention_scaling),
                "inv_freq": floats(rotary.inv_freq),
                "positions": positions,
                "cos": floats(cos[0, :, :half]),
                "sin": floats(sin[0, :, :half]),
            }


STATED = {"qwen2": {"rope_theta": 1e6}, "qwen3": {"rope_theta": 1e6}}
BARE = {family: config(family, **STATED.get(family, {})) for family in ROTARY}
CONFIGS = [
    *[("bare", BARE[family]) for family in ROTARY],
    # The classes are strict about a few nulls.
    *[("nulls", {**BARE[family], "eos_token_id": None, "bos_token_id": None, "pad_token_id": None,
                 "sliding_window": None, "rope_scaling": None, "rope_theta": 1e6,
                 **({} if family == "mistral" else {"num_key_value_heads": None}),
                 **({} if family == "qwen3" else {"head_dim": None})}) for family in ROTARY],
    *[("head_dim given", {**BARE[family], "head_dim": 64}) for family in ROTARY],
    *[("window given", {**BARE[family], "sliding_window": 77, "use_sliding_window": True, "max_window_layers": 3})
      for family in ROTARY],
    *[("window given but off", {**BARE[family], "sliding_window": 77, "use_sliding_window": False}) for family in ROTARY],
    *[("window on by default", {**BARE[family], "use_sliding_window": True}) for family in ("qwen2", "qwen3")],
    *[("layer types", {**BARE[family], "num_hidden_layers": 4, "sliding_window": 77, "use_sliding_window": True,
                       "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]})
      for family in ("qwen2", "qwen3")],
    *[("attention bias", {**BARE[family], "attention_bias": True, "mlp_bias": family == "llama"})
      for family in ("llama", "qwen3")],
    *[("tied", {**BARE[family], "tie_word_embeddings": True}) for family in ROTARY],
    *[("ids", {**BARE[family], "bos_token_id": 5, "eos_token_id": [7, 6], "pad_token_id": 0}) for family in ROTARY],
]


def windows(loaded):
    if loaded.model_type in ("mistral", "phi3"):
        return [loaded.sliding_window] * loaded.num_hidden_layers
    if loaded.model_type in ("qwen2", "qwen3"):
        return [loaded.sliding_window if kind == "sliding_attention" else None for kind in loaded.layer_types]
    return [None] * loaded.num_hidden_layers


def config_cases():
    for name, fields in CONFIGS:
        loaded = load(fields)
        eos = loaded.eos_token_id
        attention_bias = getattr(loaded, "attention_bias", False) and loaded.model_type in ("llama", "qwen3")
        yield {
            "name": name,
            "config": fields,
            "expected": {
                "layers": loaded.num_hidden_layers,
                "hidden": loaded.hidden_size,
                "intermediate": loaded.intermediate_size,
                "heads": loaded.num_attention_heads,
                "kv_heads": loaded.num_key_value_heads,
                "head_dim": getattr(loaded, "head_dim", None) or loaded.hidden_size // loaded.num_attention_heads,
                "vocab": loaded.vocab_size,
                "rms_norm_eps": loaded.rms_norm_eps,
                "theta": loaded.rope_parameters["rope_theta"],
                "max_position_embeddings": loaded.max_position_embeddings,
                "tie_word_embeddings": loaded.tie_word_embeddings,
                "qkv_bias": loaded.model_type == "qwen2" or attention_bias,
                "o_bias": attention_bias,
                "mlp_bias": getattr(loaded, "mlp_bias", False),
                "bos_token_id": loaded.bos_token_id,
                "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
                "pad_token_id": loaded.pad_token_id,
                "windows": windows(loaded),
            },
        }


def write(name, cases):
    document = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "cases": list(cases)}
    (HERE / name).write_text(json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n")


write("rope.json", rope_cases())
write("configs.json", config_cases())
