"""Activations are HuggingFace's, at every site of every golden."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fathom_lm as fl
from conftest import GOLDENS, read_safetensors


@pytest.mark.parametrize("golden", GOLDENS)
def test_every_site_is_huggingfaces(golden_dir: Path, golden: str) -> None:
    directory = golden_dir / golden
    prompts = json.loads((directory / "reference.json").read_text())["prompts"]
    model = fl.Model(directory, threads=2)
    for prompt in prompts:
        expected = read_safetensors(directory / prompt["file"])
        names = [name for name in expected if not name.startswith(("input_ids", "rope_"))]
        logits, cache = model.run_with_cache(prompt["input_ids"], names)
        assert set(cache) == set(names) and len(names) >= 26
        for name in names:
            # The tolerance in the goldens' README.
            scale = max(1.0, float(np.abs(expected[name]).max()))
            difference = float(np.abs(cache[name] - expected[name]).max()) / scale
            assert cache[name].shape == expected[name].shape
            assert difference < 1e-4, f"{golden} {name}: {difference}"
        assert np.array_equal(logits, cache["logits"])


@pytest.mark.parametrize("golden", GOLDENS)
def test_greedy_ids_are_huggingfaces(golden_dir: Path, golden: str) -> None:
    reference = json.loads((golden_dir / golden / "reference.json").read_text())
    model = fl.Model(golden_dir / golden, threads=2)
    ids = list(reference["input_ids"])
    for expected in reference["greedy_ids"][:4]:
        assert int(model.logits(ids, rows="last")[0].argmax()) == expected
        ids.append(expected)
