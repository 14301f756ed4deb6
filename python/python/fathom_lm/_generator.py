"""Generation of text from prompts."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union

import numpy as np

from . import _encode, _input, _names, _native, _remarks
from ._encoded import Encoded
from ._errors import RequestError, UnsupportedError
from ._model import Model
from ._names import NamesFilter
from ._options import PathLike, Precision, check_range, load_options, path
from ._stream import Generated, Ids, Place, Stream

Prompts = Union[_input.Input, Iterable[Any]]
"""One prompt (a text, messages or token ids) or several. A prompt may be a dictionary
`{"prompt": …}` with its own parameters."""

_PROMPT_KEYS = ("prompt", "messages", "input_ids")
_TEMPLATE_KEYS = ("tools", "documents", "template_kwargs", "chat_template")


class Generator:
    """A model that generates text, with lossless speculative decoding if it has a draft: at
    temperature 0 the text is the target's, token for token, in every mode, with any draft and in
    any batch.

    Args:
        target: The model whose text is generated: a directory, a hub id, or a loaded `fl.Model`,
            which can be used by others at the same time.
        draft: A smaller model with the same vocabulary, given in the same ways. Two models given by
            path share the cores; loaded models keep their threads.
        mode: `"ar"`, `"sd"` or `"pearl"`; `"forked"`, `"pearl"` whose draft also continues behind the
            likeliest rejections; `"suffix"`, which needs no draft: what followed the last tokens
            where they occurred before is the draft; or `"auto"`, which measures which mode is
            fastest (`"ar"` without a draft).
        gamma: How many tokens to draft at a time; `"auto"` adapts it.
        batch_size: Maximum number of texts decoded at a time.
        kv_pages: Maximum number of KV cache pages, of 128 tokens each, for all running texts.
        precision, adapter, draft_adapter, chat_template, system, template_kwargs, date, bos, isa:
            As for `fl.Model`, for models given by path.
        target_threads, draft_threads: Threads of each model, for models given by path.

    Any number of threads may use a generator. It is a context manager: leaving it ends the engine's
    threads. A forked child cannot use it: it gets an `EngineError`.

    Ctrl-C stops the loading of models before the next tensor.

    Raises:
        RequestError: There is no such model, the draft has another vocabulary, or an argument has
            no meaning.
        CheckpointError: A file cannot be used.
    """

    def __init__(
        self,
        target: Model | PathLike,
        draft: Model | PathLike | None = None,
        mode: Literal["auto", "ar", "sd", "pearl", "forked", "suffix"] = "auto",
        gamma: int | Literal["auto"] = "auto",
        batch_size: int = 8,
        *,
        kv_pages: int | None = None,
        precision: Precision | None = None,
        adapter: PathLike | None = None,
        draft_adapter: PathLike | None = None,
        chat_template: bool | None = None,
        system: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        date: str | datetime.date | None = None,
        bos: bool | None = None,
        isa: str | None = None,
        target_threads: int | None = None,
        draft_threads: int | None = None,
    ) -> None:
        length = None if gamma == "auto" else gamma
        if length is not None and not (isinstance(length, int) and 1 <= length <= 1024):
            raise RequestError(f"gamma={gamma!r}: expected 'auto' or a number from 1 to 1024")
        check_range("batch_size", batch_size, 1 << 20)
        check_range("kv_pages", kv_pages, 1 << 40)
        check_range("target_threads", target_threads, 1024)
        check_range("draft_threads", draft_threads, 1024)
        of_paths = {
            "precision": precision,
            "adapter": adapter,
            "draft_adapter": draft_adapter,
            "chat_template": chat_template,
            "system": system,
            "template_kwargs": template_kwargs,
            "date": date,
            "bos": bos,
            "isa": isa,
            "target_threads": target_threads,
            "draft_threads": draft_threads,
        }
        if draft is None and (draft_adapter is not None or draft_threads is not None):
            raise RequestError("draft_adapter and draft_threads need a draft")
        if isinstance(target, Model) or isinstance(draft, Model):
            given = [name for name, value in of_paths.items() if value is not None]
            if given:
                raise RequestError(
                    f"{given[0]} is for models given by path: pass it to fl.Model instead"
                )
            target = target if isinstance(target, Model) else Model(target)
            if draft is not None and not isinstance(draft, Model):
                draft = Model(draft, chat_template=False)
            self._native = _native.Generator.of_models(
                target._native,
                None if draft is None else draft._native,
                mode=mode,
                gamma=length,
                batch_size=batch_size,
                kv_pages=kv_pages,
            )
            return
        self._native, raw = _native.Generator.of_paths(
            path(target),
            path(draft),
            mode=mode,
            gamma=length,
            batch_size=batch_size,
            kv_pages=kv_pages,
            options=load_options(
                precision=precision,
                chat_template=chat_template,
                system=system,
                template_kwargs=template_kwargs,
                date=date,
                bos=bos,
                isa=isa,
            ),
            adapter=path(adapter),
            draft_adapter=path(draft_adapter),
            target_threads=target_threads,
            draft_threads=draft_threads,
        )
        _remarks.warn(_remarks.read(raw), strict=False)

    def stream(
        self,
        prompts: Prompts,
        *,
        temperature: float = 0.0,
        max_tokens: int = 256,
        n: int = 1,
        names_filter: NamesFilter = None,
        chat_template: bool | None = None,
        **params: Any,
    ) -> Stream:
        """Generates the texts after prompts, and yields their tokens as soon as they are known.

        Args:
            prompts: One prompt or several. A prompt is a text, messages or token ids, as for
                `Model.encode`; or a dictionary with `prompt`, `messages` or `input_ids`, and
                parameters that override those of the call (also `tools`, `documents`,
                `template_kwargs`, `chat_template`).
            temperature: 0 always takes the most likely token.
            max_tokens: Maximum number of tokens per text.
            n: Number of texts for each prompt.
            names_filter: Places whose activations are in the updates, as for `run_with_cache`,
                except that `None` selects none. They are from the target's own decoding passes, and
                have the bits of a pass over the finished text.
            chat_template: `False` encodes texts without the chat template.
            **params: `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`,
                `frequency_penalty`, `logit_bias`, `seed`, `min_tokens`, `stop`, `stop_token_ids`,
                `ignore_eos`, with vLLM's names and meanings.

        Returns:
            An iterator over the updates of all texts, in the order in which they are made. Closing
            it (`stream.close()`, or leaving `with`) cancels the unfinished texts. Text number
            `index * n + sample` uses the same random numbers as that line of `fathom generate`.

        Raises:
            RequestError: A prompt or parameter that cannot be used; nothing is generated.
            EngineError: The generator was closed.
        """
        common = {"temperature": temperature, "max_tokens": max_tokens, **params}
        places = self._places(names_filter)
        if not isinstance(n, int) or not 1 <= n <= 1 << 20:
            raise RequestError(f"n={n!r}: expected at least 1")
        requests: list[tuple[Ids, str, int]] = []
        owners: list[tuple[int, int]] = []
        for index, prompt in enumerate(_several(prompts)):
            own: dict[str, Any] = {}
            if isinstance(prompt, Mapping) and "role" not in prompt:
                own = dict(prompt)
                prompt = _take_prompt(own, index)
            encoding: dict[str, Any] = {"chat_template": chat_template}
            encoding.update({key: own.pop(key) for key in _TEMPLATE_KEYS if key in own})
            ids = self._encode(prompt, **encoding).ids
            sampling = _input.to_json({**common, **own}, f"prompt {index}: its parameters")
            for sample in range(n):
                requests.append((ids, sampling, index * n + sample))
                owners.append((index, sample))
        if not requests:
            raise RequestError("there are no prompts; expected at least one")
        native = self._native.stream(requests, [name for name, _ in places])
        return Stream(native, owners, [ids for ids, _, _ in requests], places)

    def generate(self, prompts: Prompts, **arguments: Any) -> list[Generated]:
        """Generates the texts and returns them when all are finished, in the order of the prompts,
        the samples of a prompt next to each other. The arguments are those of `stream`."""
        with self.stream(prompts, **arguments) as stream:
            return stream.texts()

    def encode(self, prompt: _input.Input, **arguments: Any) -> Encoded:
        """The ids of one prompt up to where the answer begins, as for `Model.encode`."""
        return self._encode(prompt, **arguments)

    def metrics(self) -> dict[str, Any]:
        """Counts and times since the engine started: requests by state (`submitted`, `waiting`,
        `prefilling`, `running`, `finished`, `cancelled`, `failed`), `tokens`, `steps` by mode,
        acceptance of drafts, and seconds of prefill, target, draft, waiting and sampling."""
        found: dict[str, Any] = json.loads(self._native.metrics())
        return found

    def close(self) -> None:
        """Cancels unfinished texts and ends the engine's threads."""
        self._native.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise UnsupportedError("a generator cannot be pickled: make one in each process")

    def _encode(
        self,
        prompt: Any,
        chat_template: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Encoded:
        return _encode.encode(
            self._native,
            prompt,
            chat_template,
            tools,
            documents,
            template_kwargs,
            has_chat_template=self._native.has_chat_template(),
            strict=False,
        )

    def _places(self, names: NamesFilter) -> list[Place]:
        if names is None:
            return []
        layers = self._native.layers()
        found: dict[str, None] = {}
        for name in _names.chosen(names, layers, None):
            site, layer = _names.parse(name)
            if layer is not None and layer >= layers:
                raise RequestError(
                    f"layer {layer} was asked for, but the model's layers are 0..={layers - 1}"
                )
            every = range(layers) if layer is None and _names.at(site, 0) != site else [layer or 0]
            found.update((_names.at(site, at), None) for at in every)
        if not found:
            raise RequestError("names_filter names no place; expected at least one, or None")
        return list(zip(found, self._native.widths(list(found))))


def _several(prompts: Any) -> Iterable[Any]:
    """The prompts of a list, or the one prompt as a list."""
    if _input.is_scalar(prompts) or isinstance(prompts, Encoded):
        return [prompts]
    if isinstance(prompts, np.ndarray) or hasattr(prompts, "__array__"):
        return [prompts] if np.ndim(prompts) == 1 else prompts
    if not isinstance(prompts, Iterable):
        raise RequestError(
            f"{type(prompts).__name__} is no prompt: expected a text, messages, token ids, or a "
            "list of prompts"
        )
    found = list(prompts)
    if found and all(isinstance(item, (int, np.integer)) for item in found):
        return [found]
    if found and all(isinstance(item, Mapping) and "role" in item for item in found):
        return [found]
    return found


def _take_prompt(own: dict[str, Any], index: int) -> Any:
    found = [key for key in _PROMPT_KEYS if key in own]
    if len(found) != 1:
        raise RequestError(
            f"prompt {index}: expected one of `prompt`, `messages` and `input_ids`, found "
            f"{' and '.join(found) or 'none'}"
        )
    return own.pop(found[0])
