"""Adapters against the real TransformerLens, SAELens and kvpress, where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import DRAFT

import fathom_lm as fl
from fathom_lm import adapters

pytestmark = pytest.mark.filterwarnings("default")  # those of the libraries


@pytest.fixture(scope="module")
def run(planted: fl.Model, planted_dir: Path) -> fl.Run:
    return fl.scan(planted, planted_dir / "traces.jsonl", limit=1, progress=False)


def test_transformer_lens() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformer_lens")
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    bridge = bridge_module.TransformerBridge.boot_transformers(
        str(DRAFT), device="cpu", dtype=torch.float32
    )
    model = fl.Model(DRAFT, threads=2)
    ids = model.encode("What is 6 times 7?", chat_template=False)
    _, cache = model.run_with_cache(ids, lambda name: not name.startswith("sink_score"))
    ours = adapters.to_activation_cache(cache, bridge)
    logits, theirs = bridge.run_with_cache(torch.tensor([ids.tolist()]))
    assert np.allclose(logits[0].detach().numpy(), model(ids), atol=1e-3)
    for name in ours:
        assert ours[name].shape == theirs[name].shape, name
        scale = max(1.0, float(theirs[name].abs().max()))
        difference = float((ours[name] - theirs[name]).abs().max()) / scale
        assert difference < 1e-4, (name, difference)
    assert {"hook_embed", "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_q_normed"} <= set(ours)
    # Methods of the cache.
    assert torch.equal(ours["resid_post", 1], ours["blocks.1.hook_resid_post"])
    stacked = ours.stack_activation("resid_post")
    assert stacked.shape == (model.layers, 1, len(ids), model.hidden)
    residuals, labels = ours.accumulated_resid(layer=-1, return_labels=True)
    assert residuals.shape[0] == len(labels)
    assert torch.equal(residuals[-1], ours["resid_post", model.layers - 1])
    attributions = [each.logit_attrs(residuals, tokens=3) for each in (ours, theirs)]
    assert torch.allclose(*attributions, atol=1e-3)


def test_sae_lens(planted: fl.Model, run: fl.Run) -> None:
    torch = pytest.importorskip("torch")
    sae_lens = pytest.importorskip("sae_lens")
    ids = run.tokens["token_id"].astype(np.int64)
    layer = 8
    _, cache = planted.run_with_cache(ids, f"resid_post.{layer}", logits=None)
    activations = torch.from_numpy(cache["resid_post", layer].copy())
    mask = adapters.sae_mask(run, 0, layer)
    kept = activations[~mask]
    assert kept.shape == (len(ids) - int(mask.sum()), planted.hidden) and mask.sum() > 2
    config = sae_lens.StandardSAEConfig(d_in=planted.hidden, d_sae=64, device="cpu")
    sae = sae_lens.StandardSAE(config)
    with torch.no_grad():
        features = sae.encode(kept)
        assert features.shape == (len(kept), 64) and sae.decode(features).shape == kept.shape
    # The norms of what is left out are many times those of what is kept.
    norms = activations.norm(dim=-1)
    assert norms[torch.from_numpy(mask.copy())].median() > 5 * norms[~mask].median()


def test_kvpress(planted_dir: Path, run: fl.Run) -> None:
    torch = pytest.importorskip("torch")
    kvpress = pytest.importorskip("kvpress")
    transformers = pytest.importorskip("transformers")
    keep = adapters.kvpress_keep(run, 0, recent=4)
    calls = []

    class KeepSinks(kvpress.KnormPress):  # type: ignore[misc,name-defined,unused-ignore]
        def score(self, *arguments: Any, **keywords: Any) -> Any:
            scores = super().score(*arguments, **keywords)
            scores[..., keep] = scores.max()
            calls.append(scores)
            return scores

    model = transformers.AutoModelForCausalLM.from_pretrained(str(planted_dir), dtype=torch.float32)
    ids = torch.from_numpy(run.tokens["token_id"].astype(np.int64))[None]
    with torch.no_grad():
        whole = model(ids, use_cache=True).past_key_values.layers
        with KeepSinks(compression_ratio=0.5)(model):
            pressed = model(ids, use_cache=True).past_key_values.layers
    assert len(calls) == len(pressed) == len(whole)
    count = pressed[0].keys.shape[2]
    assert len(keep) < count < ids.shape[1]
    for before, after in zip(whole, pressed):
        for position in keep:
            # A key that was kept is among those that are left.
            distances = (after.keys - before.keys[:, :, position : position + 1]).norm(dim=-1)
            assert distances.min(dim=-1).values.max() < 1e-4, position
