"""Texts in progress, and finished texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from . import _native
from ._cache import Cache

Ids = npt.NDArray[np.int64]
FinishReason = Literal["eos", "stop", "length"]
Place = tuple[str, "tuple[int, int | None]"]
"""A place's name, the width of its rows, and the number of heads in a row."""


@dataclass(frozen=True)
class Update:
    """What one step added to one text."""

    index: int
    """Number of the prompt."""
    sample: int
    """Number of the text among those of the prompt."""
    text: str
    """The new text: never half a character, never part of a stop string."""
    ids: Ids
    """The new tokens, `int64[n]`, including the token that ended the text."""
    done: bool
    """Whether this is the last update of the text."""
    finish_reason: FinishReason | None
    """Why the text ended: `eos`, `stop` (a stop text or token), `length`."""
    mat: float | None
    """In the last update: mean accepted tokens (MAT), the mean number of tokens from one rejected
    draft to the next; 1 without a draft."""
    activations: Cache | None
    """The requested activations of the positions that were settled since the last update
    (`activations.positions`), from the passes that generated the text. A position is settled when
    its token can no longer be rejected and the target has run on it."""


@dataclass(frozen=True)
class Generated:
    """A finished text."""

    index: int
    """Number of the prompt."""
    sample: int
    """Number of the text among those of the prompt."""
    text: str
    """The text without the token or stop string that ended it."""
    ids: Ids
    """Its tokens, `int64[n]`, including the token that ended it."""
    prompt_ids: Ids
    """The prompt's tokens, `int64[P]`."""
    finish_reason: FinishReason
    """`eos`, `stop` or `length`."""
    mat: float
    """Mean accepted tokens (MAT): the mean number of tokens from one rejected draft to the next; 1
    without a draft."""
    activations: Cache | None
    """The requested activations of prompt and text, `[P + n - 1, …]`: the model never runs on the
    last token."""

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}…"
        return f"Generated({len(self.ids)} tokens, {self.finish_reason}: {shown!r})"


class Stream(Iterator[Update]):
    """Texts in progress: an iterator that waits for each update."""

    def __init__(
        self,
        native: _native.Texts,
        owners: list[tuple[int, int]],
        prompts: list[Ids],
        places: list[Place],
    ) -> None:
        self._native = native
        self._owners = owners
        self._prompts = prompts
        self._places = places

    def _next(self) -> tuple[int, Update] | None:
        raw = self._native.next()
        if raw is None:
            return None
        number, text, ids, ended, (start, end), rows = raw
        index, sample = self._owners[number]
        reason, mat = ended if ended is not None else (None, None)
        activations = None
        if self._places:
            arrays = {
                name: _shaped(values, end - start, width, heads)
                for (name, (width, heads)), values in zip(self._places, rows)
            }
            activations = Cache(arrays, tuple(range(start, end)))
        return number, Update(index, sample, text, ids, ended is not None, reason, mat, activations)

    def __next__(self) -> Update:
        found = self._next()
        if found is None:
            raise StopIteration
        return found[1]

    def texts(self) -> list[Generated]:
        """Waits for the texts to finish, and joins their remaining updates."""
        updates: list[list[Update]] = [[] for _ in self._owners]
        while (found := self._next()) is not None:
            updates[found[0]].append(found[1])
        return [
            self._joined(number, of_one)
            for number, of_one in enumerate(updates)
            if of_one and of_one[-1].done
        ]

    def _joined(self, number: int, updates: list[Update]) -> Generated:
        last = updates[-1]
        assert last.finish_reason is not None and last.mat is not None
        ids = np.concatenate([update.ids for update in updates])
        ids.flags.writeable = False
        return Generated(
            last.index,
            last.sample,
            "".join(update.text for update in updates),
            ids,
            self._prompts[number],
            last.finish_reason,
            last.mat,
            _joined_activations(
                [update.activations for update in updates if update.activations is not None]
            ),
        )

    def close(self) -> None:
        """Cancels the unfinished texts."""
        self._native.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        native = getattr(self, "_native", None)
        if native is not None:
            native.cancel()


def _shaped(
    values: npt.NDArray[np.float32], positions: int, width: int, heads: int | None
) -> npt.NDArray[np.float32]:
    """Rows in the shape of a cache; heads are `[heads, positions, head_dim]`, a transposed view."""
    if heads is None:
        return values.reshape(positions, width)
    return values.reshape(positions, heads, width // heads).transpose(1, 0, 2)


def _joined_activations(caches: list[Cache]) -> Cache | None:
    if not caches:
        return None
    arrays = {}
    for name in caches[0]:
        parts = [cache[name] for cache in caches]
        joined = np.concatenate(parts, axis=parts[0].ndim - 2)
        joined.flags.writeable = False
        arrays[name] = joined
    return Cache(arrays)
