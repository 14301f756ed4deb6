"""Text, messages and ids; the rendered template is visible."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fathom_lm as fl


def test_the_rendered_template_is_visible(planted: fl.Model) -> None:
    encoded = planted.encode("hello there")
    assert encoded.text is not None and "hello there" in encoded.text
    assert encoded.text != "hello there"
    bare = planted.encode("hello there", chat_template=False)
    assert bare.text == "hello there" and len(bare) < len(encoded)
    messages = [{"role": "user", "content": "hello there"}]
    assert planted.encode(messages) == encoded == planted.encode(messages[0])
    assert planted.encode(list(encoded)) == encoded and planted.encode(encoded) is encoded
    assert "hello" in planted.decode(encoded.ids)
    assert list(encoded.tokens) == planted.tokens(encoded.ids)
    assert "".join(encoded.tokens[-len(bare) :]) != ""
    plain = fl.Model(_dir(planted), chat_template=False, threads=1)
    assert plain.encode("hello there") == bare


def _dir(model: fl.Model) -> str:
    return model.name


def test_an_encoded_is_a_sequence_and_an_array(planted: fl.Model) -> None:
    encoded = planted.encode("hello there")
    ids = list(encoded)
    assert encoded[0] == ids[0] and encoded[-1] == ids[-1] and encoded[1:3] == ids[1:3]
    assert all(type(i) is int for i in encoded) and len(encoded) == len(ids)
    assert encoded == ids and encoded == tuple(ids) and encoded != ids[1:] and encoded != "x"
    array = np.asarray(encoded)
    assert array.dtype == np.int64 and array.tolist() == ids
    assert np.shares_memory(array, encoded.ids) and not encoded.ids.flags.writeable
    assert np.array(encoded).flags.writeable
    assert f"{len(ids)} tokens" in repr(encoded) and "<span" in encoded._repr_html_()
    assert len({encoded, planted.encode("hello there")}) == 1


def test_every_kind_of_input_is_the_same_pass(planted: fl.Model) -> None:
    text = "hello there"
    encoded = planted.encode(text)
    expected = planted(encoded)
    inputs: list[Any] = [
        text,
        [{"role": "user", "content": text}],
        list(encoded),
        tuple(encoded),
        np.array(encoded),
        np.array(encoded, dtype=np.int32),
        np.array(encoded, dtype=np.uint16),
        np.array(encoded)[::-1][::-1],
    ]
    for input in inputs:
        assert np.array_equal(planted(input), expected), type(input)


def test_what_is_no_input_is_refused(planted: fl.Model) -> None:
    bad: list[tuple[Any, str]] = [
        ([], "there are no token ids"),
        (np.zeros((2, 2), dtype=int), "there is no batch axis"),
        ([[[1, 2], [3, 4]]], "trace 0: .* there is no batch axis"),
        (np.zeros((1, 3), dtype=int), "there is no batch axis"),
        ([1, [2, 3]], "a list that holds traces as well as int is no input"),
        ([[2, 3], {"role": "user"}], "as well as a message .* is no input"),
        (["a", None], "as well as NoneType is no input"),
        ([[1, 2], [10**6]], "trace 1: token id 1000000 at position 0"),
        ([[1, 2], []], "trace 1: there are no token ids"),
        ([b"a"], "is no input"),
        ([1.5, 2.0], "is no input"),
        ([True, False], "is no input"),
        (b"abc", "bytes are no input"),
        (None, "is no input"),
        (3, "is no input"),
        ([-1], "token id -1 at position 0"),
        ([1, 2**40], f"token id {2**40}"),
        ([2**63], "token id|is no input"),
        ([2**70], "is no input"),
        ([1, 10**6], "token id 1000000 at position 1"),
        ([{"content": "x"}], "without `role`"),
        ([{"role": 3, "content": "x"}], "`role` that is not a string"),
        ([{"role": "user", "content": object()}], "cannot be written as JSON"),
        ([{"role": "user", "content": float("nan")}], "cannot be written as JSON"),
    ]
    for input, sentence in bad:
        with pytest.raises(fl.RequestError, match=sentence):
            planted.encode(input)
        with pytest.raises(fl.RequestError):
            planted(input)
    with pytest.raises(fl.RequestError, match="need the chat template"):
        planted.encode([{"role": "user", "content": "x"}], chat_template=False)
    with pytest.raises(fl.RequestError, match="`messages` cannot be set"):
        planted.encode("x", template_kwargs={"messages": []})


def test_a_model_without_a_tokenizer_takes_ids(model: fl.Model, ids: list[int]) -> None:
    assert model.encode(ids).text is None and model.tokens([5]) == ["<id 5>"]
    with pytest.raises(fl.FathomError, match="tokenizer"):
        model.encode("hello")
    with pytest.raises(fl.RequestError, match="no tokenizer.json"):
        model.decode(ids)
    with pytest.raises(fl.RequestError, match="the model has no chat template"):
        model.encode("hello", chat_template=True)


def test_prompt_options_reach_the_template(planted_dir: Path) -> None:
    with_system = fl.Model(planted_dir, system="be brief", threads=1)
    text = with_system.encode("hello").text
    assert text is not None and "be brief" in text
    for date in ("2025-01-31x", "yesterday"):
        with pytest.raises(fl.RequestError, match="expected a day such as"):
            fl.Model(planted_dir, date=date)
    with pytest.raises(fl.FathomError):
        # The planted template does not use the date.
        fl.Model(planted_dir, date=datetime.date(2025, 1, 31))
