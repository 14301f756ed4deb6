"""A model: loading, text, passes."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import _encode, _hooks, _input, _names, _native, _positions, _refused, _remarks
from ._cache import Cache
from ._encoded import Encoded
from ._errors import FathomError, RequestError, UnsupportedError
from ._hooks import Hooks
from ._input import Input, Inputs
from ._names import NamesFilter
from ._options import PathLike, Precision, check_range, load_options, path
from ._positions import Positions
from ._remarks import Remark

Array = npt.NDArray[np.float32]
LogitRows = Literal["all", "last"]


class Model:
    """A language model from a HuggingFace checkpoint, with its weights as they are: no layer norm
    is folded into them and nothing is centred.

    Args:
        path_or_hub_id: A checkpoint directory, or the hub id (`org/name`, `org/name@revision`) of a
            checkpoint in the HuggingFace cache.
        precision: `"f32"`, the reference; or `"bf16"`, which rounds the operands of matrix products
            and the stored keys and values.
        threads: Threads to compute with. The default is one per CPU that this process may use.
        adapter: A LoRA adapter in PEFT's format to merge into the weights: a directory or a hub id.
        chat_template: Whether text is rendered by the checkpoint's chat template, if it has one.
        system: A system message for conversations that have none.
        template_kwargs: Variables of the chat template, such as `{"enable_thinking": False}`.
        date: The current day for chat templates: a date, `"YYYY-MM-DD"` or `"today"`. The default
            is a fixed day, so that ids do not change from day to day.
        bos: Whether bare text begins with BOS. The default is what HuggingFace transformers does.
        name: The model's name in tables, instead of its path or hub id.
        isa: The kernels' instruction set, one of those that `fathom doctor` lists. The default is
            the fastest.
        ids_only: Do not read the tokenizer and the chat template.
        strict: Raise an error for what is a warning (`FathomRemark`) otherwise, before the weights
            are read.

    Ctrl-C stops the loading before the next tensor.

    Several threads may run one model at the same time. A forked child cannot: it gets an
    `EngineError`.

    Raises:
        RequestError: There is no such model, or an argument has no meaning.
        CheckpointError: One of its files cannot be used.
    """

    def __init__(
        self,
        path_or_hub_id: PathLike,
        *,
        precision: Precision = "f32",
        threads: int | None = None,
        adapter: PathLike | None = None,
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
        check_range("threads", threads, 1024)
        options = load_options(
            precision=precision,
            chat_template=chat_template,
            system=system,
            template_kwargs=template_kwargs,
            date=date,
            bos=bos,
            isa=isa,
        )
        self._strict = strict
        self._native = _native.Model(
            path(path_or_hub_id),
            options=options,
            adapter=path(adapter),
            name=name,
            threads=threads,
            ids_only=ids_only,
            strict=strict,
        )
        self._config = self._native.config()
        self._remarks = _remarks.read(self._native.remarks())
        _remarks.warn(self._remarks, strict)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self._native.name

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the config with every default filled in.

        `config["rope"]` has `theta`, `rotary_dim`, `kind`, which is HuggingFace's `rope_type`
        (`default`, `linear`, `dynamic`, `yarn`, `longrope`, `llama3`), and the parameters of that
        kind by HuggingFace's names.
        """
        return copy.deepcopy(self._config)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self._config["layers"])

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self._config["hidden"])

    @property
    def vocab(self) -> int:
        """Rows of the embedding. Token ids are smaller than this."""
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
        """The kernels it computes with, such as `cpu avx512-bf16`."""
        return self._native.engine

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was ignored, repaired or is doubtful about its files."""
        return self._remarks

    def names(self, lens: bool = False) -> list[str]:
        """All places of a pass that can be captured, in the order of the pass. With `lens`, only
        those that TransformerLens has too, by its names."""
        places = _names.every(self.layers, None)
        if not lens:
            return [_names.at(*place) for place in places]
        names = (_native.lens_name(*place) for place in places)
        return [name for name in names if name is not None]

    @overload
    def encode(
        self,
        input: Input,
        *,
        chat_template: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded: ...
    @overload
    def encode(
        self,
        input: Inputs,
        *,
        chat_template: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Encoded]: ...
    def encode(
        self,
        input: Input | Inputs,
        *,
        chat_template: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded | list[Encoded]:
        """The ids of a text, messages or ids, up to where the answer begins.

        Args:
            input: A text, which the chat template renders as a user message; messages
                (`[{"role": "user", "content": …}, …]`); or token ids, which are checked. Or a list
                of such traces; a list of ints is one trace, and so is a list of messages.
            chat_template: `False` encodes a text without the model's chat template, with the
                special tokens of bare text.
            tools, documents, template_kwargs: Passed to the chat template with the messages.

        Returns:
            The ids, including every token that the template or the tokenizer added, and the text
            that the template rendered. For a list of traces, a list of results.

        Raises:
            RequestError: The input is of another type, is empty, starts with two BOS, or has an id
                outside the vocabulary; or a text was given without a tokenizer, or messages without
                a chat template.
        """

        def one(trace: Any) -> Encoded:
            return self._encode(trace, chat_template, tools, documents, template_kwargs)

        return self._encode_each(input, one)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]] | int) -> str:
        """The text of token ids, including special tokens."""
        return self._native.decode(_input.as_ids([ids] if isinstance(ids, int) else ids))

    def tokens(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> list[str]:
        """The text of each token as it is in the middle of a text, with its leading space. Bytes
        that are not whole characters are shown as `<0xE4>`. Without a tokenizer, tokens are
        `<id 17>`."""
        array = _input.as_ids(ids)
        texts = self._native.tokens(array)
        return [f"<id {i}>" if text is None else text for i, text in zip(array.tolist(), texts)]

    @overload
    def logits(self, input: Input, *, rows: LogitRows = "all") -> Array: ...
    @overload
    def logits(self, input: Inputs, *, rows: LogitRows = "all") -> list[Array]: ...
    def logits(self, input: Input | Inputs, *, rows: LogitRows = "all") -> Array | list[Array]:
        """Logits `[T, vocab]`; row `t` is for the token after position `t`. With `rows="last"`,
        only the last row, `[1, vocab]`. For a list of traces, a list of arrays."""
        return self._logits_of_each(input, rows=rows)

    @overload
    def __call__(self, input: Input) -> Array: ...
    @overload
    def __call__(self, input: Inputs) -> list[Array]: ...
    def __call__(self, input: Input | Inputs) -> Array | list[Array]:
        """The same as `logits`."""
        return self._logits_of_each(input, rows="all")

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
    @overload
    def run_with_cache(
        self,
        input: Inputs,
        names_filter: NamesFilter = None,
        positions: Positions = None,
        stop_at_layer: int | None = None,
        *,
        logits: LogitRows = "all",
        edits: Sequence[str] = (),
        fwd_hooks: Hooks = (),
    ) -> list[tuple[Array, Cache]]: ...
    @overload
    def run_with_cache(
        self,
        input: Inputs,
        names_filter: NamesFilter = None,
        positions: Positions = None,
        stop_at_layer: int | None = None,
        *,
        logits: None,
        edits: Sequence[str] = (),
        fwd_hooks: Hooks = (),
    ) -> list[tuple[Array | None, Cache]]: ...
    def run_with_cache(
        self,
        input: Input | Inputs,
        names_filter: NamesFilter = None,
        positions: Positions = None,
        stop_at_layer: int | None = None,
        *,
        logits: LogitRows | None = "all",
        edits: Sequence[str] = (),
        fwd_hooks: Hooks = (),
    ) -> Any:
        """One pass, with the activations inside it.

        Args:
            input: As for `encode`.
            names_filter: The places to capture: `"resid_post.3"`, `"mlp_out.*"` or `"mlp_out"` for
                all layers, TransformerLens' `"blocks.3.hook_resid_post"`, a list of such names, or
                a function of a name, which is called with both names of a place and captures it if
                it returns true for either. `None` captures every place except `attn_weights`, which
                are `[T, T]`.
            positions: The positions to capture; the cache's rows are these.
            stop_at_layer: Stop before this layer, as in TransformerLens (negative from the end).
                Nothing from there on is computed.
            logits: Which rows of logits to compute. With `None`, the pass stops after the last
                layer that is captured.
            edits: Edits, as for `run_with_edits`. The cache holds the edited values.
            fwd_hooks: Hooks, as for `run_with_hooks`.

        Returns:
            Logits `[T, vocab]` (`[1, vocab]` for the last only, `None` for none), or with
            `stop_at_layer` the residual stream `[T, hidden]` at the input of that layer; and the
            cache. Capturing does not change a bit of either. For a list of traces, a list of such
            pairs, the same as of one call for each trace.
        """
        return self._run_each(
            input,
            names=names_filter,
            positions=positions,
            stop=stop_at_layer,
            edits=edits,
            hooks=fwd_hooks,
            rows=logits,
            capture=True,
        )

    @overload
    def run_with_hooks(
        self, input: Input, fwd_hooks: Hooks, *, rows: LogitRows = "all"
    ) -> Array: ...
    @overload
    def run_with_hooks(
        self, input: Inputs, fwd_hooks: Hooks, *, rows: LogitRows = "all"
    ) -> list[Array]: ...
    def run_with_hooks(
        self, input: Input | Inputs, fwd_hooks: Hooks, *, rows: LogitRows = "all"
    ) -> Array | list[Array]:
        """Logits `[T, vocab]` of a pass in which functions see the values, and can replace them.

        Each hook is a pair of a name (or a function of names) and `fn(values, site)`, which is
        called once for each place with the values of all positions, shaped as in a cache: `[T,
        hidden]`, heads `[heads, T, head_dim]`. It returns an array to replace them, or `None` to
        keep them. `values` is read-only: change a copy and return it. Hooks of one place are called
        in order.

        The text is run in one step, not in chunks, so all activations of a layer are in memory for
        all positions at once, about `4 · T · (4 · hidden + 2 · intermediate)` bytes. Ctrl-C stops
        the pass between two layers.

        For a list of traces, a list of logits; the hooks are called for each trace.

        Raises:
            RequestError: An unknown place, or a replacement of another shape.
            Exception: An exception of a hook stops the pass and is raised unchanged.
        """
        return self._logits_of_each(input, hooks=fwd_hooks, rows=rows)

    @overload
    def run_with_edits(
        self, input: Input, edits: Sequence[str], *, rows: LogitRows = "all"
    ) -> Array: ...
    @overload
    def run_with_edits(
        self, input: Inputs, edits: Sequence[str], *, rows: LogitRows = "all"
    ) -> list[Array]: ...
    def run_with_edits(
        self, input: Input | Inputs, edits: Sequence[str], *, rows: LogitRows = "all"
    ) -> Array | list[Array]:
        """Logits `[T, vocab]` of a pass with edits, which are declared before it.

        An edit is `SITE.LAYER[COLUMNS]@POSITIONS=CHANGE`: `mlp_out.22@1042=zero`,
        `resid_post.5@3..9=scale(0.5)`, `mlp_elementwise.3[17,40]@*=zero`. The change is `zero`,
        `scale(X)`, `clamp(NORM)`, `copy(POSITION)`, `mean(POSITIONS)`, `replace(FILE:TENSOR:ROW)`
        or `add(FILE:TENSOR:ROW)`. Edits have no order: two that would conflict are refused.

        For a list of traces, a list of logits.
        """
        return self._logits_of_each(input, edits=edits, rows=rows)

    def _encode(
        self,
        trace: Any,
        chat_template: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded:
        if isinstance(trace, Encoded):
            return trace
        return _encode.encode(
            self._native,
            trace,
            chat_template,
            tools,
            documents,
            template_kwargs,
            has_chat_template=self._native.has_chat_template,
            strict=self._strict,
        )

    def _encode_each(self, input: Any, encode: Callable[[Any], Encoded]) -> Encoded | list[Encoded]:
        """The result of `encode`, or a list of results for a list of traces."""
        traces, several = _input.split(input)
        if not several:
            return encode(traces[0])
        encoded: list[Encoded] = []
        for number, trace in enumerate(traces):
            try:
                encoded.append(encode(trace))
            except FathomError as error:
                raise type(error)(f"trace {number}: {error}") from None
        return encoded

    def _run_each(self, input: Any, **arguments: Any) -> Any:
        """The result of `_run`, or a list of results for a list of traces. All traces are encoded
        before the first one runs, so that a bad trace is refused before any work is done."""
        encoded = self._encode_each(input, self._encode)
        arguments = {
            name: list(value) if isinstance(value, Iterator) else value
            for name, value in arguments.items()
        }
        if isinstance(encoded, list):
            return [self._run(each.ids, **arguments) for each in encoded]
        return self._run(encoded.ids, **arguments)

    def _logits_of_each(self, input: Any, **arguments: Any) -> Array | list[Array]:
        found = self._run_each(input, **arguments)
        if isinstance(found, list):
            return [logits for logits, _ in found]
        logits: Array = found[0]
        return logits

    def _run(
        self,
        ids: npt.NDArray[np.int64],
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
