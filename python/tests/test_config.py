"""A model's config: plain values, with HuggingFace's names of rope types."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import fathom_lm as fl
from conftest import GOLDENS

LONG = {"short_factor": [1.08] * 8, "long_factor": [1.1, 1.6, 2.4, 3.3, 3.9, 4.6, 5.1, 64.12]}


@pytest.mark.parametrize("golden", GOLDENS)
def test_it_is_plain_values(golden_dir: Path, golden: str) -> None:
    model = fl.Model(golden_dir / golden, threads=1)
    config = model.config
    assert json.loads(json.dumps(config)) == config
    file = json.loads((golden_dir / golden / "config.json").read_text())
    assert (config["layers"], config["hidden"]) == (file["num_hidden_layers"], file["hidden_size"])
    rope = file.get("rope_scaling") or {}
    assert config["rope"]["kind"] == rope.get("rope_type", rope.get("type", "default"))
    for name in set(rope) - {"type"}:
        assert config["rope"]["kind" if name == "rope_type" else name] == rope[name], name
    config["rope"]["kind"] = "changed"
    assert model.config["rope"]["kind"] != "changed", "config is not a copy"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_type": "default"}, {}),
        ({"rope_type": "linear", "factor": 2.5}, {"factor": 2.5}),
        (
            {"rope_type": "dynamic", "factor": 2.0},
            {"factor": 2.0, "max_position_embeddings": 4096},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            {
                "factor": 4.0,
                "attention_factor": pytest.approx(0.1 * math.log(4) + 1),
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 1024,
                "truncate": True,
            },
        ),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 1024, **LONG},
            {
                "original_max_position_embeddings": 1024,
                "attention_factor": pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024))),
                **LONG,
            },
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
            {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        ),
    ],
    ids=lambda value: value.get("rope_type", "") if isinstance(value, dict) else "",
)
def test_rope_types_have_huggingfaces_names(
    golden_dir: Path, tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(golden_dir / "llama2", directory)
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10000.0, **given}
    (directory / "config.json").write_text(json.dumps(config))
    rope = fl.Model(directory, threads=1).config["rope"]
    dim = config["hidden_size"] // config["num_attention_heads"]
    kind = given["rope_type"]
    assert rope == {"theta": 10000.0, "rotary_dim": dim, "kind": kind, **expected}
