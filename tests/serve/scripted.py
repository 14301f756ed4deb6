"""A model that writes what a test wants: its next token depends on the last one alone."""

import json
import struct

from server import MODELS

HIDDEN = 64  # more than the tokens of any script
VOCAB, EOS = 4096, 2  # of the trained pair
ONE = struct.pack("<H", 0x3F80)  # in bf16


def write(directory, before, script, template):
    """Makes a checkpoint that writes `script` after the token `before`, and ends. Each part of the
    script becomes one token; no part occurs twice. Any other token is followed by the end."""
    directory.mkdir()
    tokenizer = json.loads((MODELS / "draft/tokenizer.json").read_text())
    assert not set(script) & set(tokenizer["model"]["vocab"]), "a part is a token already"
    tokenizer["added_tokens"] += [
        {"id": VOCAB + number, "content": part, "special": False, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for number, part in enumerate(script)
    ]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HIDDEN,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": VOCAB + len(script), "bos_token_id": 1,
        "eos_token_id": EOS, "torch_dtype": "bfloat16",
    }  # fmt: skip
    for name, value in [("tokenizer.json", tokenizer), ("config.json", config)]:
        (directory / name).write_text(json.dumps(value))
    settings = (MODELS / "draft/tokenizer_config.json").read_text()
    (directory / "tokenizer_config.json").write_text(settings)
    (directory / "chat_template.jinja").write_text(template)

    # The layer adds nothing. Token number i of the chain is one-hot in feature i, which the head
    # turns into the next token; all others share feature 0.
    chain = [tokenizer["model"]["vocab"][before], *range(VOCAB, VOCAB + len(script))]
    numbers = {token: number for number, token in enumerate(chain, 1)}
    following = dict(zip(chain, [*chain[1:], EOS]))
    embedding = [(token, numbers.get(token, 0)) for token in range(VOCAB + len(script))]
    head = [(EOS, 0)] + [(following[token], number) for token, number in numbers.items()]
    zeros = matrix(HIDDEN, [])
    tensors = {
        "model.embed_tokens.weight": matrix(len(embedding), embedding),
        "lm_head.weight": matrix(len(embedding), head),
    }
    for part in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"]:
        tensors[f"model.layers.0.{part}_proj.weight"] = zeros
    for part in ["mlp.gate", "mlp.up", "mlp.down"]:
        tensors[f"model.layers.0.{part}_proj.weight"] = zeros
    for part in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"]:
        tensors[f"model.{part}.weight"] = ([HIDDEN], ONE * HIDDEN)
    (directory / "model.safetensors").write_bytes(safetensors(tensors))


def matrix(rows, ones):
    """Shape and bytes of a matrix of zeros with ones at some places."""
    data = bytearray(rows * HIDDEN * 2)
    for row, column in ones:
        place = (row * HIDDEN + column) * 2
        data[place : place + 2] = ONE
    return [rows, HIDDEN], bytes(data)


def safetensors(tensors):
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        ends = [len(data), len(data) + len(values)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": ends}
        data += values
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data
