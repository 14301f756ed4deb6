"""Text from prompts, as it comes."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union

import numpy as np

from . import _encode, _input, _names, _native, _remarks
from ._encoded import Encoded
from ._errors import RequestError, UnsupportedError
from ._model import Model
from ._names import NamesFilter
from ._stream import Generated, Ids, Place, Stream

Prompts = Union[_input.Input, Iterable[Any]]
"""One prompt (a text, messages, or token ids), or several, each of which may be a dictionary
`{"prompt": …}` with parameters of its own."""

_PROMPT_KEYS = ("prompt", "messages", "input_ids")
_TEMPLATE_KEYS = ("tools", "documents", "template_kwargs", "chat_template")


class Generator:
    """A model that writes text, losslessly sped up by a draft where there is one: at temperature 0 a
    text is the target's own, token for token, whatever the mode, the draft and the batch.

    Args:
        target: Whose text it is: a directory, a hub id, or a loaded `fl.Model`, which others may go
            on using.
        draft: A smaller model of the same vocabulary; the same kinds. Two that are named share out
            the cores; loaded models each keep their threads.
        mode: `"auto"` measures what is fastest (plain decoding without a draft); or `"ar"`, `"sd"`,
            `"pearl"`.
        gamma: How many tokens to draft at a time; `"auto"` measures.
        batch_size: Most texts at a time.
        kv_pages: Most pages of 128 tokens that the caches of all running texts may hold.
        precision, adapter, draft_adapter, chat_template, system, template_kwargs, date, bos, isa: As
            for `fl.Model`, where models are named.
        target_threads, draft_threads: Threads of each, where models are named.

    Any number of threads may use one. It is a context manager: leaving it ends the engine's threads.
    A forked child cannot use it: it raises `EngineError`.

    Raises:
        RequestError: There is no such model, the draft has another vocabulary, or an argument has no
            meaning.
        CheckpointError: A file cannot be used.
    """

    def __init__(
        self,
        target: Model | str | os.PathLike[str],
        draft: Model | str | os.PathLike[str] | None = None,
        mode: Literal["auto", "ar", "sd", "pearl"] = "auto",
        gamma: int | Literal["auto"] = "auto",
        batch_size: int = 8,
        *,
        kv_pages: int | None = None,
        precision: Literal["f32", "bf16"] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        draft_adapter: str | os.PathLike[str] | None = None,
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
        for name, number, most in (
            ("batch_size", batch_size, 1 << 20),
            ("kv_pages", kv_pages, 1 << 40),
            ("target_threads", target_threads, 1024),
            ("draft_threads", draft_threads, 1024),
        ):
            if number is not None and not 1 <= number <= most:
                raise RequestError(f"{name}={number}: expected at least 1, and at most {most}")
        of_files = {
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
        kwargs = None
        if template_kwargs is not None:
            kwargs = _input.to_json(dict(template_kwargs), "template_kwargs")
        if draft is None and (draft_adapter is not None or draft_threads is not None):
            raise RequestError("draft_adapter and draft_threads need a draft")
        if isinstance(target, Model) or isinstance(draft, Model):
            said = [name for name, value in of_files.items() if value is not None]
            if said:
                raise RequestError(
                    f"{said[0]} is of models that are named: say it where the model is loaded"
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
            os.fspath(target),
            None if draft is None else os.fspath(draft),
            mode=mode,
            gamma=length,
            batch_size=batch_size,
            kv_pages=kv_pages,
            precision=precision or "f32",
            adapter=None if adapter is None else os.fspath(adapter),
            draft_adapter=None if draft_adapter is None else os.fspath(draft_adapter),
            chat_template=chat_template is not False,
            system=system,
            template_kwargs=kwargs,
            date=date.isoformat()[:10] if isinstance(date, datetime.date) else date,
            bos=bos,
            isa=isa,
            target_threads=target_threads,
            draft_threads=draft_threads,
        )
        _remarks.tell(_remarks.read(raw), False, stacklevel=2)

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
        """The texts after prompts, as they come, whichever comes first.

        Args:
            prompts: One prompt, or several. One is a text, messages, or token ids, as for
                `Model.encode`; or a dictionary with `prompt`, `messages` or `input_ids`, and
                parameters of its own, which go before those of the call (also `tools`, `documents`,
                `template_kwargs`, `chat_template`).
            temperature: 0 takes the most likely token, always.
            max_tokens: Most tokens of a text.
            n: Texts of each prompt.
            names_filter: Places whose activations each update brings, as for `run_with_cache`; `None`
                is none. They are what the target's own passes computed, with the bits that a pass
                over the finished text has.
            chat_template: `False` takes texts as they are.
            **params: `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`,
                `frequency_penalty`, `logit_bias`, `seed`, `min_tokens`, `stop`, `stop_token_ids`,
                `ignore_eos`, with vLLM's names and meanings.

        Returns:
            An iterator of updates. Closing it (`stream.close()`, or leaving `with`) cancels the texts
            that have not ended. Text number `index * n + sample` has the randomness that
            `fathom generate` gives that line.

        Raises:
            RequestError: A prompt or a parameter that cannot be used; before anything is written.
            EngineError: The generator was closed.
        """
        common = {"temperature": temperature, "max_tokens": max_tokens, **params}
        places = self._places(names_filter)
        if not isinstance(n, int) or not 1 <= n <= 1 << 20:
            raise RequestError(f"n={n!r}: expected at least 1")
        asked: list[tuple[Ids, str, int]] = []
        owners: list[tuple[int, int]] = []
        for index, prompt in enumerate(_several(prompts)):
            own: dict[str, Any] = {}
            if isinstance(prompt, Mapping) and "role" not in prompt:
                own = dict(prompt)
                prompt = _take_prompt(own, index)
            encoding: dict[str, Any] = {"chat_template": chat_template}
            encoding.update({key: own.pop(key) for key in _TEMPLATE_KEYS if key in own})
            ids = self._encode(prompt, **encoding).ids
            said = _input.to_json({**common, **own}, f"prompt {index}: its parameters")
            for sample in range(n):
                asked.append((ids, said, index * n + sample))
                owners.append((index, sample))
        if not asked:
            raise RequestError("there are no prompts; expected at least one")
        native = self._native.stream(asked, [name for name, _ in places])
        return Stream(native, owners, [ids for ids, _, _ in asked], places)

    def generate(self, prompts: Prompts, **arguments: Any) -> list[Generated]:
        """The texts after prompts, in their order, those of one prompt after each other; arguments
        are those of `stream`."""
        with self.stream(prompts, **arguments) as stream:
            return stream.texts()

    def encode(self, prompt: _input.Input, **arguments: Any) -> Encoded:
        """The ids of a prompt up to where the answer begins, as for `Model.encode`."""
        return self._encode(prompt, **arguments)

    def metrics(self) -> dict[str, Any]:
        """What the engine has done so far: requests by where they are (`submitted`, `waiting`,
        `prefilling`, `running`, `finished`, `cancelled`, `failed`), `tokens`, `steps` by mode, what
        drafts were worth, and seconds by who spent them."""
        found: dict[str, Any] = json.loads(self._native.metrics())
        return found

    def close(self) -> None:
        """Cancels what is under way and ends the engine's threads."""
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
            stacklevel=4,
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
    """The prompts, where one may have been given instead."""
    if isinstance(prompts, (str, Mapping, Encoded)):
        return [prompts]
    if isinstance(prompts, np.ndarray) or hasattr(prompts, "__array__"):
        return [prompts] if np.ndim(prompts) == 1 else prompts
    if not isinstance(prompts, Iterable):
        raise RequestError(
            f"{type(prompts).__name__} is no prompt: expected a text, messages, token ids, or several"
        )
    found = list(prompts)
    if found and all(isinstance(item, (int, np.integer)) for item in found):
        return [found]
    if found and all(isinstance(item, Mapping) and "role" in item for item in found):
        return [found]
    return found


def _take_prompt(own: dict[str, Any], index: int) -> Any:
    there = [key for key in _PROMPT_KEYS if key in own]
    if len(there) != 1:
        raise RequestError(
            f"prompt {index}: expected one of `prompt`, `messages` and `input_ids`, found "
            f"{' and '.join(there) or 'none'}"
        )
    return own.pop(there[0])
