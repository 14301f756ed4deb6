"""Models that come with the package: nothing is downloaded.

```python
from fathom_lm import demo

planted = demo.plant("planted")          # a model whose attention sinks are known
pair = demo.trained_pair("pair")         # a target and a draft that were really trained
```
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import FathomError, RequestError

__all__ = ["Planted", "TrainedPair", "plant", "trained_pair"]


@dataclass(frozen=True)
class Planted:
    """A planted model and what is known of it."""

    model: Path
    """The checkpoint's directory, for `fl.Model`."""
    traces: Path
    """Traces with sinks in them, for `fl.scan`."""
    truth: dict[str, Any]
    """`truth.json`: for each trace, in `sequences`, its `input_ids`, its `sinks` (position, class,
    layers) and its `decoys`, which are no sinks although they look like some."""


@dataclass(frozen=True)
class TrainedPair:
    """Two small models that were trained on one vocabulary."""

    target: Path
    """The larger one's directory: 2 layers, vocabulary of 4 096."""
    draft: Path
    """The directory of the one that drafts for it."""


def plant(directory: str | os.PathLike[str], *, seed: int = 0, traces: int = 6) -> Planted:
    """Writes a small model with attention sinks at known places: 20 layers, with tokenizer and chat
    template.

    Args:
        directory: Where; new or empty.
        seed: The same seed gives the same bytes.
        traces: How many traces to write beside it.

    Raises:
        RequestError: A directory that is not empty, or another argument without meaning.
    """
    out = Path(directory)
    _fathom("plant", "--out", str(out), "--seed", str(seed), "--traces", str(traces))
    truth = json.loads((out / "truth.json").read_text(encoding="utf-8"))
    return Planted(model=out, traces=out / "traces.jsonl", truth=truth)


def trained_pair(directory: str | os.PathLike[str]) -> TrainedPair:
    """Writes a target and a draft model (4 MB) to `directory/target` and `directory/draft`.

    Raises:
        RequestError: A directory that is not empty.
        FathomError: What was written did not pass the check of `fathom demo`.
    """
    out = Path(directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out}: is not an empty directory; the models are written to one only")
    pair = TrainedPair(target=out / "target", draft=out / "draft")
    # The demo writes the pair, and checks on this machine that it generates what it should.
    with tempfile.TemporaryDirectory(prefix="fathom-pair-") as temporary:
        demo = Path(temporary) / "demo"
        _fathom("demo", "--out", str(demo), "--json")
        for made, wanted in (
            (demo / "pair" / "target", pair.target),
            (demo / "pair" / "draft", pair.draft),
        ):
            shutil.copytree(made, wanted)
    return pair


def _fathom(*arguments: str) -> None:
    """Runs the command line in a process of its own, whose output nobody sees."""
    command = [sys.executable, "-m", "fathom_lm", *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return
    sentence = done.stderr.strip().removeprefix("fathom: error: ")
    raise (RequestError if done.returncode == 2 else FathomError)(sentence or done.stdout.strip())
