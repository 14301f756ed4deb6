"""Progress: a bar in a terminal, a line of text in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Union

ProgressFunction = Callable[[str, str, int, int], Any]
"""`fn(step, unit, done, total)`, such as `("scanning", "tokens", 512, 9000)`. An exception that it
raises stops the work."""
Progress = Union[bool, ProgressFunction]
"""A function to call; or `True`: a bar if stderr is a terminal, a line in a notebook, otherwise
nothing."""


class Bar:
    """Shows progress, and removes it at the end."""

    def __init__(self, progress: Progress) -> None:
        self._function = progress if callable(progress) else None
        self._display: Any = None
        self._notebook = bool(progress) and _in_notebook()
        self._terminal = bool(progress) and not self._notebook and _is_terminal()
        self._began = time.monotonic()
        self._step = ""
        self._drawn = False

    def function(self) -> ProgressFunction | None:
        """The function to call with progress, if any."""
        if self._function is not None:
            return self._function
        return self._show if self._notebook or self._terminal else None

    def _show(self, step: str, unit: str, done: int, total: int) -> None:
        if step != self._step:
            self._step, self._began = step, time.monotonic()
        seconds = time.monotonic() - self._began
        share = min(1.0, done / total) if total else 0.0
        text = f"{step} {done:,}/{total:,} {unit}"
        if done and seconds > 0.5:
            left = seconds * (1 - share) / share if share else 0.0
            text += f"  {done / seconds:,.0f}/s  {left:.0f} s left"
        if self._notebook:
            self._display_text(f"{text} ({share:.0%})")
        else:
            filled = round(share * 24)
            sys.stderr.write(f"\r\x1b[2K{text}  {'█' * filled}{'░' * (24 - filled)}")
            sys.stderr.flush()
        self._drawn = True

    def _display_text(self, text: str) -> None:
        display, data = sys.modules["IPython.display"].display, {"text/plain": text}
        if self._display is None:
            self._display = display(data, raw=True, display_id=True)
        else:
            self._display.update(data, raw=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._drawn and self._terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        if self._drawn and self._notebook:
            self._display_text("")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _in_notebook() -> bool:
    # IPython is not imported here: in a notebook it is already.
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return hasattr(shell, "kernel") and "IPython.display" in sys.modules
