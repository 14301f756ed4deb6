"""The layouts of other libraries, and progress displays, with stand-ins for those libraries."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fathom_lm as fl


def test_a_cache_has_transformer_lens_layout(
    planted: fl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, lens = ModuleType("torch"), ModuleType("transformer_lens")
    torch.from_numpy = lambda array: array  # type: ignore[attr-defined]
    lens.ActivationCache = lambda tensors, model: (tensors, model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformer_lens", lens)
    names = ["resid_post.1", "q.1", "k.1", "attn_ctx.1", "attn_weights.1", "attn_in.1", "embed"]
    _, cache = planted.run_with_cache([1, 5, 6, 7], names)
    config = planted.config
    heads, width = config["heads"], config["head_dim"]
    model = SimpleNamespace(cfg=SimpleNamespace(n_heads=heads))
    tensors, given = fl.adapters.to_activation_cache(cache, model)
    assert given is model
    shapes = {name: array.shape for name, array in tensors.items()}
    assert shapes == {
        "blocks.1.hook_resid_post": (1, 4, config["hidden"]),
        "blocks.1.attn.hook_rot_q": (1, 4, heads, width),
        "blocks.1.attn.hook_rot_k": (1, 4, config["kv_heads"], width),
        "blocks.1.attn.hook_z": (1, 4, heads, width),
        "blocks.1.attn.hook_pattern": (1, heads, 4, 4),
        "hook_embed": (1, 4, config["hidden"]),
    }
    q = tensors["blocks.1.attn.hook_rot_q"]
    assert all(np.array_equal(q[0, :, head], cache["q.1"][head]) for head in range(heads))
    z = tensors["blocks.1.attn.hook_z"].reshape(4, -1)
    assert np.array_equal(z, cache["attn_ctx.1"])
    own, _ = fl.adapters.to_activation_cache(cache, planted)
    assert np.array_equal(own["blocks.1.attn.hook_z"], tensors["blocks.1.attn.hook_z"])
    assert z.flags.writeable


def test_a_terminal_has_a_bar(planted: fl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fl.scan(planted, [[1, *range(3, 40)]])
    drawn = terminal.getvalue()
    assert "scanning 38/38 tokens" in drawn and drawn.endswith("\r\x1b[2K")
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    fl.scan(planted, [[1, *range(3, 40)]])
    assert quiet.getvalue() == ""


def test_a_notebook_has_a_line(planted: fl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Any:
        shown.append(data["text/plain"])
        return Handle()

    python, of_python = ModuleType("IPython"), ModuleType("IPython.display")
    python.get_ipython = lambda: SimpleNamespace(kernel=True)  # type: ignore[attr-defined]
    of_python.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", of_python)
    fl.scan(planted, [[1, *range(3, 40)]])
    assert shown[0].startswith("scanning 0/38 tokens")
    assert shown[-2].startswith("scanning 38/38 tokens") and shown[-1] == ""
