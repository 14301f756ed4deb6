"""The notebooks run from top to bottom, each in its own process, and print what is stored in them.

`python tests/test_notebooks.py` runs them all and stores what they print, without the figures and
tables, which are large. Text in **bold** in a notebook must be in its output.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: Any) -> str:
    return "".join(cell["source"])


def printed(cell: Any) -> str:
    """The stored output of a code cell."""
    streams = [out for out in cell["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(out["text"]) for out in streams if out["name"] == "stdout")


def run_with_nbclient(notebook: Any) -> list[str]:
    """With Jupyter."""
    import nbclient
    import nbformat

    made = nbformat.reads(json.dumps(notebook), as_version=4)
    nbclient.NotebookClient(made, timeout=600).execute()
    return [printed(cell) for cell in made["cells"] if cell["cell_type"] == "code"]


def run_plainly(notebook: Any) -> list[str]:
    """Without Jupyter: the cells in order; a last expression is formatted as in a notebook."""
    names: dict[str, Any] = {"__name__": "__main__"}
    texts = []
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        tree = ast.parse(source(cell), filename=f"cell {number}")
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = None if last is None else eval(compile(last, f"cell {number}", "eval"), names)
        for view in ("_repr_html_", "_repr_svg_"):
            if hasattr(value, view):
                assert getattr(value, view)().strip().startswith("<"), f"cell {number}: {view}"
        texts.append(out.getvalue())
    return texts


def jupyter_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("nbclient", "nbformat", "ipykernel"))


def execute(path: Path) -> list[str]:
    """The output of each code cell, in a new process with an empty HuggingFace cache."""
    with tempfile.TemporaryDirectory() as empty:
        env = dict(os.environ, HF_HOME=empty, HF_HUB_CACHE=empty, TMPDIR=empty)
        command = [sys.executable, "-W", "error::UserWarning", __file__, "--cells", str(path)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, cwd=empty, check=False
        )
    assert done.returncode == 0, f"{path.name}:\n{done.stderr[-4000:]}"
    texts: list[str] = json.loads(done.stdout.splitlines()[-1])
    return texts


def check(path: Path) -> None:
    notebook = read(path)
    texts = execute(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any(texts), "it prints nothing"
    for cell, text in zip(cells, texts, strict=True):
        assert text == printed(cell), f"{path.name}: not what is printed by\n{source(cell)}"
        assert all(out["output_type"] == "stream" for out in cell["outputs"]), "outputs to clear"
    everything = "\n".join(texts)
    prose = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    claims = [" ".join(claim.split()) for claim in re.findall(r"\*\*(.+?)\*\*", prose, re.DOTALL)]
    assert claims, "it claims nothing"
    for claim in claims:
        assert claim in everything, f"{path.name} says {claim!r}, and does not print it"


def test_there_are_four() -> None:
    assert len(NOTEBOOKS) == 4


def test_find_sinks() -> None:
    check(NOTEBOOKS[0])


def test_explain_one() -> None:
    check(NOTEBOOKS[1])


def test_write_losslessly() -> None:
    check(NOTEBOOKS[2])


def test_base_and_tuned() -> None:
    check(NOTEBOOKS[3])


def update(path: Path) -> None:
    """Stores the cells' output in the file."""
    notebook = read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, text in zip(cells, execute(path), strict=True):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell.update(execution_count=None, outputs=[stream] if text else [])
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cells"]:
        run = run_with_nbclient if jupyter_is_installed() else run_plainly
        print(json.dumps(run(read(Path(sys.argv[2])))))
    else:
        for notebook_path in NOTEBOOKS:
            update(notebook_path)
