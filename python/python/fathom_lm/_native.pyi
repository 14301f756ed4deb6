"""The compiled half: bindings of the library. `tests/test_stubs.py` holds this to the module."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = ["Model", "__version__", "bf16_capsule", "lens_name", "main", "parse_place", "site_names"]

__version__: str

_Array = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]
_Remark = tuple[str, str, str | None, int | None, str, int, str]
_Encoded = tuple[_Ids, int, str | None, list[_Remark]]

@final
class Model:
    def __new__(
        cls,
        path: str,
        *,
        name: str | None = None,
        precision: str = "f32",
        threads: int | None = None,
        isa: str | None = None,
        adapter: str | None = None,
        chat_template: bool = True,
        ids_only: bool = False,
        system: str | None = None,
        template_kwargs: str | None = None,
        date: str | None = None,
        bos: bool | None = None,
        strict: bool = False,
    ) -> Model: ...
    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def is_here(self) -> bool: ...
    def config(self) -> dict[str, Any]: ...
    def remarks(self) -> list[_Remark]: ...
    def encode_text(self, text: str, bare: bool) -> _Encoded: ...
    def encode_messages(self, messages: str, variables: str | None = None) -> _Encoded: ...
    def encode_ids(self, ids: _Ids) -> _Encoded: ...
    def decode(self, ids: _Ids) -> str: ...
    def tokens(self, ids: _Ids) -> list[str | None]: ...
    def shape(self, site: str, tokens: int) -> tuple[list[int], bool]: ...
    def run(
        self,
        ids: _Ids,
        *,
        names: Sequence[str] = ...,
        positions: Sequence[int] | None = None,
        edits: Sequence[str] = ...,
        hooks: Sequence[tuple[str, Callable[[_Array], _Array | None]]] = ...,
        stop_at_layer: int | None = None,
        logits: str = "all",
    ) -> tuple[_Array | None, list[tuple[str, _Array]]]: ...

def main(arguments: Sequence[str]) -> int: ...
def parse_place(name: str) -> tuple[str, int | None]: ...
def site_names() -> list[tuple[str, bool]]: ...
def lens_name(site: str, layer: int) -> str | None: ...
def bf16_capsule(array: _Array, versioned: bool) -> Any: ...
