"""Generation: streams and texts, which are those of the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import DRAFT, WEAK, fathom

import fathom_lm as fl

PROMPTS = ["What is 6 times 7?", "def is_prime(n):", "Mia has 3 boxes with 12 pencils each."]


@pytest.fixture(scope="module")
def model() -> fl.Model:
    return fl.Model(DRAFT, threads=2)


@pytest.fixture(scope="module")
def plain(model: fl.Model) -> Iterator[fl.Generator]:
    with fl.Generator(model) as generator:
        yield generator


@pytest.fixture(scope="module")
def drafted() -> Iterator[fl.Generator]:
    with fl.Generator(DRAFT, WEAK, mode="pearl", batch_size=3) as generator:
        yield generator


def command(tmp_path: Path, *flags: Any) -> list[dict[str, Any]]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    output = fathom("generate", "--target", DRAFT, "--prompts", file, "--json", *flags)
    found: list[dict[str, Any]] = json.loads(output)["texts"]
    return found


@pytest.mark.parametrize(
    ("keywords", "flags"),
    [
        ({"max_tokens": 24}, ["--max-tokens", "24"]),
        (
            {"max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 3, "n": 2},
            [
                "--max-tokens",
                "20",
                "--temperature",
                "0.8",
                "--top-p",
                "0.9",
                "--seed",
                "3",
                "--samples",
                "2",
            ],
        ),
        (
            {"max_tokens": 40, "stop": ["."], "repetition_penalty": 1.2},
            ["--max-tokens", "40", "--stop", ".", "--repetition-penalty", "1.2"],
        ),
    ],
)
def test_texts_are_the_command_lines(
    plain: fl.Generator, tmp_path: Path, keywords: dict[str, Any], flags: list[str]
) -> None:
    theirs = command(tmp_path, *flags)
    ours = plain.generate(PROMPTS, **keywords)
    assert len(ours) == len(theirs)
    for text, line in zip(ours, theirs, strict=True):
        assert text.text == line["output"]
        assert [*text.prompt_ids.tolist(), *text.ids.tolist()] == line["input_ids"]
        assert (text.index, text.sample) == (line["prompt_index"], line["sample"])
        assert text.finish_reason == line["finish_reason"]
        assert text.activations is None


def test_a_draft_changes_no_text(plain: fl.Generator, drafted: fl.Generator) -> None:
    alone = plain.generate(PROMPTS, max_tokens=40)
    together = drafted.generate(PROMPTS, max_tokens=40)
    assert [text.ids.tolist() for text in alone] == [text.ids.tolist() for text in together]
    assert all(text.mat == 1 for text in alone)
    assert any(text.mat > 1 for text in together)
    assert drafted.metrics()["steps"].get("pearl", 0) > 0


def test_a_stream_is_its_updates(plain: fl.Generator) -> None:
    whole = plain.generate(PROMPTS, max_tokens=16, n=2)
    texts = {(text.index, text.sample): "" for text in whole}
    ids: dict[tuple[int, int], list[int]] = {key: [] for key in texts}
    ended = []
    for update in plain.stream(PROMPTS, max_tokens=16, n=2):
        key = (update.index, update.sample)
        assert key not in ended
        texts[key] += update.text
        ids[key].extend(update.ids.tolist())
        assert (update.finish_reason is not None) == update.done == (update.mat is not None)
        ended.extend([key] if update.done else [])
    assert sorted(ended) == sorted(texts)
    for text in whole:
        assert texts[text.index, text.sample] == text.text
        assert ids[text.index, text.sample] == text.ids.tolist()


@pytest.mark.parametrize("which", ["plain", "drafted"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_activations_are_those_of_the_finished_text(
    which: str, temperature: float, model: fl.Model, request: pytest.FixtureRequest
) -> None:
    generator: fl.Generator = request.getfixturevalue(which)
    names = ["resid_post", "blocks.1.attn.hook_q", "mlp_out.0", "embed", "v.1"]
    texts = generator.generate(
        PROMPTS, max_tokens=20, temperature=temperature, seed=1, names_filter=names
    )
    for text in texts:
        ids = [*text.prompt_ids.tolist(), *text.ids.tolist()][:-1]
        _, cache = model.run_with_cache(ids, names, logits=None)
        assert text.activations is not None
        assert set(text.activations) == set(cache)
        for name, values in cache.items():
            assert text.activations[name].shape == values.shape, name
            assert np.array_equal(text.activations[name], values), name


def test_updates_have_each_position_once(plain: fl.Generator) -> None:
    ids = plain.encode(PROMPTS[0]).tolist()
    seen: list[int] = []
    for update in plain.stream(PROMPTS[0], max_tokens=9, names_filter="resid_post.1"):
        assert update.activations is not None
        positions = update.activations.positions
        assert positions is not None
        assert update.activations["blocks.1.hook_resid_post"].shape[0] == len(positions)
        seen.extend(positions)
        assert len(seen) >= len(ids)
    assert seen == list(range(len(ids) + 8))


def test_prompts_have_their_own_parameters(plain: fl.Generator) -> None:
    mixed = plain.generate(
        [
            {"prompt": PROMPTS[0], "max_tokens": 3},
            PROMPTS[1],
            {"input_ids": plain.encode(PROMPTS[2]).tolist(), "stop": ["e"], "max_tokens": 60},
        ],
        max_tokens=7,
    )
    assert [len(text.ids) for text in mixed[:2]] == [3, 7]
    assert mixed[2].finish_reason == "stop" and "e" not in mixed[2].text
    assert mixed[1].text == plain.generate(PROMPTS[1], max_tokens=7)[0].text


def test_one_prompt_in_every_form(plain: fl.Generator, model: fl.Model) -> None:
    encoded = model.encode(PROMPTS[0])
    forms: list[Any] = [
        PROMPTS[0],
        [PROMPTS[0]],
        encoded,
        encoded.tolist(),
        encoded.ids,
        [encoded.ids],
    ]
    texts = [plain.generate(form, max_tokens=5) for form in forms]
    assert all(len(found) == 1 and found[0].text == texts[0][0].text for found in texts)


def test_closing_a_stream_cancels(model: fl.Model) -> None:
    with fl.Generator(model, batch_size=2) as generator:
        stream = generator.stream(PROMPTS, max_tokens=400, ignore_eos=True)
        assert not next(stream).done
        stream.close()
        assert list(stream) == []
        with generator.stream(PROMPTS[0], max_tokens=400, ignore_eos=True) as other:
            next(other)
        for _ in generator.stream(PROMPTS[1], max_tokens=400, ignore_eos=True):
            break  # drops the iterator
        assert len(generator.generate(PROMPTS[0], max_tokens=3)[0].ids) == 3
        deadline = time.monotonic() + 30
        while generator.metrics()["cancelled"] < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        metrics = generator.metrics()
        assert (metrics["submitted"], metrics["cancelled"], metrics["finished"]) == (6, 5, 1)


def test_a_closed_generator_is_refused(model: fl.Model) -> None:
    generator = fl.Generator(model)
    stream = generator.stream(PROMPTS[0], max_tokens=400, ignore_eos=True)
    next(stream)
    generator.close()
    generator.close()
    with pytest.raises(fl.EngineError, match="stopped"):
        list(stream)
    with pytest.raises(fl.EngineError, match="was closed"):
        generator.generate(PROMPTS[0])
    assert model.logits([1, 2, 3]).shape[0] == 3


def test_threads_share_a_generator(plain: fl.Generator) -> None:
    expected = [plain.generate(prompt, max_tokens=12)[0].text for prompt in PROMPTS]

    def text(i: int) -> str:
        return plain.generate(PROMPTS[i % 3], max_tokens=12)[0].text

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(text, range(18))) == [expected[i % 3] for i in range(18)]


def test_python_runs_while_a_text_is_generated(plain: fl.Generator) -> None:
    ticks, over = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not over.wait(0.001):
            ticks += 1

    counter = threading.Thread(target=count)
    counter.start()
    began = time.perf_counter()
    plain.generate(PROMPTS * 4, max_tokens=60, ignore_eos=True)
    seconds = time.perf_counter() - began
    over.set()
    counter.join()
    assert ticks > seconds / 0.001 / 50, f"{ticks} ticks in {seconds} s"


@pytest.mark.parametrize(
    ("prompts", "keywords", "sentence"),
    [
        ([], {}, "no prompts"),
        (PROMPTS[0], {"temperature": -1}, "temperature is -1"),
        (PROMPTS[0], {"top_p": 0}, "top-p is 0"),
        (PROMPTS[0], {"max_tokens": 0}, "max-tokens is 0"),
        (PROMPTS[0], {"beams": 4}, "unknown field `beams`"),
        (PROMPTS[0], {"max_tokens": "many"}, "invalid type"),
        (PROMPTS[0], {"n": 0}, "n=0"),
        (PROMPTS[0], {"top_k": -2}, "top-k is -2"),
        (PROMPTS[0], {"stop_token_ids": [10**8]}, "stop-token-ids names token"),
        (PROMPTS[0], {"names_filter": "attn_weights.0"}, "no row for each token"),
        (PROMPTS[0], {"names_filter": "nowhere"}, "unknown site"),
        (PROMPTS[0], {"names_filter": "v.9"}, "layer 9 was asked for"),
        ([{"text": "a"}], {}, "expected one of `prompt`"),
        ([{"prompt": "a", "input_ids": [1]}], {}, "found `?prompt"),
        ([[10**8]], {}, "token id 100000000"),
        (7, {}, "is no prompt"),
    ],
)
def test_nonsense_is_refused(
    plain: fl.Generator, prompts: Any, keywords: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(fl.RequestError, match=sentence):
        plain.generate(prompts, **keywords)


@pytest.mark.parametrize(
    ("arguments", "keywords", "sentence"),
    [
        ((DRAFT,), {"mode": "fast"}, "mode is `fast`"),
        ((DRAFT,), {"mode": "pearl"}, "draft"),
        ((DRAFT,), {"gamma": 0}, "gamma=0"),
        ((DRAFT,), {"batch_size": 0}, "batch_size=0"),
        ((DRAFT,), {"draft_threads": 1}, "need a draft"),
        (("no/such-model",), {}, "no/such-model"),
    ],
)
def test_a_generator_that_cannot_start_is_refused(
    arguments: Any, keywords: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(fl.FathomError, match=sentence):
        fl.Generator(*arguments, **keywords)


def test_options_of_files_are_refused_for_loaded_models(model: fl.Model, planted: fl.Model) -> None:
    with pytest.raises(fl.RequestError, match="precision is for models given by path"):
        fl.Generator(model, precision="bf16")
    with pytest.raises(fl.FathomError, match="vocabular"):
        fl.Generator(model, planted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_is_refused_and_ends() -> None:
    program = f"""
import os, fathom_lm as fl
generator = fl.Generator({str(DRAFT)!r})
stream = generator.stream("What is 6 times 7?", max_tokens=30)
next(stream)
child = os.fork()
if child == 0:
    for call in (lambda: next(stream), lambda: generator.generate("a")):
        try:
            call()
        except fl.EngineError as error:
            print("child", "without its threads" in str(error), flush=True)
    del generator, stream
else:
    assert os.waitpid(child, 0)[1] == 0
    print("parent", sum(len(update.ids) for update in stream) > 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:3] == ["child True", "child True", "parent True"], done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT")
def test_ctrl_c_stops_the_waiting() -> None:
    program = f"""
import fathom_lm as fl
generator = fl.Generator({str(DRAFT)!r})
stream = generator.stream(["a b c"] * 400, max_tokens=200, ignore_eos=True)
next(stream)
try:
    print("ready", flush=True)  # inside `try`: the signal may come at once
    stream.texts()
    print("finished")
except KeyboardInterrupt:
    stream.close()
    print("interrupted", len(generator.generate("a", max_tokens=2)[0].ids))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert rest == "interrupted 2\n"
