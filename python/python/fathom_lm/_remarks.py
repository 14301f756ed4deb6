"""Remarks: notes about input that was used although something about it is questionable."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from ._errors import FathomRemark, RequestError

RawRemark = tuple[str, str, "str | None", "int | None", str, int, str]

_PACKAGE = os.path.dirname(__file__)


@dataclass(frozen=True)
class Remark:
    """Something about input that was used: it was ignored, repaired, or is doubtful."""

    kind: str
    """A short name, such as `unread-key`."""
    about: str
    """`input`, which `strict=True` refuses, or `advice`."""
    file: str | None
    line: int | None
    """Line of the file, from 1."""
    text: str
    count: int
    """Number of lines of the file that it concerns."""
    sentence: str
    """The whole remark in one line, as the command line prints it."""

    def __str__(self) -> str:
        return self.sentence


def read(raw: Iterable[RawRemark]) -> tuple[Remark, ...]:
    return tuple(Remark(*remark) for remark in raw)


def warn(remarks: Iterable[Remark], strict: bool) -> None:
    """Warns of remarks. With `strict`, a remark about input is an error instead."""
    remarks = list(remarks)
    for remark in remarks:
        if strict and remark.about == "input":
            raise RequestError(f"{remark} (refused because of strict=True)")
    for remark in remarks:
        warnings.warn(str(remark), FathomRemark, stacklevel=_stacklevel())


def _stacklevel() -> int:
    """The `stacklevel`, seen from the caller, of the first frame outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == _PACKAGE:
        frame, level = frame.f_back, level + 1
    return level
