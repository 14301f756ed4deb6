"""A model: loading, text, passes."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import _encode, _hooks, _input, _names, _native, _positions, _refused, _remarks
from ._cache import Cache
from ._encoded import Encoded
from ._errors import RequestError, UnsupportedError
from ._hooks import Hooks
from ._input import Input
from ._names import NamesFilter
from ._positions import Positions
from ._remarks import Remark

Array = npt.NDArray[np.float32]
LogitRows = Literal["all", "last"]


class Model:
    """A language model, ready to be looked into: a HuggingFace checkpoint as it is, nothing folded.

    Args:
        path_or_hub_id: A checkpoint directory, or the hub id (`org/name`, `org/name@revision`) of one
            in the HuggingFace cache.
        precision: `"f32"`, the reference, or `"bf16"`: operands of matrix products, keys and values.
        threads: Threads to compute with; one per CPU this process may use unless said.
        adapter: A LoRA adapter in PEFT's format, merged into the weights: a directory or a hub id.
        chat_template: Whether text goes through the checkpoint's chat template, where it has one.
        system: A system message for conversations that have none.
        template_kwargs: Variables for the chat template, such as `{"enable_thinking": False}`.
        date: The day that templates are told it is: a date, `"YYYY-MM-DD"` or `"today"`. A fixed day
            unless said, so that ids do not change overnight.
        bos: Whether a bare text begins with BOS; unless said, as in HuggingFace transformers.
        name: What tables call the model, where that is not what it is found by.
        isa: The kernels' instruction set, as `fathom doctor` lists them; the best unless said.
        ids_only: Reads neither tokenizer nor chat template.
        strict: Refuses what would otherwise be a warning (`FathomRemark`), before weights are read.

    Several threads may run one model at the same time. A forked child cannot: it raises `EngineError`.

    Raises:
        RequestError: There is no such model, or an argument has no meaning.
        CheckpointError: A file of it cannot be used.
    """

    def __init__(
        self,
        path_or_hub_id: str | os.PathLike[str],
        *,
        precision: Literal["f32", "bf16"] = "f32",
        threads: int | None = None,
        adapter: str | os.PathLike[str] | None = None,
        chat_template: bool = True,
        system: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        date: str | datetime.date | None = None,
        bos: bool | None = None,
        name: str | None = None,
        isa: str | None = None,
        ids_only: bool = False,
        strict: bool = False,
    ) -> None:
        if threads is not None and not 1 <= threads <= 1024:
            raise RequestError(f"threads={threads}: expected 1..=1024")
        kwargs = None
        if template_kwargs is not None:
            kwargs = _input.to_json(dict(template_kwargs), "template_kwargs")
        self._strict = strict
        self._native = _native.Model(
            os.fspath(path_or_hub_id),
            name=name,
            precision=precision,
            threads=threads,
            isa=isa,
            adapter=None if adapter is None else os.fspath(adapter),
            chat_template=chat_template,
            ids_only=ids_only,
            system=system,
            template_kwargs=kwargs,
            date=date.isoformat()[:10] if isinstance(date, datetime.date) else date,
            bos=bos,
            strict=strict,
        )
        self._config = self._native.config()
        self._remarks = _remarks.read(self._native.remarks())
        _remarks.tell(self._remarks, strict, stacklevel=2)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self._native.name

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`, every default filled in; a copy."""
        return dict(self._config)

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return int(self._config["layers"])

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self._config["hidden"])

    @property
    def vocab(self) -> int:
        """Rows of the embedding: token ids are below."""
        return int(self._config["vocab"])

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return int(self._config["heads"])

    @property
    def precision(self) -> str:
        """`f32` or `bf16`."""
        return self._native.precision

    @property
    def engine(self) -> str:
        """Which kernels it computes with, such as `cpu avx512-bf16`."""
        return self._native.engine

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was ignored, repaired or is doubtful about its files."""
        return self._remarks

    def names(self, lens: bool = False) -> list[str]:
        """Every place of a pass that can be captured, in its order; with `lens` those that
        TransformerLens has too, by its names."""
        places = _names.every(self.layers, None)
        if not lens:
            return [_names.at(*place) for place in places]
        names = (_native.lens_name(*place) for place in places)
        return [name for name in names if name is not None]

    def encode(
        self,
        input: Input,
        *,
        chat_template: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """The ids of a text, messages or ids, up to where the answer begins.

        Args:
            input: A text, which a chat template takes as a message of the user; messages
                (`[{"role": "user", "content": …}, …]`); or token ids, which are checked.
            chat_template: `False` takes a text as it is, with the special tokens of bare text, where
                the model has a chat template.
            tools, documents, template_kwargs: What the chat template is given beside the messages.

        Returns:
            The ids, with what the template made of the text: nothing is added that it does not show.

        Raises:
            RequestError: What is no input, no tokens at all, two leading BOS, an id outside the
                vocabulary, no tokenizer for a text or no chat template for messages.
        """
        if isinstance(input, Encoded):
            return input
        return _encode.encode(
            self._native,
            input,
            chat_template,
            tools,
            documents,
            template_kwargs,
            has_chat_template=self._native.has_chat_template,
            strict=self._strict,
            stacklevel=2,
        )

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]] | int) -> str:
        """The text of token ids, special tokens included."""
        return self._native.decode(_input.as_ids([ids] if isinstance(ids, int) else ids))

    def tokens(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> list[str]:
        """What each token stands for in the middle of a text, leading space included; bytes that are
        no whole characters as `<0xE4>`, and `<id 17>` without a tokenizer."""
        array = _input.as_ids(ids)
        texts = self._native.tokens(array)
        return [f"<id {i}>" if text is None else text for i, text in zip(array.tolist(), texts)]

    def logits(self, input: Input, *, rows: LogitRows = "all") -> Array:
        """Logits `[T, vocab]`, row `t` those of the token after position `t`; with `rows="last"` only
        the last, `[1, vocab]`."""
        logits, _ = self._run(input, rows=rows)
        assert logits is not None
        return logits

    def __call__(self, input: Input) -> Array:
        """As `logits`."""
        return self.logits(input)

    @overload
    def run_with_cache(
        self,
        input: Input,
        names_filter: NamesFilter = None,
        positions: Positions = None,
        stop_at_layer: int | None = None,
        *,
        logits: LogitRows = "all",
        edits: Sequence[str] = (),
        fwd_hooks: Hooks = (),
    ) -> tuple[Array, Cache]: ...
    @overload
    def run_with_cache(
        self,
        input: Input,
        names_filter: NamesFilter = None,
        positions: Positions = None,
        stop_at_layer: int | None = None,
        *,
        logits: None,
        edits: Sequence[str] = (),
        fwd_hooks: Hooks = (),
    ) -> tuple[Array | None, Cache]: ...
    def run_with_cache(
        self,
        input: Input,
        names_filter: NamesFilter = None,
        positions: Positions = None,
        stop_at_layer: int | None = None,
        *,
        logits: LogitRows | None = "all",
        edits: Sequence[str] = (),
        fwd_hooks: Hooks = (),
    ) -> tuple[Array | None, Cache]:
        """One pass, and what happens inside it.

        Args:
            input: As for `encode`.
            names_filter: Which places to keep: `"resid_post.3"`, `"mlp_out.*"` or `"mlp_out"` for all
                layers, TransformerLens' `"blocks.3.hook_resid_post"`, a list of such names, or a
                function of a name, which is asked with both names of a place and keeps it where
                either is wanted. `None` keeps every place but `attn_weights`, which are `[T, T]`.
            positions: Which positions to keep; a cache's rows are these.
            stop_at_layer: End before this layer, as TransformerLens does (negative from the end):
                nothing from there on is computed.
            logits: Which rows of logits to compute. With `None` the pass ends after the last layer
                that is kept.
            edits: Changes, as `run_with_edits` takes them; the cache shows what the pass goes on with.
            fwd_hooks: Hooks, as `run_with_hooks` takes them.

        Returns:
            Logits `[T, vocab]` (`[1, vocab]` for the last only, `None` for none), or with
            `stop_at_layer` the residual stream `[T, hidden]` that the layer would read; and the cache.
            Capturing changes no bit of either.
        """
        output, cache = self._run(
            input,
            names=names_filter,
            positions=positions,
            stop=stop_at_layer,
            edits=edits,
            hooks=fwd_hooks,
            rows=logits,
            capture=True,
        )
        return output, cache

    def run_with_hooks(
        self,
        input: Input,
        fwd_hooks: Hooks,
        *,
        rows: LogitRows = "all",
    ) -> Array:
        """Logits `[T, vocab]` of a pass in which functions see, and may replace, what it computes.

        Each hook is a pair of a name (or a function of names) and `fn(values, site)`, called once per
        place with the values of all positions, shaped as in a cache: `[T, hidden]`, heads
        `[heads, T, head_dim]`. It returns `None` to leave them or an array to replace them. `values`
        is read-only: change a copy and return it. Hooks of one place are called in order.

        The text is run in one step, not in chunks: every activation of a layer is held for all
        positions at once, some `4 · T · (4 · hidden + 2 · intermediate)` bytes.

        Raises:
            RequestError: An unknown place, or a replacement that does not fit.
            Exception: Whatever a hook raises ends the pass and comes back as it is.
        """
        logits, _ = self._run(input, hooks=fwd_hooks, rows=rows)
        assert logits is not None
        return logits

    def run_with_edits(
        self, input: Input, edits: Sequence[str], *, rows: LogitRows = "all"
    ) -> Array:
        """Logits `[T, vocab]` of a pass in which something is changed, said beforehand.

        An edit is `SITE.LAYER[COLUMNS]@POSITIONS=CHANGE`: `mlp_out.22@1042=zero`,
        `resid_post.5@3..9=scale(0.5)`, `mlp_elementwise.3[17,40]@*=zero`. The change is `zero`,
        `scale(X)`, `clamp(NORM)`, `copy(POSITION)`, `mean(POSITIONS)`, `replace(FILE:TENSOR:ROW)` or
        `add(FILE:TENSOR:ROW)`. Edits have no order: two that would conflict are refused.
        """
        logits, _ = self._run(input, edits=edits, rows=rows)
        assert logits is not None
        return logits

    def _run(
        self,
        input: Input,
        *,
        names: NamesFilter = None,
        positions: Positions = None,
        stop: int | None = None,
        edits: Sequence[str] = (),
        hooks: Hooks = (),
        rows: LogitRows | None = "all",
        capture: bool = False,
    ) -> tuple[Array | None, Cache]:
        if rows not in ("all", "last", None):
            raise RequestError(f"logits={rows!r}: expected 'all', 'last' or None")
        if isinstance(edits, str):
            edits = [edits]
        ids = self.encode(input).ids
        end = None if stop is None else stop + self.layers if stop < 0 else stop
        kept = _positions.resolve(positions, len(ids))
        output, arrays = self._native.run(
            ids,
            names=_names.chosen(names, self.layers, end) if capture else [],
            positions=kept,
            edits=list(edits),
            hooks=_hooks.prepare(self._native, self.layers, len(ids), hooks, end),
            stop_at_layer=stop,
            logits=rows or "none",
        )
        return output, Cache(dict(arrays), None if kept is None else tuple(kept))

    def __getattr__(self, name: str) -> Any:
        refused = _refused.of_model(name)
        if refused is not None:
            raise refused
        raise AttributeError(f"a Model has no attribute `{name}`")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a model cannot be pickled: load it in each process that needs it")

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}: {self._config['architecture']}, {self.layers} layers, "
            f"hidden {self.hidden}, vocab {self.vocab}, {self.precision}, {self.engine})"
        )
