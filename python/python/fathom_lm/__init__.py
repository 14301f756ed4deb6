"""Activations, interventions and attention sinks of language models.

```python
import fathom_lm as fl

model = fl.Model("path-or-hub-id")
ids = model.encode("The capital of France is", chat_template=False)
logits, cache = model.run_with_cache(ids, ["resid_post.*", "sink_score.*"])
```

There is no batch axis: arrays are `[T, …]`. They are `float32`, read-only views of the engine's
memory.
"""

from . import adapters, demo
from ._bf16 import BFloat16, bf16
from ._cache import Cache
from ._encoded import Encoded
from ._errors import (
    BackendError,
    CheckpointError,
    DataError,
    EngineError,
    FathomError,
    FathomRemark,
    RequestError,
    UnsupportedError,
)
from ._generator import Generator
from ._stream import Generated, Stream, Update
from ._hooks import HookSite
from ._model import Model
from ._native import __version__
from ._remarks import Remark
from ._run import Explained, Figure, ReportFiles, Run, open_run, report, table
from ._scan import scan
from ._table import Table, TextTable

__all__ = [
    "BFloat16",
    "BackendError",
    "Cache",
    "CheckpointError",
    "DataError",
    "Encoded",
    "EngineError",
    "Explained",
    "FathomError",
    "FathomRemark",
    "Figure",
    "Generated",
    "Generator",
    "HookSite",
    "Model",
    "Remark",
    "ReportFiles",
    "RequestError",
    "Run",
    "Stream",
    "Table",
    "TextTable",
    "UnsupportedError",
    "Update",
    "__version__",
    "adapters",
    "bf16",
    "demo",
    "open_run",
    "report",
    "scan",
    "table",
]
