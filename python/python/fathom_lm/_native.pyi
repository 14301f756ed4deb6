"""Types of the compiled module; `tests/test_stubs.py` compares them with it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "ANALYSES",
    "DEFAULT_ANALYSES",
    "Generator",
    "Model",
    "Run",
    "Table",
    "Texts",
    "Traces",
    "__version__",
    "arrow_rows",
    "bf16_capsule",
    "explain",
    "lens_name",
    "main",
    "parse_site",
    "report",
    "scan",
    "site_names",
    "table",
]

__version__: str
ANALYSES: tuple[str, ...]
DEFAULT_ANALYSES: tuple[str, ...]

_Array = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]
_Progress = Callable[[str, str, int, int], Any]
_FinishReason = Literal["eos", "stop", "length"]
_Remark = tuple[str, str, str | None, int | None, str, int, str]
_Encoded = tuple[_Ids, int, str | None, list[_Remark]]

class _LoadOptions(TypedDict):
    precision: str
    isa: str | None
    chat_template: bool
    system: str | None
    template_kwargs: str | None
    date: str | None
    bos: bool | None

@final
class Model:
    def __new__(
        cls,
        path: str,
        *,
        options: _LoadOptions,
        adapter: str | None = None,
        name: str | None = None,
        threads: int | None = None,
        ids_only: bool = False,
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

@final
class Traces:
    @staticmethod
    def read(
        model: Model,
        path: str,
        *,
        limit: int | None = None,
        skip_bad_lines: bool = False,
        prompt_field: str | None = None,
        output_field: str | None = None,
    ) -> Traces: ...
    @staticmethod
    def from_rows(model: Model, rows: Sequence[str]) -> Traces: ...
    def __len__(self) -> int: ...
    def remarks(self) -> list[_Remark]: ...

@final
class Table:
    def __len__(self) -> int: ...
    def columns(self) -> list[str]: ...
    @property
    def nbytes(self) -> int: ...
    def stream(self) -> Any: ...
    def schema(self) -> Any: ...
    def column(
        self, name: str, rows: int | None = None
    ) -> tuple[Any, _Ids | None, _Mask | None]: ...

@final
class Run:
    @staticmethod
    def open(path: str) -> Run: ...
    @property
    def path(self) -> Path: ...
    @property
    def is_temporary(self) -> bool: ...
    def manifest(self) -> str: ...
    def remarks(self) -> list[_Remark]: ...
    def detections(self) -> list[str]: ...
    def summary(self) -> str: ...
    def mask(self, trace: int, layer: int | None, classes: Sequence[str]) -> _Mask | None: ...
    def table(self, name: str) -> Table | None: ...
    def figure_names(self) -> list[str]: ...
    def figure(self, name: str) -> str: ...

@final
class Generator:
    @staticmethod
    def of_models(
        target: Model,
        draft: Model | None,
        *,
        mode: str,
        gamma: int | None,
        batch_size: int,
        kv_pages: int | None,
    ) -> Generator: ...
    @staticmethod
    def of_paths(
        target: str,
        draft: str | None,
        *,
        mode: str,
        gamma: int | None,
        batch_size: int,
        kv_pages: int | None,
        options: _LoadOptions,
        adapter: str | None,
        draft_adapter: str | None,
        target_threads: int | None,
        draft_threads: int | None,
    ) -> tuple[Generator, list[_Remark]]: ...
    def has_chat_template(self) -> bool: ...
    def layers(self) -> int: ...
    def widths(self, places: Sequence[str]) -> list[tuple[int, int | None]]: ...
    def encode_text(self, text: str, bare: bool) -> _Encoded: ...
    def encode_messages(self, messages: str, variables: str | None = None) -> _Encoded: ...
    def encode_ids(self, ids: _Ids) -> _Encoded: ...
    def tokens(self, ids: _Ids) -> list[str]: ...
    def stream(self, requests: Sequence[tuple[_Ids, str, int]], places: Sequence[str]) -> Texts: ...
    def metrics(self) -> str: ...
    def close(self) -> None: ...

@final
class Texts:
    def next(
        self,
    ) -> (
        tuple[int, str, _Ids, tuple[_FinishReason, float] | None, tuple[int, int], list[_Array]]
        | None
    ): ...
    def cancel(self) -> None: ...

def scan(
    model: Model,
    traces: Traces,
    *,
    preset: str,
    phases: str,
    threshold: float | None,
    rise: float | None,
    reference: Sequence[int],
    attention: bool,
    all_heads: bool,
    max_tokens: int | None,
    limit: int | None,
    out: str | None,
    resume: bool,
    report_remarks: Callable[[list[_Remark]], None],
    progress: _Progress | None,
) -> Run: ...
def explain(
    run: Run,
    analyses: Sequence[str],
    *,
    max_sinks: int,
    seed: int,
    knockout_by: str,
    knockout_layers: Sequence[int],
    draws: int,
    budgets: Sequence[int],
    model: Model | None,
    traces: Traces | None,
    model_path: str | None,
    adapter: str | None,
    traces_path: str | None,
    threads: int | None,
    progress: _Progress | None,
) -> list[tuple[str, Path, str]]: ...
def table(
    runs: Sequence[Run], show: str, preset: str | None = None, phases: str | None = None, top: int = 10
) -> tuple[str, str, str, str, str]: ...
def report(
    runs: Sequence[str], page: str, figures: str | None = None, texts: int = 30
) -> tuple[Path, list[Path]]: ...
def arrow_rows(table: Any, limit: int | None = None) -> list[str]: ...
def main(arguments: Sequence[str]) -> int: ...
def parse_site(name: str) -> tuple[str, int | None]: ...
def site_names() -> list[tuple[str, bool]]: ...
def lens_name(site: str, layer: int) -> str | None: ...
def bf16_capsule(array: _Array, versioned: bool) -> Any: ...
