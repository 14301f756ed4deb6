"""How models are loaded: the arguments that `Model` and `Generator` share."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, overload

from . import _input
from ._errors import RequestError

if TYPE_CHECKING:
    from . import _native

PathLike = Union[str, "os.PathLike[str]"]
Precision = Literal["f32", "bf16"]


def load_options(
    *,
    precision: Precision | None,
    chat_template: bool | None,
    system: str | None,
    template_kwargs: Mapping[str, Any] | None,
    date: str | datetime.date | None,
    bos: bool | None,
    isa: str | None,
) -> _native._LoadOptions:
    """The arguments in the form that the compiled module expects. `None` selects a default."""
    kwargs = None
    if template_kwargs is not None:
        kwargs = _input.to_json(dict(template_kwargs), "template_kwargs")
    return {
        "precision": precision or "f32",
        "isa": isa,
        "chat_template": chat_template is not False,
        "system": system,
        "template_kwargs": kwargs,
        "date": date.isoformat()[:10] if isinstance(date, datetime.date) else date,
        "bos": bos,
    }


@overload
def path(value: PathLike) -> str: ...
@overload
def path(value: PathLike | None) -> str | None: ...
def path(value: PathLike | None) -> str | None:
    """A path as a string."""
    return None if value is None else os.fspath(value)


def check_range(name: str, value: int | None, most: int) -> None:
    """Refuses numbers that are not within `1..=most`."""
    if value is not None and not 1 <= value <= most:
        raise RequestError(f"{name}={value}: expected at least 1 and at most {most}")
