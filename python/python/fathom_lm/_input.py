"""What may be given to a model: text, messages, token ids."""

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
"""A text, which a chat template takes as a message of the user; messages; or token ids."""


def to_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what}: cannot be written as JSON: {error}") from None


def as_messages(value: Any) -> list[Message] | None:
    """The messages that `value` is, if it is any."""
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0:
        if all(isinstance(item, Mapping) for item in value):
            return list(value)
    return None


def as_ids(value: Any) -> npt.NDArray[np.int64]:
    """Token ids as `int64[T]`, from a list, an array or a tensor."""
    _refused.check_tensor(value, "the input")
    expected = "expected a text, messages, or token ids"
    if isinstance(value, (bytes, bytearray)):
        raise RequestError(f"bytes are no input: {expected}; decode them")
    if isinstance(value, Iterable) and not hasattr(value, "__array__"):
        items = value if isinstance(value, (list, tuple)) else list(value)
        if any(isinstance(item, str) for item in items):
            raise RequestError(f"a list of texts is no input: {expected}; one text a call")
        value = items
        if len(items) == 0:
            return np.empty(0, dtype=np.int64)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RequestError(f"{type(value).__name__} is no input: {expected}") from None
    if array.ndim == 2:
        raise RequestError(
            f"the input has shape {list(array.shape)}: there is no batch axis, give one text a call "
            "(ids[0])"
        )
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise RequestError(
            f"an array of {array.dtype} and shape {list(array.shape)} is no input: {expected}"
        )
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise RequestError(f"token id {int(array.max())} is no token id")
    return np.ascontiguousarray(array, dtype=np.int64)
