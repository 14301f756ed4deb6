"""The stubs say what the compiled module is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def check(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=PACKAGE, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stubs_are_the_modules() -> None:
    check("mypy.stubtest", "fathom_lm._native", "--mypy-config-file", "pyproject.toml")


def test_mypy_is_content() -> None:
    check("mypy", "--strict", "-p", "fathom_lm")


def test_pyright_is_content() -> None:
    check("pyright", "--pythonpath", sys.executable)
