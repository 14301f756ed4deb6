"""Calls and the types that they have: read by type checkers, never run (`test_stubs.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import numpy.typing as npt

import fathom_lm as fl

if TYPE_CHECKING:
    from typing_extensions import assert_type

    Array = npt.NDArray[np.float32]
    MaybeArray = Optional[Array]

    def one_trace(model: fl.Model, ids: npt.NDArray[np.int64]) -> None:
        assert_type(model.encode("a"), fl.Encoded)
        assert_type(model.encode([1, 2]), fl.Encoded)
        assert_type(model.encode((1, 2)), fl.Encoded)
        assert_type(model.encode(ids), fl.Encoded)
        assert_type(model.encode([{"role": "user", "content": "a"}]), fl.Encoded)
        assert_type(model.encode(model.encode("a")), fl.Encoded)
        assert_type(model("a"), Array)
        assert_type(model.logits([1, 2], rows="last"), Array)
        assert_type(model.run_with_cache("a"), tuple[Array, fl.Cache])
        assert_type(model.run_with_cache(ids, "q.1", logits="last"), tuple[Array, fl.Cache])
        assert_type(model.run_with_cache([1], logits=None), tuple[MaybeArray, fl.Cache])
        assert_type(model.run_with_edits("a", ["mlp_out.1@0=zero"]), Array)
        assert_type(model.run_with_hooks("a", [("q.1", lambda values, site: None)]), Array)

    def several_traces(model: fl.Model, ids: npt.NDArray[np.int64], texts: list[str]) -> None:
        assert_type(model.encode(texts), list[fl.Encoded])
        assert_type(model.encode(["a", "b"]), list[fl.Encoded])
        assert_type(model.encode(("a", "b")), list[fl.Encoded])
        assert_type(model.encode([[1, 2], [3]]), list[fl.Encoded])
        assert_type(model.encode([ids, ids]), list[fl.Encoded])
        assert_type(model.encode([model.encode("a")]), list[fl.Encoded])
        assert_type(model.encode([[{"role": "user", "content": "a"}]]), list[fl.Encoded])
        assert_type(model(texts), list[Array])
        assert_type(model.logits([[1, 2]]), list[Array])
        assert_type(model.run_with_cache(texts), list[tuple[Array, fl.Cache]])
        assert_type(
            model.run_with_cache([[1]], "embed", logits=None), list[tuple[MaybeArray, fl.Cache]]
        )
        assert_type(model.run_with_edits(texts, []), list[Array])
        assert_type(model.run_with_hooks(texts, []), list[Array])
        mixed: list[Any] = ["a", [1, 2]]
        model.encode(mixed)
