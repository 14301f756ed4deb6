"""Threads, forks, signals, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fathom_lm as fl

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor SIGINT")


def test_threads_get_their_own_answers(model: fl.Model) -> None:
    def text(i: int) -> list[int]:
        return [(i * 7 + j * 3) % model.vocab for j in range(20 + i)]

    expected = [model.run_with_cache(text(i), "resid_post.2") for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda i: model.run_with_cache(text(i % 16), "resid_post.2"), range(64))
        )
    for i, (logits, cache) in enumerate(found):
        assert np.array_equal(logits, expected[i % 16][0])
        assert np.array_equal(cache["resid_post.2"], expected[i % 16][1]["resid_post.2"])


def test_python_goes_on_during_a_pass(planted: fl.Model) -> None:
    ids = [3 + i % 20 for i in range(3000)]
    ticks, over = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not over.wait(0.001):
            ticks += 1

    counter = threading.Thread(target=count)
    counter.start()
    began = time.perf_counter()
    planted.run_with_cache(ids, "resid_post.5", logits=None)
    seconds = time.perf_counter() - began
    over.set()
    counter.join()
    assert seconds > 0.05, "too short to tell"
    assert ticks > seconds / 0.001 / 50, f"{ticks} ticks in {seconds} s"


@unix
def test_a_forked_child_is_refused_and_ends(model: fl.Model, ids: list[int]) -> None:
    model(ids)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.close(read)
        try:
            model(ids)
            said = "ran"
        except fl.EngineError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    assert os.waitpid(child, 0)[1] == 0
    assert "is a fork without its threads: load the model here" in said
    assert model(ids).shape[0] == len(ids)


@unix
def test_a_forked_child_ends_by_itself(golden_dir: Path) -> None:
    program = f"""
import os, fathom_lm as fl
model = fl.Model({str(golden_dir / "qwen3")!r}, threads=2)
model([1, 2, 3])
child = os.fork()
if child == 0:
    own = fl.Model({str(golden_dir / "qwen3")!r}, threads=2)
    print("own", own([1, 2, 3]).shape, flush=True)
    del model, own
else:
    assert os.waitpid(child, 0)[1] == 0
    print("parent", model([1, 2, 3]).shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["own (3, 400)", "parent (3, 400)"], done.stderr


@unix
@pytest.mark.parametrize(
    "call",
    # A pass with hooks has no chunks, and stops between two layers: with fewer tokens these are short.
    ["model.logits(ids)", "model.run_with_hooks(ids[:8000], [('embed', look)])"],
)
def test_ctrl_c_stops_a_pass(planted_dir: Path, call: str) -> None:
    program = f"""
import fathom_lm as fl
model = fl.Model({str(planted_dir)!r}, threads=1)
ids = [3 + i % 20 for i in range(30000)]
look = lambda values, site: None
print("ready", flush=True)
try:
    {call}
    print("finished")
except KeyboardInterrupt:
    print("interrupted", model([1, 2, 3]).shape[0])
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    sent = time.perf_counter()
    rest, _ = process.communicate(timeout=60)
    assert rest == "interrupted 3\n"
    assert time.perf_counter() - sent < 10


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow(model: fl.Model, ids: list[int]) -> None:
    def call(i: int) -> None:
        model.run_with_cache(ids, ["resid_post", "q.1"], positions=[i % len(ids)])
        model.run_with_hooks(ids[:8], [("mlp_out.1", lambda values, site: values + 0)])
        fl.bf16(model.logits(ids[:4])).__dlpack__()
        with pytest.raises(fl.RequestError):
            model([10**9])

    for i in range(200):
        call(i)
    before = resident()
    for i in range(2000):
        call(i)
    assert resident() - before < 4 << 20
