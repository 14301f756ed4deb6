"""Fathom's names, TransformerLens' names, and unknown names."""

from __future__ import annotations

import numpy as np
import pytest

import fathom_lm as fl


def test_a_cache_knows_every_name_of_an_array(model: fl.Model, ids: list[int]) -> None:
    _, cache = model.run_with_cache(ids, ["blocks.3.hook_resid_post", "mlp_out.*", "hook_embed"])
    array = cache["resid_post.3"]
    assert cache["blocks.3.hook_resid_post"] is array and cache["resid_post", 3] is array
    assert cache["hook_resid_post", 3] is array
    assert list(cache) == [
        "embed",
        *(f"mlp_out.{i}" for i in range(3)),
        "mlp_out.3",
        "resid_post.3",
    ]
    assert cache.keys() == set(cache) and len(cache) == 6
    assert "resid_post.3" in cache and "blocks.3.hook_resid_post" in cache
    assert "resid_post.2" not in cache and "nonsense" not in cache and 7 not in cache
    assert cache.get("resid_post.2") is None
    assert cache.to_numpy()["embed"] is cache["embed"]
    stacked = cache.stack("mlp_out")
    assert stacked.shape == (4, len(ids), model.hidden)
    assert np.array_equal(stacked[2], cache["mlp_out.2"])
    assert "6 arrays" in repr(cache) and "<code>mlp_out.0</code>" in cache._repr_html_()


def test_every_name_of_transformer_lens_is_understood(model: fl.Model, ids: list[int]) -> None:
    names = model.names(lens=True)
    assert "blocks.2.attn.hook_pattern" in names and "hook_embed" in names
    _, cache = model.run_with_cache(ids, names)
    assert len(cache) == len(names) == len(set(names))
    for name in names:
        assert name in cache, name


def test_a_filter_may_be_a_function_of_either_name(model: fl.Model, ids: list[int]) -> None:
    ours, theirs = "resid_post.", "hook_resid_post"
    _, one = model.run_with_cache(ids, lambda name: name.startswith(ours))
    _, two = model.run_with_cache(ids, lambda name: name.endswith(theirs))
    assert list(one) == list(two) == [f"resid_post.{i}" for i in range(model.layers)]
    _, none = model.run_with_cache(ids, lambda name: False)
    assert len(none) == 0 and "0 arrays" in repr(none)


def test_without_a_filter_every_place_but_attn_weights(model: fl.Model, ids: list[int]) -> None:
    _, cache = model.run_with_cache(ids)
    missing = set(model.names()) - set(cache)
    assert missing == {"logits", *(f"attn_weights.{i}" for i in range(model.layers))}


def test_the_error_of_an_unknown_name_lists_the_known_ones(model: fl.Model, ids: list[int]) -> None:
    _, cache = model.run_with_cache(ids, "resid_post")
    with pytest.raises(KeyError, match="captured were: resid_post.0, resid_post.1"):
        cache["mlp_out.1"]
    with pytest.raises(KeyError, match="expected one of embed, resid_pre"):
        cache["resid"]
    with pytest.raises(KeyError, match="name one, as in resid_post.3"):
        cache["resid_post"]
    with pytest.raises(KeyError, match="is not recorded: attn_in is that times the norm's weight"):
        cache["blocks.0.ln1.hook_normalized"]
    with pytest.raises(fl.RequestError, match="scores before the softmax are never stored"):
        model.run_with_cache(ids, "blocks.0.attn.hook_attn_scores")
    with pytest.raises(fl.RequestError, match="unknown site `resid`"):
        model.run_with_cache(ids, ["resid_post.0", "resid"])
    with pytest.raises(fl.RequestError, match="layer 4 was asked for"):
        model.run_with_cache(ids, "resid_post.4")
    with pytest.raises(fl.RequestError, match="is known only when the pass is over"):
        model.run_with_hooks(ids, [("sink_score.1", lambda values, site: None)])
    with pytest.raises(fl.UnsupportedError, match="use cache.stack"):
        cache.stack_activation  # noqa: B018
