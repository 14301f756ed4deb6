"""A list of traces gives a list of results, each with the bits of its own call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fathom_lm as fl
from conftest import same

TEXTS = ["hello there", "a sink", "the quick brown fox jumps"]


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def forms(model: fl.Model) -> dict[str, Any]:
    """The same traces in every form that a list of traces may have."""
    encoded = [model.encode(text) for text in TEXTS]
    ids = [each.tolist() for each in encoded]
    return {
        "texts": TEXTS,
        "tuple": tuple(TEXTS),
        "iterator": iter(TEXTS),
        "conversations": [conversation(text) for text in TEXTS],
        "ids": ids,
        "tuples of ids": [tuple(each) for each in ids],
        "arrays": [np.array(each) for each in ids],
        "encoded": encoded,
        "mixed": [TEXTS[0], conversation(TEXTS[1]), np.array(ids[2], dtype=np.int32)],
    }


FORMS = [
    "texts",
    "tuple",
    "iterator",
    "conversations",
    "ids",
    "tuples of ids",
    "arrays",
    "encoded",
    "mixed",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_list_is_one_call_for_each_trace(planted: fl.Model, form: str) -> None:
    traces = forms(planted)[form]
    found = planted.run_with_cache(traces, ["resid_post", "q.1"], positions=[0, -1])
    assert isinstance(found, list) and len(found) == len(TEXTS)
    for text, (logits, cache) in zip(TEXTS, found):
        one_logits, one = planted.run_with_cache(text, ["resid_post", "q.1"], positions=[0, -1])
        assert same(logits, one_logits) and list(cache) == list(one)
        assert cache.positions == one.positions
        assert all(same(cache[name], one[name]) for name in one)


def test_every_method_takes_a_list(planted: fl.Model) -> None:
    def halve(values: Any, site: fl.HookSite) -> Any:
        return values * 0.5

    edits = ["mlp_out.5@0=zero"]
    hooked = planted.run_with_hooks(TEXTS, [("mlp_out.5", halve)])
    edited = planted.run_with_edits(TEXTS, edits, rows="last")
    both = planted.run_with_cache(
        TEXTS, "embed", logits=None, edits=edits, fwd_hooks=[("mlp_out.4", halve)]
    )
    stopped = planted.run_with_cache(TEXTS, "embed", stop_at_layer=3)
    for number, text in enumerate(TEXTS):
        assert planted.encode(TEXTS)[number] == planted.encode(text)
        bare = planted.encode(TEXTS, chat_template=False)[number]
        assert bare == planted.encode(text, chat_template=False)
        assert same(planted(TEXTS)[number], planted(text))
        assert same(planted.logits(TEXTS, rows="last")[number], planted.logits(text, rows="last"))
        assert same(hooked[number], planted.run_with_hooks(text, [("mlp_out.5", halve)]))
        assert same(edited[number], planted.run_with_edits(text, edits, rows="last"))
        assert both[number][0] is None
        assert same(stopped[number][0], planted.run_with_cache(text, "embed", stop_at_layer=3)[0])


def test_what_is_one_trace_stays_one(planted: fl.Model) -> None:
    ids = planted.encode("hello").tolist()
    one: list[Any] = [
        "hello",
        conversation("hello"),
        conversation("hello")[0],
        ids,
        tuple(ids),
        iter(ids),
        np.array(ids),
        list(np.array(ids)),
        [np.array(i) for i in ids],
        planted.encode("hello"),
    ]
    for input in one:
        assert isinstance(planted.encode(input), fl.Encoded), input
    two = [*conversation("hello"), {"role": "assistant", "content": "hi"}, *conversation("bye")]
    assert isinstance(planted.encode(two), fl.Encoded)
    assert isinstance(planted.encode([two]), list)
    assert [len(each) for each in planted.encode([ids])] == [len(ids)]


def test_names_and_hooks_may_be_iterators(planted: fl.Model) -> None:
    calls: list[str] = []

    def see(values: Any, site: fl.HookSite) -> None:
        calls.append(site.name)

    names: Any = iter(["resid_post.1", "embed"])
    hooks: Any = iter([("mlp_out.1", see)])
    found = planted.run_with_cache(TEXTS, names, fwd_hooks=hooks)
    assert calls == ["mlp_out.1"] * len(TEXTS)
    assert all(list(cache) == ["embed", "resid_post.1"] for _, cache in found)


def test_nothing_runs_when_a_trace_cannot_be_used(planted: fl.Model) -> None:
    calls: list[str] = []

    def see(values: Any, site: fl.HookSite) -> None:
        calls.append(site.name)

    with pytest.raises(fl.RequestError, match="trace 2: token id 1000000 at position 1"):
        planted.run_with_hooks([[1, 2], [3], [4, 10**6]], [("mlp_out.1", see)])
    assert calls == []
    # A mask has the length of one text: the traces differ in length.
    with pytest.raises(fl.RequestError, match="a mask must have the shape of the text"):
        planted.run_with_cache([[1, 2], [1, 2, 3]], "embed", positions=np.array([True, False]))
