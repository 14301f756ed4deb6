"""The types that users see are right: the stub is the compiled module, and type checkers agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CALLS = "tests/typed_calls.py"


def check(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=PACKAGE, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stubs_are_the_modules() -> None:
    check("mypy.stubtest", "fathom_lm._native", "--mypy-config-file", "pyproject.toml")


def test_mypy_accepts_the_package() -> None:
    check("mypy", "--strict", "-p", "fathom_lm")


def test_mypy_infers_the_types_of_calls() -> None:
    check("mypy", "--strict", CALLS)


def test_pyright_accepts_the_package() -> None:
    check("pyright", "--pythonpath", sys.executable)


def test_pyright_infers_the_types_of_calls() -> None:
    check("pyright", "--pythonpath", sys.executable, CALLS)
