"""Threads, forks, signals and memory."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def test_python_runs_during_a_pass(planted: fl.Model) -> None:
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
    assert seconds > 0.05, "too short to measure"
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
            answer = "ran"
        except fl.EngineError as error:
            answer = str(error)
        except BaseException as error:
            answer = repr(error)
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    answer = os.read(read, 1000).decode()
    assert os.waitpid(child, 0)[1] == 0
    assert "is a fork without its threads: load the model here" in answer
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
    # A pass with hooks stops only between two whole layers; 8000 tokens keep them short.
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


@unix
def test_ctrl_c_stops_loading(tmp_path: Path) -> None:
    """The checkpoint is a sparse file: 16 layers of 67 M zeros, seconds of work to pack."""
    bfloat16_checkpoint(tmp_path, layers=16, hidden=2048, intermediate=8192)
    program = f"""
import time, fathom_lm as fl
print("ready", flush=True)
try:
    fl.Model({str(tmp_path)!r}, precision="bf16", threads=1)
    print("finished")
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.perf_counter()
    rest, _ = process.communicate(timeout=60)
    assert rest == "interrupted\n"
    # A tensor is at most 34 MB.
    assert time.perf_counter() - sent < 5


def bfloat16_checkpoint(directory: Path, layers: int, hidden: int, intermediate: int) -> None:
    """A checkpoint of zeros that takes no space on disk."""
    vocab, heads = 1000, 16
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": vocab,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}.self_attn.{projection}.weight"] = [hidden, hidden]
        for projection in ("gate_proj", "up_proj"):
            shapes[f"{prefix}.mlp.{projection}.weight"] = [intermediate, hidden]
        shapes[f"{prefix}.mlp.down_proj.weight"] = [hidden, intermediate]
        shapes[f"{prefix}.input_layernorm.weight"] = [hidden]
        shapes[f"{prefix}.post_attention_layernorm.weight"] = [hidden]
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


resident_is_known = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is read from /proc"
)


@resident_is_known
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


@resident_is_known
def test_ten_thousand_calls_do_not_grow(model: fl.Model, ids: list[int]) -> None:
    """Short calls of every kind; one in a hundred is a scan, which waits for the disk."""

    def see(values: Any, site: fl.HookSite) -> Any:
        return values + 0

    def call(i: int) -> None:
        kind = i % 100
        if kind == 0:
            fl.scan(model, [ids[:8]], progress=False)
        elif kind < 10:
            model.run_with_cache([ids[:3], ids[:5]], "embed")
        elif kind < 40:
            model.encode(ids).tolist()
        elif kind < 70:
            model.run_with_cache(ids[:8], ["resid_post", "q.1"], positions=[i % 8])
        else:
            model.run_with_hooks(ids[:8], [("mlp_out.1", see)])

    for i in range(1000):
        call(i)
    gc.collect()
    before = resident()
    for i in range(10_000):
        call(i)
    gc.collect()
    grown = resident() - before
    assert grown < 4 << 20, f"{grown} bytes"
