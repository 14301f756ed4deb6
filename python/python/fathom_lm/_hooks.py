"""Functions that see the values at a place of a pass, and can replace them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _names, _native, _refused
from ._errors import RequestError

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HookSite:
    """Where in the pass a hook is called."""

    name: str
    """`mlp_out.22`."""
    site: str
    """`mlp_out`."""
    layer: int
    """From 0; 0 for sites outside the layers."""
    lens_name: str | None
    """TransformerLens' name, if it records the same tensor."""
    positions: range
    """The positions of the values: all positions of the text."""


HookFunction = Callable[[Array, HookSite], Any]
"""`fn(values, site)`: returns an array of the same shape to replace the values, or `None` to keep
them. The values are read-only: change a copy and return it."""
Hooks = Sequence[tuple[Union[str, Callable[[str], bool]], HookFunction]]


def prepare(
    model: _native.Model, layers: int, tokens: int, hooks: Hooks, stop: int | None
) -> list[tuple[str, Callable[[Array], Array | None]]]:
    """Hooks in the form that the compiled module expects: pairs of a place and a function of its
    flat values."""
    prepared: list[tuple[str, Callable[[Array], Array | None]]] = []
    for hook in hooks:
        try:
            names, function = hook
        except (TypeError, ValueError):
            raise RequestError(
                f"{hook!r} is not a hook: expected a pair (name, function)"
            ) from None
        if not callable(function):
            raise RequestError(f"the hook at {names!r} is not a function")
        by_name = isinstance(names, str)
        for name in _names.chosen(names, layers, stop):
            if not by_name and name.startswith("sink_score."):
                continue  # known only after the pass; a function of names may match it anyway
            site, layer = _names.parse(name)
            if layer is None and dict(_native.site_names())[site]:
                every = range(layers if stop is None else stop)
            else:
                every = range(layer or 0, (layer or 0) + 1)
            for each in every:
                prepared.append(
                    (_names.at(site, each), _bridge(model, site, each, tokens, function))
                )
    return prepared


def _bridge(
    model: _native.Model, site: str, layer: int, tokens: int, function: HookFunction
) -> Callable[[Array], Array | None]:
    name = _names.at(site, layer)
    where = HookSite(name, site, layer, _native.lens_name(site, layer), range(tokens))
    shape, heads_in_rows = model.shape(site, tokens)

    def bridge(flat: Array) -> Array | None:
        if heads_in_rows:
            # [T, heads · head_dim] in the pass, [heads, T, head_dim] in a cache and for a hook.
            heads, _, width = shape
            values = flat.reshape(tokens, heads, width).transpose(1, 0, 2)
        else:
            values = flat.reshape(shape)
        returned = function(values, where)
        if returned is None:
            return None
        array = _replacement(returned, tuple(shape), name)
        return np.ascontiguousarray(array.transpose(1, 0, 2) if heads_in_rows else array)

    return bridge


def _replacement(value: Any, shape: tuple[int, ...], name: str) -> Array:
    _refused.check_tensor(value, f"what the hook at `{name}` returned")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "fiub":
        kind = type(value).__name__
        raise RequestError(
            f"the hook at `{name}` returned {kind}: expected None or numbers {list(shape)}"
        )
    if array.shape != shape:
        raise RequestError(
            f"the hook at `{name}` returned shape {list(array.shape)}: expected {list(shape)}"
        )
    return array.astype(np.float32, copy=False)
