"""Any arguments give a result or an exception of the package, and never a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import fathom_lm as fl
from conftest import FIXTURES

MODEL = fl.Model(FIXTURES / "golden" / "llama2", threads=1)

names = st.one_of(
    st.sampled_from(
        MODEL.names() + MODEL.names(lens=True) + ["mlp_out", "q.*", "blocks.*.hook_mlp_out"]
    ),
    st.from_regex(r"[a-z_.*]{0,12}(\.-?\d{1,20})?", fullmatch=True),
    st.text(max_size=20),
)
numbers = st.one_of(st.integers(-5, 330), st.integers(), st.floats(), st.booleans())
scraps = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=8), st.binary(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
arrays = st.sampled_from(
    [
        np.arange(4),
        np.arange(4, dtype=np.uint8),
        np.zeros((2, 2), dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        np.array([1.0, np.nan]),
        np.array(3),
        np.array(["a"]),
        np.array([None]),
        np.array([True, False]),
        np.array([2**63], dtype=np.uint64),
    ]
)
ids = st.one_of(st.lists(st.integers(0, 319), min_size=1, max_size=12), scraps, arrays)
positions = st.one_of(
    st.none(), numbers, st.lists(numbers, max_size=4), arrays, st.slices(12), scraps
)


def refused_or(call: Any) -> Any:
    """The result of a call, or `None` if it refuses its arguments."""
    try:
        return call()
    except (fl.FathomError, OverflowError, TypeError):
        return None


@settings(max_examples=400, deadline=None)
@given(ids, st.one_of(names, st.lists(names, max_size=3)), positions, numbers | st.none(), scraps)
def test_run_with_cache(ids: Any, names: Any, positions: Any, stop: Any, logits: Any) -> None:
    ran = refused_or(lambda: MODEL.run_with_cache(ids, names, positions, stop, logits=logits))
    if ran is not None:
        assert all(array.dtype == np.float32 for array in ran[1].values())
    assert MODEL([1, 2, 3]).shape == (3, 320)


@settings(max_examples=200, deadline=None)
@given(names, st.one_of(scraps, arrays))
def test_hooks(name: Any, returned: Any) -> None:
    logits = refused_or(lambda: MODEL.run_with_hooks([1, 2, 3], [(name, lambda v, s: returned)]))
    assert logits is None or logits.shape == (3, 320)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30), st.builds("{}@{}={}".format, names, numbers, st.text(max_size=9))
    )
)
def test_edits(edit: str) -> None:
    logits = refused_or(lambda: MODEL.run_with_edits([1, 2, 3], [edit]))
    assert logits is None or logits.shape == (3, 320)


@settings(max_examples=200, deadline=None)
@given(st.one_of(names, scraps, st.tuples(names, numbers)))
def test_cache_keys(key: Any) -> None:
    _, cache = MODEL.run_with_cache([1, 2, 3], "resid_post")
    try:
        assert cache[key].shape == (3, 64)
        assert key in cache
    except (KeyError, TypeError):
        try:
            assert key not in cache
        except TypeError:
            pass  # an unhashable value is no key of any mapping
