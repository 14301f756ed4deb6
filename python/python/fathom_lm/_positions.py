"""Selections of positions of a text."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from ._errors import RequestError

Positions = Union[
    None, int, slice, range, Sequence[int], "npt.NDArray[np.integer[Any]]", "npt.NDArray[np.bool_]"
]
"""Positions, negative from the end; a slice or range; a mask `bool[T]`; `None` for all."""


def resolve(positions: Positions, tokens: int) -> list[int] | None:
    """The positions, ascending and from 0; `None` for all."""
    if positions is None:
        return None
    if isinstance(positions, slice):
        given: Any = range(*positions.indices(tokens))
    elif isinstance(positions, np.ndarray) and positions.dtype == np.bool_:
        if positions.shape != (tokens,):
            raise RequestError(f"positions: a mask must have the shape of the text, [{tokens}]")
        given = np.flatnonzero(positions)
    else:
        given = positions
    try:
        found = (
            [operator.index(given)]
            if not hasattr(given, "__iter__")
            else [operator.index(position) for position in given]
        )
    except TypeError:
        raise RequestError(
            "positions: expected an int, ints, a slice, or a mask of the text's length"
        ) from None
    from_start = [position + tokens if position < 0 else position for position in found]
    for position, meant in zip(found, from_start):
        if not 0 <= meant < tokens:
            raise RequestError(
                f"position {position} was asked for, but the text has {tokens} tokens"
            )
    if any(a >= b for a, b in zip(from_start, from_start[1:])):
        raise RequestError(
            "positions: expected ascending positions, each once, in the order of the rows"
        )
    return from_start
