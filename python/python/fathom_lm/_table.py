"""Tables of a run as Arrow, and the paper's tables as text."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _native

Column = npt.NDArray[Any]
Format = Literal["markdown", "csv", "latex", "json"]


class Table:
    """A table of a run.

    It has Arrow's PyCapsule interface: `polars.DataFrame(table)`, `pyarrow.table(table)`,
    `pandas.DataFrame.from_arrow(table)` and DuckDB read it. Without any of them, `to_dict` returns
    NumPy columns.
    """

    __slots__ = ("_native", "name")

    name: str
    """`sinks`, `norms`, `tokens`, `measures` or `scores`."""

    def __init__(self, name: str, native: _native.Table) -> None:
        self.name = name
        self._native = native

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        # The protocol lets a producer ignore the requested schema; consumers then cast the result.
        return self._native.stream()

    def __arrow_c_schema__(self) -> Any:
        return self._native.schema()

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return self._native.columns()

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return self._native.nbytes

    def __len__(self) -> int:
        return len(self._native)

    def __getitem__(self, column: str) -> Column:
        """One column, `[rows]`, as in `to_dict`."""
        return self._column(column, None)

    def to_dict(self) -> dict[str, Column]:
        """The columns as NumPy arrays `[rows]`; copies.

        Missing floats are NaN. A column of whole numbers or truth values with missing values is
        `int64`, with -1 for those (in `norms`, `position` -1 is the average of the tokens that are
        not sinks). Texts and lists are arrays of objects: `str` or `None`, and arrays.
        """
        return {name: self._column(name, None) for name in self.columns}

    def _column(self, name: str, rows: int | None) -> Column:
        values, ends, valid = self._native.column(name, rows)
        if ends is not None:
            parts = np.empty(len(ends) - 1, dtype=object)
            for row in range(len(parts)):
                present = valid is None or bool(valid[row])
                parts[row] = values[ends[row] : ends[row + 1]] if present else None
            return parts
        if isinstance(values, list):
            texts = np.empty(len(values), dtype=object)
            texts[:] = values
            return texts
        numbers: Column = values
        if valid is None:
            return numbers
        if numbers.dtype.kind == "f":
            return np.where(valid, numbers, np.float32(np.nan))
        return np.where(valid, numbers.astype(np.int64), -1)

    def _head(self, rows: int) -> tuple[list[str], list[list[str]]]:
        columns = {name: self._column(name, rows) for name in self.columns}
        shown = min(rows, len(self))
        return self.columns, [
            [_shown(column[row]) for column in columns.values()] for row in range(shown)
        ]

    def __repr__(self) -> str:
        titles, rows = self._head(8)
        lines = [titles, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
        text = "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines
        )
        more = f"\n… {len(self) - len(rows):,} more rows" if len(self) > len(rows) else ""
        return f"Table({self.name}: {len(self):,} rows)\n{text}{more}"

    def _repr_html_(self) -> str:
        from html import escape

        titles, rows = self._head(12)
        head = "".join(f"<th>{escape(title)}</th>" for title in titles)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        return f"<b>{self.name}: {len(self):,} rows</b><table><tr>{head}</tr>{body}</table>" + (
            f"<p>… {len(self) - len(rows):,} more</p>" if len(self) > len(rows) else ""
        )


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, np.ndarray):
        shown = [_shown(item) for item in value[:6]]
        return f"[{', '.join(shown)}{', …' if len(value) > 6 else ''}]"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return repr(value) if isinstance(value, str) else str(value)


class TextTable:
    """One of the paper's tables: `str(table)`, `table.to_dict()`, or shown in a notebook."""

    __slots__ = ("_html", "_texts", "format", "show")

    show: str
    """Name of the table."""
    format: Format
    """The format of `str(table)`."""

    def __init__(self, show: str, format: Format, texts: tuple[str, str, str, str, str]) -> None:
        markdown, csv, latex, as_json, self._html = texts
        self._texts = {"markdown": markdown, "csv": csv, "latex": latex, "json": as_json}
        self.show = show
        self.format = format

    def __str__(self) -> str:
        return self._texts[self.format]

    def __repr__(self) -> str:
        return self._texts["markdown"].rstrip("\n")

    def _repr_html_(self) -> str:
        return self._html

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries; a missing value is `None`."""
        found: list[dict[str, Any]] = json.loads(self._texts["json"])
        return found

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns."""
        rows = self.rows()
        return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}
