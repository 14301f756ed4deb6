"""Runs: the results of scans."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

from . import _native, _remarks
from ._errors import RequestError
from ._model import Model
from ._progress import Bar, Progress
from ._remarks import Remark
from ._table import Format, Table, TextTable

Mask = npt.NDArray[np.bool_]
Show = Literal["sinks", "tokens", "levels", "positions"]
Path_ = Union[str, "os.PathLike[str]"]
Classes = Union[str, Sequence[str]]

ANALYSES = _native.ANALYSES


@dataclass(frozen=True)
class Explained:
    """One analysis of a run."""

    analysis: str
    """Its name."""
    file: Path
    """The file with its result, JSON."""
    finding: str
    """What it found, in a sentence."""


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report."""

    page: Path
    figures: tuple[Path, ...]
    """SVG and CSV."""


class Figure(str):
    """A figure: the text of an SVG file, shown as a picture in a notebook."""

    name: str

    def __new__(cls, name: str, svg: str) -> Figure:
        figure = super().__new__(cls, svg)
        figure.name = name
        return figure

    def _repr_svg_(self) -> str:
        return str(self)

    def save(self, path: Path_) -> None:
        """Writes the SVG file."""
        Path(path).write_text(self, encoding="utf-8")


class Run:
    """A finished run: its directory and tables, and the analyses, tables and figures made from it.

    `fl.scan` makes one; `fl.open_run` opens one that `fl.scan` or `fathom scan` wrote.
    """

    def __init__(
        self,
        native: _native.Run,
        model: Model | None = None,
        traces: _native.Traces | None = None,
    ) -> None:
        self._native = native
        self._model = model
        self._traces = traces
        self._tables: dict[str, Table] = {}

    @property
    def path(self) -> Path:
        """Its directory. If the scan had no `out`, the directory is temporary and removed with the
        run."""
        return Path(self._native.path)

    @property
    def manifest(self) -> dict[str, Any]:
        """`run.json`: what was scanned, with which options, and how much is done."""
        found: dict[str, Any] = json.loads(self._native.manifest())
        return found

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks about the scan."""
        return _remarks.read(self._native.remarks())

    @property
    def detections(self) -> list[dict[str, Any]]:
        """The sinks of each trace, as in `detections.jsonl`: `candidate_sinks` maps positions
        (ints) to sinks."""
        traces = [json.loads(line) for line in self._native.detections()]
        for trace in traces:
            sinks = trace["candidate_sinks"]
            trace["candidate_sinks"] = {int(position): sink for position, sink in sinks.items()}
        return traces

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            native = self._native.table(name)
            if native is None:
                raise RequestError(
                    f"the run has no `{name}`: attention was not measured, scan with attention=True"
                )
            self._tables[name] = Table(name, native)
        return self._tables[name]

    @property
    def sinks(self) -> Table:
        """One row for each sink: trace, position, token, class, l_start, lifetime, layers,
        norms."""
        return self._table("sinks")

    @property
    def norms(self) -> Table:
        """One row for each trace, sink (or average token) and layer: hidden, key and value
        norms."""
        return self._table("norms")

    @property
    def scores(self) -> Table:
        """One row for each trace, layer and position: sink scores, if attention was measured.

        Raises:
            RequestError: Attention was not measured.
        """
        return self._table("scores")

    @property
    def measures(self) -> Table:
        """One row for each trace, position and layer at which one of the four measures of a sink
        holds: alignment, attention, massive activations, norm."""
        return self._table("measures")

    @property
    def tokens(self) -> Table:
        """One row for each trace and position: the tokens that were scanned."""
        return self._table("tokens")

    def __len__(self) -> int:
        """Number of traces."""
        return int(self.manifest["counts"]["traces"])

    def summary(self) -> str:
        """The findings, in sentences."""
        return self._native.summary()

    def mask(
        self,
        trace: int,
        layer: int | None = None,
        classes: Classes = ("primary", "secondary"),
    ) -> Mask:
        """Which tokens of a trace are sinks, `bool[T]`, read-only.

        Args:
            trace: Its number in the run, from 0; negative from the end.
            layer: Sinks at this layer (negative from the end); `None` for any layer.
            classes: The classes to include, of `"primary"`, `"secondary"`, `"noise"`.
        """
        index = _index(trace, len(self), "trace")
        layers = int(self.manifest["model"]["layers"])
        at = None if layer is None else _index(layer, layers, "layer")
        wanted = [classes] if isinstance(classes, str) else list(classes)
        mask = self._native.mask(index, at, wanted)
        assert mask is not None
        return mask

    def table(
        self,
        show: Show = "sinks",
        format: Format = "markdown",
        *,
        preset: Literal["paper", "upstream"] | None = None,
        phases: Literal["largest", "all"] | None = None,
        top: int = 10,
    ) -> TextTable:
        """One of the paper's tables; see `fl.table` for several runs."""
        return table([self], show, format, preset=preset, phases=phases, top=top)

    def explain(
        self,
        analyses: Sequence[str] | str | None = None,
        *,
        model: Model | Path_ | None = None,
        traces: Path_ | None = None,
        adapter: Path_ | None = None,
        threads: int | None = None,
        max_sinks: int = 200,
        seed: int = 0,
        knockout_by: Literal["hide", "zero"] = "hide",
        knockout_layers: Sequence[int] | None = None,
        draws: int = 3,
        budgets: Sequence[int] | None = None,
        progress: Progress = True,
    ) -> list[Explained]:
        """Analyses how the sinks form and what they do. Results are stored in the run. A result
        that is up to date is not computed again, and an interrupted explanation continues.

        Args:
            analyses: Names of analyses, as in the flags of `fathom explain`; `None` for all but
                "evict", which makes up to 17 passes.
            model: A loaded model, or its path if it has moved since the scan.
            traces: The traces' file, if it has moved since the scan.
            adapter, threads: As for `fl.Model`, if the model is loaded here.
            max_sinks: The most sinks for which an analysis stores vectors or runs the model.
            seed: Seed of the random choice of sinks and other tokens.
            knockout_by: Whether "knockout" hides keys from later tokens or sets their values to
                zero.
            knockout_layers: The layers at which it does; `None` for all.
            draws: How many times it draws random tokens to compare with.
            budgets: Numbers of keys that "evict" keeps, each at least 64; `None` for 64, 256, 1024
                and 4096. Those longer than a trace are skipped.
            progress: See `fl.scan`.

        Raises:
            RequestError: An unknown analysis; or a model or traces that do not exist or are not the
                run's.
        """
        asked = _native.DEFAULT_ANALYSES if analyses is None else analyses
        names = [asked] if isinstance(asked, str) else list(asked)
        if max_sinks < 1:
            raise RequestError(f"max_sinks={max_sinks}: expected at least 1")
        if seed < 0 or seed >= 1 << 64:
            raise RequestError(f"seed={seed}: expected a whole number from 0 to 2**64 - 1")
        if draws < 0:
            raise RequestError(f"draws={draws}: expected at least 0")
        loaded = model if isinstance(model, Model) else self._model if model is None else None
        own = self._traces if traces is None and loaded is not None else None
        with Bar(progress) as bar:
            found = _native.explain(
                self._native,
                names,
                max_sinks=max_sinks,
                seed=seed,
                knockout_by=knockout_by,
                knockout_layers=sorted(set(knockout_layers or [])),
                draws=draws,
                budgets=list(budgets or []),
                model=None if loaded is None else loaded._native,
                traces=own,
                model_path=None if model is None or isinstance(model, Model) else os.fspath(model),
                adapter=None if adapter is None else os.fspath(adapter),
                traces_path=None if traces is None else os.fspath(traces),
                threads=threads,
                progress=bar.function(),
            )
        return [Explained(name, Path(file), finding) for name, file, finding in found]

    @property
    def results(self) -> dict[str, Any]:
        """The stored results of `explain`, by analysis."""
        found: dict[str, Any] = {}
        for name in ANALYSES:
            file = self.path / "explain" / f"{name}.json"
            if file.exists():
                found[name] = json.loads(file.read_text(encoding="utf-8"))["result"]
        return found

    def report(self, path: Path_, *, figures: Path_ | None = None, texts: int = 30) -> ReportFiles:
        """Writes one page, and each figure as SVG and CSV; see `fl.report` for several runs."""
        return report([self], path, figures=figures, texts=texts)

    @property
    def figures(self) -> list[str]:
        """Names of all figures, including those that the run lacks the data for."""
        return self._native.figure_names()

    def figure(self, name: str) -> Figure:
        """A figure: `"fig1-norms"`, or `"norms"`.

        Raises:
            RequestError: There is no such figure, or the run lacks the data for it; the message
                says how to get them.
        """
        return Figure(name, self._native.figure(name))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})\n{self.summary()}"

    def _repr_html_(self) -> str:
        from html import escape

        lines = escape(self.summary().strip()).replace("\n", "<br>")
        return f"<p>{lines}</p>{self.table()._repr_html_()}"


def open_run(path: Path_) -> Run:
    """Opens a finished run that `fathom scan` or `fl.scan` wrote.

    Raises:
        CheckpointError: The directory holds no run, a run of another version, or an unfinished one.
    """
    return Run(_native.Run.open(os.fspath(path)))


def table(
    runs: Iterable[Run],
    show: Show = "sinks",
    format: Format = "markdown",
    *,
    preset: Literal["paper", "upstream"] | None = None,
    phases: Literal["largest", "all"] | None = None,
    top: int = 10,
) -> TextTable:
    """One of the paper's tables of several runs.

    Args:
        runs: The runs; each gets a row or a block of rows.
        show: `sinks` (tables 1 and 2), `tokens` (table 3), `levels` (figure 2 in numbers),
            `positions` (figure 5 in numbers).
        format: The format of `str(table)`: `markdown`, `csv`, `latex`, `json`.
        preset: Classify the sinks by these rules instead of those of the scan.
        phases: Count the sinks of these phases instead of those chosen for the scan.
        top: For `tokens`: how many of the most frequent tokens of each run are listed.
    """
    if format not in ("markdown", "csv", "latex", "json"):
        raise RequestError(f"format={format!r}: expected 'markdown', 'csv', 'latex' or 'json'")
    texts = _native.table([run._native for run in runs], show, preset, phases, max(0, top))
    return TextTable(show, format, texts)


def report(
    runs: Iterable[Run | Path_], path: Path_, *, figures: Path_ | None = None, texts: int = 30
) -> ReportFiles:
    """Writes one self-contained page about runs, and each figure as SVG and CSV.

    Args:
        runs: Runs, or their directories.
        path: The page. An older report is replaced, any other file is not.
        figures: The directory for the figures. The default is `figures` next to the page.
        texts: How many traces of each run are shown as text.
    """
    dirs = [os.fspath(run.path if isinstance(run, Run) else run) for run in runs]
    page, files = _native.report(
        dirs, os.fspath(path), None if figures is None else os.fspath(figures), max(0, texts)
    )
    return ReportFiles(Path(page), tuple(Path(file) for file in files))


def _index(value: int, count: int, what: str) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        raise RequestError(f"{what} {value!r}: expected a whole number") from None
    if not -count <= index < count:
        raise RequestError(f"{what} {index} was asked for, but there are {count}, counted from 0")
    return index + count if index < 0 else index
