"""Scans of traces for attention sinks."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union

import numpy as np

from . import _input, _native, _remarks
from ._encoded import Encoded
from ._errors import RequestError
from ._model import Model
from ._progress import Bar, Progress
from ._run import Run

Traces = Union[str, "os.PathLike[str]", Iterable[Any]]
"""A path; an iterable of traces (texts, messages, rows of a data set, token ids); an Arrow
table."""


def scan(
    model: Model,
    traces: Traces,
    out: str | os.PathLike[str] | None = None,
    attention: bool = True,
    all_heads: bool = False,
    preset: Literal["paper", "upstream"] = "paper",
    threshold: float | None = None,
    rise: float | None = None,
    reference: Sequence[int] = (0,),
    max_tokens: int | None = None,
    limit: int | None = None,
    resume: bool = False,
    progress: Progress = True,
    *,
    phases: Literal["largest", "all"] = "largest",
    skip_bad_lines: bool = False,
    prompt_field: str | None = None,
    output_field: str | None = None,
) -> Run:
    """Runs each trace through the model once and finds its attention sinks, as `fathom scan` does.

    Args:
        model: The model.
        traces: A JSONL, JSON or Parquet file, compressed or not, or a directory or pattern of such
            files. Or a list or iterator of traces, each of which is a text, encoded without the
            chat template (as by `model.encode(text, chat_template=False)`); messages that end with
            the assistant's answer; a dictionary with the fields of a data set's row, such as
            `{"prompt": …, "output": …}`; or token ids. Or an Arrow table or reader of such rows
            (anything with `__arrow_c_stream__`: polars, pyarrow, pandas, DuckDB).
        out: The run's directory, new or empty. Without one, it is temporary and removed with the
            run.
        attention: Measure sink scores too; `[T, T]` is never in memory.
        all_heads: With `attention`: store each head's score for every token, not only for sinks.
        preset: The rules of the paper, or of its published scripts.
        threshold: A token is a sink where its cosine with the reference exceeds this. The default
            is the preset's, 0.95 or 0.9.
        rise: The reference is a primary sink if its norm rises, from one layer to the next, by at
            least this many times the mean norm of the other tokens. The default is 5.
        reference: Positions that may be the reference sink. The one with the largest mean norm over
            the layers is chosen.
        max_tokens: Scan only the first tokens of each trace.
        limit: Scan only the first traces.
        resume: Continue the run in `out`.
        progress: `True`: a bar if stderr is a terminal, a line in a notebook. Or a function
            `(step, unit, done, total)`.
        phases: Which sinks to list if the reference's norm is large in several runs of layers:
            those of the run with the largest rise, or all. All are stored, and `fl.table` has the
            same argument.
        skip_bad_lines: Skip rows of files that cannot be read.
        prompt_field, output_field: The fields of prompt and output in rows of files.

    Returns:
        The run. Ctrl-C stops a scan within a layer; with `out`, the run can be resumed.

    Raises:
        DataError: A trace that cannot be used; the message says which.
        CheckpointError: `out` holds something else.
        RequestError: An argument that has no meaning.
    """
    if not isinstance(model, Model):
        raise RequestError(f"model is a {type(model).__name__}: expected an fl.Model")
    if threshold is not None and not 0 < threshold < 1:
        raise RequestError(f"threshold={threshold}: expected a number between 0 and 1")
    if rise is not None and not (rise > 0 and math.isfinite(rise)):
        raise RequestError(f"rise={rise}: expected a number above 0")
    if all_heads and not attention:
        raise RequestError("all_heads=True needs attention=True")
    positions = sorted({int(position) for position in reference})
    if not positions or not all(0 <= position < 256 for position in positions):
        raise RequestError(f"reference={list(reference)}: expected positions from 0 to 255")
    for name, number in (("max_tokens", max_tokens), ("limit", limit)):
        if number is not None and not 1 <= number < 1 << 32:
            raise RequestError(f"{name}={number}: expected at least 1")
    if resume and out is None:
        raise RequestError("resume=True needs the run's directory: pass out=")
    read = read_traces(model, traces, limit, skip_bad_lines, prompt_field, output_field)

    def report_remarks(raw: list[_remarks.RawRemark]) -> None:
        _remarks.warn(_remarks.read(raw), model._strict)

    with Bar(progress) as bar:
        native = _native.scan(
            model._native,
            read,
            preset=preset,
            phases=phases,
            threshold=threshold,
            rise=rise,
            reference=positions,
            attention=attention,
            all_heads=all_heads,
            max_tokens=max_tokens,
            limit=limit,
            out=None if out is None else os.fspath(out),
            resume=resume,
            report_remarks=report_remarks,
            progress=bar.function(),
        )
    return Run(native, model, read)


def read_traces(
    model: Model,
    traces: Traces,
    limit: int | None,
    skip_bad_lines: bool,
    prompt_field: str | None,
    output_field: str | None,
) -> _native.Traces:
    """The traces as token ids."""
    if isinstance(traces, (str, os.PathLike)):
        return _native.Traces.read(
            model._native,
            os.fspath(traces),
            limit=limit,
            skip_bad_lines=skip_bad_lines,
            prompt_field=prompt_field,
            output_field=output_field,
        )
    if skip_bad_lines or prompt_field is not None or output_field is not None:
        raise RequestError(
            "skip_bad_lines, prompt_field and output_field are for files: change traces in memory "
            "instead"
        )
    if hasattr(traces, "__arrow_c_stream__"):
        return _native.Traces.from_rows(model._native, _native.arrow_rows(traces, limit))
    if isinstance(traces, Mapping) or not isinstance(traces, Iterable):
        raise RequestError(
            f"traces is a {type(traces).__name__}: expected a path, an iterable of traces, or an "
            "Arrow table"
        )
    if isinstance(traces, Encoded):
        traces = [traces]
    rows = [
        _input.to_json(_row(model, trace, number), f"trace {number}")
        for number, trace in enumerate(itertools.islice(traces, limit))
    ]
    return _native.Traces.from_rows(model._native, rows)


def _row(model: Model, trace: Any, number: int) -> Any:
    """A trace as a row of a data set."""
    if isinstance(trace, str):
        return {"input_ids": model.encode(trace, chat_template=False).tolist()}
    if isinstance(trace, Encoded):
        return {"input_ids": trace.tolist(), "prompt_len": trace.prompt_len}
    if isinstance(trace, Mapping):
        if "role" in trace:
            raise RequestError(f"trace {number} is one message: expected a list of messages")
        return {key: _plain(value) for key, value in trace.items()}
    if isinstance(trace, Sequence) and len(trace) > 0:
        if all(isinstance(message, Mapping) for message in trace):
            return {"messages": [_plain(message) for message in trace]}
    if isinstance(trace, (int, np.integer)):
        raise RequestError(
            f"trace {number} is a number: expected a list of traces; one trace of ids is [ids]"
        )
    return {"input_ids": _input.as_ids(trace).tolist()}


def _plain(value: Any) -> Any:
    """`value` with arrays as lists, which JSON can hold."""
    if isinstance(value, Encoded):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
