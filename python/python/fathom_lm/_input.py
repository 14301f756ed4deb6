"""What a model can be given: text, messages or token ids, for one trace or for a list of traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from . import _refused
from ._errors import RequestError

if TYPE_CHECKING:
    from ._encoded import Encoded

Message = Mapping[str, Any]
Input = Union[
    str, "Message", Sequence["Message"], Sequence[int], "npt.NDArray[np.integer[Any]]", "Encoded"
]
"""One trace: a text, which the chat template renders as a user message; messages; or token ids."""

_Trace = Union[str, Sequence["Message"], Sequence[int], "npt.NDArray[np.integer[Any]]", "Encoded"]
# `Sequence[str]` would include `str`, which is one trace.
Inputs = Union[
    list[str],
    "tuple[str, ...]",
    list[_Trace],
    Sequence[Sequence["Message"]],
    Sequence[Sequence[int]],
    Sequence["npt.NDArray[np.integer[Any]]"],
]
"""A list of traces, each a text, a list of messages, or token ids."""

EXPECTED = "expected a text, messages, token ids, or a list of such traces"


def to_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what}: cannot be written as JSON: {error}") from None


def split(value: Any) -> tuple[list[Any], bool]:
    """The traces in `value`, and whether it is a list of traces rather than one trace.

    A list of ints is the ids of one trace, and a list of messages is one conversation. A list of
    texts, of lists or of arrays is a list of traces. An iterator counts as the list of its items.
    """
    if is_scalar(value) or hasattr(value, "__array__") or not isinstance(value, Iterable):
        return [value], False
    items = list(value)
    traces = [_is_trace(item) for item in items]
    if not any(traces):
        return [items], False
    if not all(traces):
        item = items[traces.index(False)]
        raise RequestError(
            f"a list that holds traces as well as {_kind(item)} is no input: {EXPECTED}"
        )
    return items, True


def is_scalar(value: Any) -> bool:
    """Whether `value` is a single item, although Python can iterate over it."""
    return isinstance(value, (str, bytes, bytearray, Mapping))


def _is_trace(item: Any) -> bool:
    """Whether an item of a list is a trace by itself, rather than a token id or a message."""
    if hasattr(item, "__array__"):
        return getattr(item, "ndim", 1) != 0
    return isinstance(item, (str, list, tuple))


def _kind(item: Any) -> str:
    if isinstance(item, Mapping):
        return "a message (a conversation is a list of messages)"
    return f"{type(item).__name__}"


def as_messages(value: Any) -> list[Message] | None:
    """The messages in `value`; `None` if it is something else."""
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0:
        if all(isinstance(item, Mapping) for item in value):
            return list(value)
    return None


def as_ids(value: Any) -> npt.NDArray[np.int64]:
    """The token ids `int64[T]` in a list, array or tensor."""
    _refused.check_tensor(value, "the input")
    if isinstance(value, (bytes, bytearray)):
        raise RequestError(f"bytes are no input: {EXPECTED}; decode them")
    if isinstance(value, Iterable) and not hasattr(value, "__array__"):
        value = value if isinstance(value, (list, tuple)) else list(value)
        if len(value) == 0:
            return np.empty(0, dtype=np.int64)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RequestError(f"{type(value).__name__} is no input: {EXPECTED}") from None
    if array.ndim == 2:
        raise RequestError(
            f"the input has shape {list(array.shape)}: there is no batch axis, pass ids[0], or a "
            "list of ids without padding for several traces"
        )
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise RequestError(
            f"an array of {array.dtype} and shape {list(array.shape)} is no input: {EXPECTED}"
        )
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise RequestError(f"token id {int(array.max())} is no token id")
    return np.ascontiguousarray(array, dtype=np.int64)
