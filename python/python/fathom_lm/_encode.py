"""From input to token ids, for models and generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import _input, _native, _remarks
from ._encoded import Encoded
from ._errors import RequestError


def encode(
    native: _native.Model | _native.Generator,
    input: _input.Input,
    chat_template: bool | None,
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    template_kwargs: Mapping[str, Any] | None,
    *,
    has_chat_template: bool,
    strict: bool,
) -> Encoded:
    """The ids of one trace, as `Model.encode` describes."""
    variables = dict(template_kwargs or {})
    variables.update({"tools": list(tools)} if tools else {})
    variables.update({"documents": list(documents)} if documents else {})
    messages = _input.as_messages(input)
    if isinstance(input, str) and variables:
        messages = [{"role": "user", "content": input}]
    if chat_template is False and (messages is not None or variables):
        raise RequestError("messages and template variables need the chat template")
    if chat_template and not has_chat_template:
        raise RequestError("chat_template=True, but the model has no chat template, or it is off")
    if messages is not None:
        kwargs = _input.to_json(variables, "template_kwargs") if variables else None
        raw = native.encode_messages(_input.to_json(messages, "messages"), kwargs)
    elif isinstance(input, str):
        raw = native.encode_text(input, chat_template is False)
    else:
        raw = native.encode_ids(_input.as_ids(input))
    ids, prompt_len, text, found = raw
    remarks = _remarks.read(found)
    _remarks.warn(remarks, strict)
    tokens = [
        f"<id {i}>" if token is None else token
        for i, token in zip(ids.tolist(), native.tokens(ids))
    ]
    return Encoded(ids, tokens, text, prompt_len, remarks)
