"""Captures, hooks, edits and early stops change exactly what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fathom_lm as fl
from conftest import same


def everything(model: fl.Model, ids: list[int], **options: Any) -> tuple[Any, fl.Cache]:
    return model.run_with_cache(ids, lambda name: True, **options)


def test_capturing_changes_no_bit(model: fl.Model, ids: list[int]) -> None:
    plain = model(ids)
    assert plain.shape == (len(ids), model.vocab)
    logits, _ = everything(model, ids)
    assert same(logits, plain)
    assert same(model.logits(ids, rows="last"), plain[-1:])
    _, cache = model.run_with_cache(ids, "resid_post.1", logits=None)
    assert same(cache["resid_post.1"], everything(model, ids)[1]["resid_post.1"])


def test_an_edit_changes_its_place_and_what_follows_from_it(
    model: fl.Model, ids: list[int]
) -> None:
    plain_logits, plain = everything(model, ids)
    logits, cache = everything(model, ids, edits=["mlp_out.2@7=zero"])
    assert same(logits, model.run_with_edits(ids, ["mlp_out.2@7=zero"]))
    assert not cache["mlp_out.2"][7].any()
    order = list(cache)
    assert order == model.names()
    for name in order:
        if name == "embed" or ("." in name and int(name.split(".")[1]) < 2):
            assert same(cache[name], plain[name]), name
    # Positions before the edited one do not change.
    for name in ("mlp_out.2", "resid_post.2", "resid_post.3", "final_norm", "logits"):
        assert same(cache[name][:7], plain[name][:7]), name
        assert not same(cache[name][7:], plain[name][7:]), name
    assert same(cache["resid_post.2"][8:], plain["resid_post.2"][8:])
    assert same(logits[:7], plain_logits[:7]) and not same(logits[7], plain_logits[7])


def test_a_hook_is_called_once_with_all_positions(planted: fl.Model) -> None:
    ids = [3 + i % 20 for i in range(1200)]  # more than a chunk
    calls: list[tuple[str, tuple[int, ...]]] = []

    def look(values: Any, site: fl.HookSite) -> None:
        assert site.positions == range(len(ids)) and not values.flags.writeable
        calls.append((site.name, values.shape))

    looked = planted.run_with_hooks(ids, [("mlp_out.3", look), ("blocks.4.attn.hook_q", look)])
    heads, width = planted.heads, planted.config["head_dim"]
    assert calls == [
        ("mlp_out.3", (1200, planted.hidden)),
        ("q_pre_rope.4", (heads, 1200, width)),
    ]
    assert same(looked, planted.logits(ids))


def test_what_a_hook_sees_is_what_is_captured(model: fl.Model, ids: list[int]) -> None:
    _, plain = everything(model, ids)
    seen: dict[str, Any] = {}

    def look(values: Any, site: fl.HookSite) -> None:
        seen[site.name] = values

    names = [name for name in model.names() if not name.startswith("sink_score")]
    model.run_with_hooks(ids, [(name, look) for name in names])
    assert set(seen) == set(names)
    again = dict(seen)
    seen.clear()
    model.run_with_hooks(ids, [(lambda name: True, look)])
    assert set(seen) == set(again)
    for name in names:
        assert same(seen[name], plain[name]), name


def test_a_hooks_replacement_is_an_edits(model: fl.Model, ids: list[int]) -> None:
    def zero(values: Any, site: fl.HookSite) -> Any:
        changed = values.copy()
        changed[7] = 0
        return changed

    edited = everything(model, ids, edits=["mlp_out.2@7=zero"])
    hooked = everything(model, ids, fwd_hooks=[("blocks.2.hook_mlp_out", zero)])
    assert same(edited[0], hooked[0])
    for name in edited[1]:
        assert same(edited[1][name], hooked[1][name]), name
    assert same(model.run_with_hooks(ids, [("mlp_out.2", zero)]), edited[0])


def test_a_head_can_be_replaced(model: fl.Model, ids: list[int]) -> None:
    def zero(values: Any, site: fl.HookSite) -> Any:
        changed = values.copy()
        changed[1, 5:] = 0
        return changed

    _, plain = everything(model, ids)
    _, cache = everything(model, ids, fwd_hooks=[("v.1", zero)])
    assert not cache["v.1"][1, 5:].any()
    assert same(cache["v.1"][0], plain["v.1"][0])
    assert same(cache["v.1"][1, :5], plain["v.1"][1, :5])
    assert same(cache["attn_ctx.1"][:5], plain["attn_ctx.1"][:5])


def test_hooks_see_the_replacements_of_earlier_ones(model: fl.Model, ids: list[int]) -> None:
    seen: list[float] = []

    def double(values: Any, site: fl.HookSite) -> Any:
        seen.append(float(values[3, 3]))
        return values * 2

    model.run_with_hooks(ids, [("resid_pre.1", double), ("resid_pre.1", double)])
    assert seen[1] == 2 * seen[0]


def test_a_pass_stops_before_a_layer(model: fl.Model, ids: list[int]) -> None:
    _, whole = everything(model, ids)
    layers = model.layers
    for stop in range(layers + 1):
        residual, cache = everything(model, ids, stop_at_layer=stop)
        expected = whole["embed"] if stop == 0 else whole[f"resid_post.{stop - 1}"]
        assert same(residual, expected), stop
        assert all("." not in n or int(n.split(".")[1]) < stop for n in cache)
        assert len(cache) == sum("." in n and int(n.split(".")[1]) < stop for n in whole) + 1
        for name in cache:
            assert same(cache[name], whole[name]), name
    for negative in range(-layers, 0):  # from the end
        residual, cache = everything(model, ids, stop_at_layer=negative)
        expected, names = everything(model, ids, stop_at_layer=negative + layers)
        assert same(residual, expected) and list(cache) == list(names)
    assert same(everything(model, ids, stop_at_layer=layers)[0], whole[f"resid_post.{layers - 1}"])
    with pytest.raises(fl.RequestError, match="stops before layer 2"):
        model.run_with_cache(ids, "resid_post.2", stop_at_layer=2)
    with pytest.raises(fl.RequestError, match="`final_norm` is not computed"):
        model.run_with_cache(ids, "final_norm", stop_at_layer=2)
    with pytest.raises(fl.RequestError, match="stops before layer 1"):
        model.run_with_cache(ids, "embed", stop_at_layer=1, edits=["mlp_out.1@0=zero"])
    with pytest.raises(fl.RequestError, match="was to stop at layer 5"):
        model.run_with_cache(ids, "embed", stop_at_layer=5)


def test_positions_are_rows_of_the_whole(model: fl.Model, ids: list[int]) -> None:
    _, whole = everything(model, ids)
    mask = np.zeros(len(ids), dtype=bool)
    mask[[2, 5, len(ids) - 1]] = True
    for positions in ([2, 5, -1], mask, np.array([2, 5, len(ids) - 1])):
        _, cache = everything(model, ids, positions=positions)
        assert cache.positions == (2, 5, len(ids) - 1)
        for name, array in cache.items():
            axis = 0 if array.ndim == 2 and not name.startswith("sink_score") else 1
            assert same(array, np.take(whole[name], cache.positions, axis=axis)), name
    _, one = model.run_with_cache(ids, "resid_post.0", positions=-1)
    assert same(one["resid_post.0"], whole["resid_post.0"][-1:])
    _, sliced = model.run_with_cache(ids, "resid_post.0", positions=slice(3, None))
    assert same(sliced["resid_post.0"], whole["resid_post.0"][3:])
    for bad in ([5, 2], [2, 2], [len(ids)], [-len(ids) - 1], ["a"], [1.5], mask[:-1]):
        with pytest.raises(fl.RequestError, match="position"):
            model.run_with_cache(ids, "embed", positions=bad)  # type: ignore[arg-type]


def test_bf16_is_close(golden_dir: Any, model: fl.Model, ids: list[int]) -> None:
    rounded = fl.Model(golden_dir / "qwen3", precision="bf16", threads=1)
    assert rounded.precision == "bf16" and "bf16" in repr(rounded)
    difference = np.abs(rounded(ids) - model(ids)).max() / np.abs(model(ids)).max()
    assert 0 < difference < 2e-2
