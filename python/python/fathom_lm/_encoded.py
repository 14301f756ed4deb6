"""Token ids, with their text."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ._remarks import Remark


class Encoded(Sequence[int]):
    """The ids that a model is run on, and the text they were made from.

    It is a sequence of ints, and `numpy.asarray` makes it an array `int64[T]`.
    """

    __slots__ = ("_text", "ids", "prompt_len", "remarks", "tokens")

    ids: npt.NDArray[np.int64]
    """The ids, `int64[T]`, read-only."""
    tokens: tuple[str, ...]
    """The text of each token; `<id 17>` if the model has no tokenizer."""
    prompt_len: int
    """How many of them are the prompt."""
    remarks: tuple[Remark, ...]
    """Remarks about the text."""

    def __init__(
        self,
        ids: npt.NDArray[np.int64],
        tokens: Sequence[str],
        text: str | None,
        prompt_len: int,
        remarks: tuple[Remark, ...],
    ) -> None:
        self.ids = ids
        self.tokens = tuple(tokens)
        self._text = text
        self.prompt_len = prompt_len
        self.remarks = remarks

    @property
    def text(self) -> str | None:
        """The text that was encoded: the prompt as rendered by the chat template, or the bare text,
        whose special tokens are in `ids` only. `None` if ids were given."""
        return self._text

    def tolist(self) -> list[int]:
        """The ids as a list."""
        return [int(i) for i in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [int(i) for i in self.ids[index]]
        return int(self.ids[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.ids, dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Encoded):
            return self.tolist() == other.tolist()
        if isinstance(other, (list, tuple)):
            return self.tolist() == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.ids.tobytes())

    def __repr__(self) -> str:
        shown = [repr(token) for token in self.tokens]
        if len(shown) > 24:
            shown = [*shown[:16], "…", *shown[-7:]]
        return f"Encoded({len(self)} tokens: {' '.join(shown)})"

    def _repr_html_(self) -> str:
        def cell(position: int, token: str) -> str:
            title = f"position {position}, id {int(self.ids[position])}"
            text = html.escape(token).replace("\n", "⏎")
            style = (
                "border:1px solid #bbb;border-radius:3px;padding:0 2px;margin:1px;white-space:pre"
            )
            return f'<span title="{title}" style="{style};display:inline-block">{text}</span>'

        shown = [cell(i, token) for i, token in enumerate(self.tokens[:512])]
        more = f" … {len(self) - 512} more" if len(self) > 512 else ""
        remarks = "".join(f"<br><i>{html.escape(str(remark))}</i>" for remark in self.remarks)
        return f"<div><b>{len(self)} tokens</b> {''.join(shown)}{more}{remarks}</div>"
