"""Small models that come with the package; nothing is downloaded.

```python
from fathom_lm import demo

planted = demo.plant("planted")          # a model whose attention sinks are known
pair = demo.trained_pair("pair")         # a target and a draft, both trained
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
    """A planted model and its known sinks."""

    model: Path
    """The checkpoint's directory, for `fl.Model`."""
    traces: Path
    """Traces with sinks in them, for `fl.scan`."""
    truth: dict[str, Any]
    """`truth.json`: `sequences` has for each trace its `input_ids`, its `sinks` (position, class,
    layers) and its `decoys`, tokens that resemble sinks."""


@dataclass(frozen=True)
class TrainedPair:
    """Two small trained models with the same vocabulary."""

    target: Path
    """Directory of the larger model: 2 layers, vocabulary of 4 096."""
    draft: Path
    """Directory of the draft model."""


def plant(directory: str | os.PathLike[str], *, seed: int = 0, traces: int = 6) -> Planted:
    """Writes a small model with attention sinks at known places: 20 layers, with a tokenizer and a
    chat template.

    Args:
        directory: A new or empty directory.
        seed: The same seed makes the same files.
        traces: How many traces to write.

    Raises:
        RequestError: The directory is not empty, or an argument has no meaning.
    """
    out = Path(directory)
    _fathom("plant", "--out", str(out), "--seed", str(seed), "--traces", str(traces))
    truth = json.loads((out / "truth.json").read_text(encoding="utf-8"))
    return Planted(model=out, traces=out / "traces.jsonl", truth=truth)


def trained_pair(directory: str | os.PathLike[str]) -> TrainedPair:
    """Writes a target and a draft model (4 MB) to `directory/target` and `directory/draft`.

    Raises:
        RequestError: The directory is not empty.
        FathomError: The models did not pass the check of `fathom demo`.
    """
    out = Path(directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out}: is not an empty directory, as the models need")
    pair = TrainedPair(target=out / "target", draft=out / "draft")
    # The demo writes the pair and checks that it generates the expected text.
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
    """Runs the command line in another process, without showing its output."""
    command = [sys.executable, "-m", "fathom_lm", *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return
    sentence = done.stderr.strip().removeprefix("fathom: error: ")
    raise (RequestError if done.returncode == 2 else FathomError)(sentence or done.stdout.strip())
