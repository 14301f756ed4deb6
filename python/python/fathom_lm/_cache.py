"""The activations of a pass, by name."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from . import _names, _native, _refused
from ._errors import FathomError

Array = npt.NDArray[np.float32]
Key = Union[str, tuple[str, int]]


class Cache(Mapping[str, Array]):
    """The activations of one pass, in the order of the pass.

    `cache["resid_post.3"]`, `cache["blocks.3.hook_resid_post"]` and `cache["resid_post", 3]` are
    the same array. There is no batch axis: rows are `[T, width]`, heads `[heads, T, head_dim]`,
    where `T` counts the captured positions. Arrays are `float32`, read-only views of the engine's
    memory, which they keep alive.
    """

    __slots__ = ("_arrays", "positions")

    positions: tuple[int, ...] | None
    """The captured positions; `None` for all."""

    def __init__(self, arrays: dict[str, Array], positions: tuple[int, ...] | None = None) -> None:
        self._arrays = arrays
        self.positions = positions

    def _find(self, key: Key) -> str:
        if isinstance(key, tuple):
            if len(key) != 2 or not isinstance(key[0], str):
                raise KeyError(f"{key!r} is not a key: expected a name, or a pair (site, layer)")
            site, layer = key
            key = f"{site}.{layer}"
            if site.startswith("hook_") or "." in site:
                key = f"blocks.{layer}.{site}"
        if not isinstance(key, str):
            raise KeyError(f"{key!r} is not a key: expected a name, or a pair (site, layer)")
        try:
            site, at = _names.parse(key)
        except FathomError as error:
            raise KeyError(str(error)) from None
        if at is None and dict(_native.site_names())[site]:
            raise KeyError(f"`{key}` is in every layer: name one, as in {site}.3, or use .stack")
        name = _names.at(site, at or 0)
        if name not in self._arrays:
            known = ", ".join(self._arrays) or "nothing"
            raise KeyError(f"`{key}` was not captured; captured were: {_shortened(known)}")
        return name

    def __getitem__(self, key: Key) -> Array:
        return self._arrays[self._find(key)]

    def __contains__(self, key: object) -> bool:
        try:
            self._find(key)  # type: ignore[arg-type]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def to_numpy(self) -> dict[str, Array]:
        """The arrays by Fathom's names, without a copy."""
        return dict(self._arrays)

    def stack(self, site: str) -> Array:
        """One site at all captured layers, `[layers, …]`; a copy."""
        name, _ = _names.parse(site)
        layers = [array for key, array in self._arrays.items() if key.split(".")[0] == name]
        if not layers:
            raise KeyError(f"`{site}` was not captured at any layer")
        return np.stack(layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def __getattr__(self, name: str) -> Any:
        refused = _refused.of_cache(name)
        if refused is not None:
            raise refused
        raise AttributeError(f"a Cache has no attribute `{name}`; arrays are cache['resid_post.3']")

    def __repr__(self) -> str:
        shown = [f"{name} {list(array.shape)}" for name, array in self._arrays.items()]
        if len(shown) > 8:
            shown = [*shown[:4], f"… {len(shown) - 7} more …", *shown[-3:]]
        return f"Cache({len(self)} arrays, {_bytes(self.nbytes)}: {', '.join(shown)})"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td><code>{html.escape(name)}</code></td><td>{list(array.shape)}</td>"
            f"<td>{_bytes(array.nbytes)}</td></tr>"
            for name, array in list(self._arrays.items())[:64]
        ]
        more = f"<p>… {len(self) - 64} more</p>" if len(self) > 64 else ""
        return (
            f"<b>{len(self)} arrays, {_bytes(self.nbytes)}</b><table><tr><th>name</th>"
            f"<th>shape</th><th>size</th></tr>{''.join(rows)}</table>{more}"
        )


def _shortened(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}…"


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
