"""Models that the tests share: goldens with HuggingFace's activations, and a planted model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fathom_lm as fl

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
GOLDENS = sorted(path.name for path in (FIXTURES / "golden").iterdir() if path.is_dir())


def read_safetensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The f32 tensors of a file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    base = 8 + length

    def tensor(entry: dict[str, Any]) -> np.ndarray[Any, Any]:
        assert entry["dtype"] == "F32"
        start, end = entry["data_offsets"]
        flat = np.frombuffer(data[base + start : base + end], dtype="<f4")
        return flat.reshape(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items()}


def same(a: Any, b: Any) -> bool:
    """Whether two float32 arrays have the same shape and the same bits."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return FIXTURES / "golden"


@pytest.fixture(scope="session")
def model() -> fl.Model:
    """A golden checkpoint, which has no tokenizer."""
    return fl.Model(FIXTURES / "golden" / "qwen3", threads=2)


@pytest.fixture(scope="session")
def ids() -> list[int]:
    """The golden's prompt."""
    reference = json.loads((FIXTURES / "golden" / "qwen3" / "reference.json").read_text())
    found: list[int] = reference["input_ids"]
    return found


@pytest.fixture(scope="session")
def planted_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted model with a tokenizer and a chat template, made by the package's command."""
    from fathom_lm import _native

    out = tmp_path_factory.mktemp("planted") / "model"
    assert _native.main(["fathom", "plant", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="session")
def planted(planted_dir: Path) -> fl.Model:
    return fl.Model(planted_dir, threads=2)
