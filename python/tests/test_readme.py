"""The README's examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def test_the_examples_run(
    planted_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "planted").symlink_to(planted_dir)
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    norms = names["norms"]
    assert norms[0] > 5 * norms[-1], "the first token is no sink"
    assert "tokens:" in capsys.readouterr().out
