"""Trained models, and helpers that run the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
DRAFT = FIXTURES / "models" / "draft"
WEAK = FIXTURES / "models" / "draft-weak"


def fathom(*arguments: Any, stdin: str | None = None) -> str:
    """The standard output of the package's command."""
    done = subprocess.run(
        [sys.executable, "-m", "fathom_lm", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(directory: Path) -> dict[str, bytes]:
    """The files below a directory."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}
