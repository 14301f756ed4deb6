"""Texts under way, and what comes of them."""

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
"""A place's name, the width of its rows, and how many heads they are of."""


@dataclass(frozen=True)
class Update:
    """What a step added to one text."""

    index: int
    """Which prompt."""
    sample: int
    """Which of the texts of that prompt."""
    text: str
    """Text that is certain by now: never half a character, never part of a stop string."""
    ids: Ids
    """The tokens it got, `int64[n]`, with the token that ended it."""
    done: bool
    """Whether this is the last of the text."""
    finish_reason: FinishReason | None
    """Why the text ended: `eos`, `stop` (a stop text or token), `length`."""
    mat: float | None
    """With the last: mean accepted tokens, 1 without a draft."""
    activations: Cache | None
    """Where some were asked for: those of the positions of prompt and text that have become certain
    since the update before (`activations.positions`), seen in the passes that wrote the text."""


@dataclass(frozen=True)
class Generated:
    """A text."""

    index: int
    """Which prompt."""
    sample: int
    """Which of the texts of that prompt."""
    text: str
    """Without the token or stop text that ended it."""
    ids: Ids
    """Its tokens, `int64[n]`, with the token that ended it."""
    prompt_ids: Ids
    """The prompt's, `int64[P]`."""
    finish_reason: FinishReason
    """`eos`, `stop` or `length`."""
    mat: float
    """Mean accepted tokens, 1 without a draft."""
    activations: Cache | None
    """Where some were asked for: of all positions of prompt and text, `[P + n - 1, …]`: the last token
    was never given to the model."""

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}…"
        return f"Generated({len(self.ids)} tokens, {self.finish_reason}: {shown!r})"


class Stream(Iterator[Update]):
    """Texts under way: an iterator of updates that waits for each."""

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
        return number, Update(
            index, sample, text, ids, ended is not None, reason, mat, activations
        )

    def __next__(self) -> Update:
        found = self._next()
        if found is None:
            raise StopIteration
        return found[1]

    def texts(self) -> list[Generated]:
        """Waits for all that is left, and puts the updates from here on together."""
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
            _together([update.activations for update in updates if update.activations is not None]),
        )

    def close(self) -> None:
        """Cancels the texts that have not ended."""
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
    """Rows as a cache holds them: heads one after the other."""
    if heads is None:
        return values.reshape(positions, width)
    return values.reshape(positions, heads, width // heads).transpose(1, 0, 2)


def _together(caches: list[Cache]) -> Cache | None:
    if not caches:
        return None
    arrays = {}
    for name in caches[0]:
        parts = [cache[name] for cache in caches]
        joined = np.concatenate(parts, axis=parts[0].ndim - 2)
        joined.flags.writeable = False
        arrays[name] = joined
    return Cache(arrays)
