"""Remarks: what was used, and should be known nevertheless."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from ._errors import FathomRemark, RequestError

RawRemark = tuple[str, str, "str | None", "int | None", str, int, str]


@dataclass(frozen=True)
class Remark:
    """Something remarkable about input that was used."""

    kind: str
    """A short name of what it is about, such as `unread-key`."""
    about: str
    """`input`, which `strict=True` refuses, or `advice`."""
    file: str | None
    line: int | None
    """Of the file, from 1."""
    text: str
    count: int
    """Lines of the file that it is about."""
    sentence: str
    """All of it on one line, as the command line tells it."""

    def __str__(self) -> str:
        return self.sentence


def read(raw: Iterable[RawRemark]) -> tuple[Remark, ...]:
    return tuple(Remark(*remark) for remark in raw)


def tell(remarks: Iterable[Remark], strict: bool, stacklevel: int) -> None:
    """Warns of remarks; with `strict` one about input is an error instead."""
    for remark in remarks:
        if strict and remark.about == "input":
            raise RequestError(f"{remark} (refused because of strict=True)")
    for remark in remarks:
        warnings.warn(str(remark), FathomRemark, stacklevel=stacklevel + 1)
