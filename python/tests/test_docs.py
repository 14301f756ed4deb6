"""The pages in `docs/`: examples run, and names and the first figure are right."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import fathom_lm as fl
from fathom_lm import adapters, demo

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the examples run, with its models."""
    home = tmp_path_factory.mktemp("docs")
    demo.plant(home / "planted")
    demo.trained_pair(home / "pair")
    return home


@pytest.mark.parametrize("page", ["index", "coming-from", "runs", "generation"])
def test_the_examples_run(page: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)


def test_every_lens_name_of_the_table_is_known(home: Path) -> None:
    model = fl.Model(home / "planted")
    names = set(model.names())
    text = (DOCS / "coming-from.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.3)` \| `(blocks\.3\.[\w.]+)` \|", text, flags=re.MULTILINE)
    assert len(rows) > 10
    _, cache = model.run_with_cache("hello", [name for _, name in rows])
    for ours, lens in rows:
        assert ours in names and cache[ours] is cache[lens]


def documented() -> list[Any]:
    """The public functions and classes, and the classes' methods."""
    modules = [fl, adapters, demo]
    found = [getattr(module, name) for module in modules for name in module.__all__]
    found = [one for one in found if inspect.isclass(one) or inspect.isfunction(one)]
    classes = [one for one in found if inspect.isclass(one)]
    methods = [
        method for one in classes for method in vars(one).values() if inspect.isfunction(method)
    ]
    return [one for one in [*found, *methods] if one.__doc__ and "Args:" in one.__doc__]


@pytest.mark.parametrize("what", documented(), ids=lambda what: what.__qualname__)
def test_arguments_in_docstrings_are_arguments(what: Any) -> None:
    section = inspect.cleandoc(what.__doc__).split("Args:\n")[1].split("\n\n")[0]
    lines = re.findall(r"^    (\*{0,2}\w[\w, *]*):", section, flags=re.MULTILINE)
    names = [name.strip().lstrip("*") for line in lines for name in line.split(",")]
    assert names
    taken = inspect.signature(what).parameters
    assert [name for name in names if name not in taken] == []


def test_the_first_figure_is_what_the_first_page_shows(home: Path) -> None:
    """Except for the last digit, which depends on the CPU."""
    run = fl.scan(fl.Model(home / "planted"), home / "planted" / "traces.jsonl")
    number = r"-?\d+(?:\.\d+)?"
    shown = (DOCS / "fig1-norms.svg").read_text(encoding="utf-8")
    drawn = str(run.figure("norms"))
    assert re.sub(number, "N", drawn) == re.sub(number, "N", shown)
    pairs = zip(re.findall(number, drawn), re.findall(number, shown), strict=True)
    assert all(float(a) == pytest.approx(float(b), rel=0.02, abs=0.21) for a, b in pairs)
