"""The command `fathom` in the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fathom_lm as fl


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fathom_lm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_is_the_binary() -> None:
    version = run("--version")
    assert version.returncode == 0 and version.stdout.strip().endswith(fl.__version__)
    assert "Usage: fathom" in run("--help").stdout
    usage = run("scan", "--nonsense")
    assert usage.returncode == 2 and "--nonsense" in usage.stderr and usage.stdout == ""
    refused = run("capture", "--model", "/nowhere", "--ids", "x", "--sites", "q", "--out", "y")
    assert refused.returncode == 2 and refused.stderr.startswith("fathom: error: ")
    assert "Traceback" not in refused.stderr


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).parent / "fathom"
    done = subprocess.run([script, "doctor", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("{"), done.stderr
