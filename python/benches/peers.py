#!/usr/bin/env python3
"""Compares Fathom with TransformerLens (TransformerBridge) and nnsight on one checkpoint, with the
same number of threads.

    python benches/peers.py --model path/to/checkpoint
    python benches/peers.py --model planted --tokens 512 --peers fathom nnsight

Two tasks at each length: the residual stream after every layer, and the sink score of every token,
head and layer, which the peers compute from the attention matrix `[heads, T, T]` of one layer at a
time. For each: seconds and CPU seconds of all threads (the smallest of a few repeats), the ratio of
CPU seconds to Fathom's in the same turn (the median over the turns), the growth of memory from the loaded model to the peak, and the
difference from Fathom's values. Running out of memory or time is a result.

Fathom runs in the interpreter that this script is started with. Each peer has its own environment
below `--work`, made on first use; PyTorch is large (5 GB). Every measurement is a process of its
own, and the peers take turns, so that other load on the CPU affects all of them. Linux only: memory
is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

# The packages of each peer. They bring transformers and torch in versions of their choice.
PEERS = {
    "fathom": [],
    "transformer-lens": ["transformer-lens>=3", "numpy>=2.1"],
    "nnsight": ["nnsight>=0.5", "accelerate", "numpy>=2.1"],
}
TASKS = ("resid_post", "sink_score")


def status(pid: int | str, field: str) -> int:
    """Bytes in a field of /proc/PID/status; 0 if the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def text(model: Path, tokens: int) -> list[int]:
    """The ids that every peer runs on: BOS, if there is one, and random ids of the vocabulary."""
    config = json.loads((model / "config.json").read_text())
    ids = np.random.default_rng(0).integers(3, config["vocab_size"] - 8, tokens)
    if isinstance(config.get("bos_token_id"), int):
        ids[0] = config["bos_token_id"]
    return [int(i) for i in ids]


# One measurement, in a process of its own.


class Fathom:
    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import fathom_lm as fl

        self.version = fl.__version__
        self.model = fl.Model(path, threads=threads, precision=precision, ids_only=True)

    def resid_post(self, ids: list[int]) -> Any:
        _, cache = self.model.run_with_cache(ids, "resid_post", logits="last")
        return list(cache.values())

    def sink_score(self, ids: list[int]) -> Any:
        _, cache = self.model.run_with_cache(ids, "sink_score", logits="last")
        return list(cache.values())


class Torch:
    """The common part of the two peers."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.dtype = torch.float32 if precision == "f32" else torch.bfloat16

    def tensor(self, ids: list[int]) -> Any:
        return self.torch.tensor([ids])

    def received(self, pattern: Any) -> Any:
        """`[1, heads, T, T]` to `[heads, T]`: the mean attention that a position receives from
        itself and later positions."""
        length = pattern.shape[-1]
        seen_by = length - self.torch.arange(length)
        return pattern[0].sum(dim=-2, dtype=self.torch.float32) / seen_by


class TransformerLens(Torch):
    def __init__(self, path: Path, threads: int, precision: str) -> None:
        super().__init__(path, threads, precision)
        from importlib.metadata import version

        from transformer_lens.model_bridge import TransformerBridge

        self.version = version("transformer-lens")
        self.model = TransformerBridge.boot_transformers(str(path), device="cpu", dtype=self.dtype)

    def resid_post(self, ids: list[int]) -> Any:
        wanted = lambda name: name.endswith("hook_resid_post")  # noqa: E731
        _, cache = self.model.run_with_cache(self.tensor(ids), names_filter=wanted)
        layers = len(self.model.blocks)
        return [cache[f"blocks.{layer}.hook_resid_post"][0] for layer in range(layers)]

    def sink_score(self, ids: list[int]) -> Any:
        scores: dict[str, Any] = {}

        def reduce(pattern: Any, hook: Any) -> None:
            scores[hook.name] = self.received(pattern)

        layers = len(self.model.blocks)
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(layers)]
        self.model.run_with_hooks(self.tensor(ids), fwd_hooks=[(name, reduce) for name in names])
        return [scores[name] for name in names]


class Nnsight(Torch):
    def __init__(self, path: Path, threads: int, precision: str) -> None:
        super().__init__(path, threads, precision)
        import nnsight

        self.version = nnsight.__version__
        self.model = nnsight.LanguageModel(
            str(path),
            device_map="cpu",
            dtype=self.dtype,
            attn_implementation="eager",
            dispatch=True,
        )

    def resid_post(self, ids: list[int]) -> Any:
        with self.model.trace(self.tensor(ids), logits_to_keep=1):
            kept = list().save()
            for layer in self.model.model.layers:
                out = layer.output
                kept.append(out[0] if isinstance(out, tuple) else out)
        return [out[0] if out.ndim == 3 else out for out in kept]

    def sink_score(self, ids: list[int]) -> Any:
        received = self.received
        with self.model.trace(self.tensor(ids), logits_to_keep=1):
            kept = list().save()
            for layer in self.model.model.layers:
                kept.append(received(layer.self_attn.output[1]))
        return list(kept)


KINDS = {"fathom": Fathom, "transformer-lens": TransformerLens, "nnsight": Nnsight}


def measure(args: argparse.Namespace) -> None:
    """Loads, warms up, measures, and writes `OUT.json` and `OUT.npy`, `[layers, …]`."""
    peer = KINDS[args.worker](args.model, args.threads, args.precision)
    task = getattr(peer, args.task)
    ids = text(args.model, args.tokens[0])
    task(ids[:16])
    before = status("self", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    seconds, cpu = [], []
    answer: Any = None
    for _ in range(args.repeats):
        answer = None
        start, busy = time.perf_counter(), time.process_time()
        answer = task(ids)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    grown = max(status("self", "VmHWM") - before, 0)
    out = None
    for layer, values in enumerate(answer):
        values = np.asarray(values if isinstance(values, np.ndarray) else values.float())
        if out is None:
            shape = (len(answer), *values.shape)
            out = np.lib.format.open_memmap(f"{args.out}.npy", "w+", dtype=np.float32, shape=shape)
        out[layer] = values
    found = {"seconds": min(seconds), "cpu": min(cpu), "grown": grown, "version": peer.version}
    Path(f"{args.out}.json").write_text(json.dumps(found))


# All of them.


def interpreter(peer: str, work: Path) -> Path:
    """The Python interpreter of a peer, with the peer installed."""
    if peer == "fathom":
        return Path(sys.executable)
    home = work / peer
    python = home / "bin" / "python"
    if not python.exists():
        print(f"making an environment for {peer} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True)
    module = "transformer_lens" if peer == "transformer-lens" else peer
    there = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    if there.returncode != 0:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PEERS[peer]], check=True)
    return python


def run(
    peer: str, python: Path, task: str, tokens: int, args: argparse.Namespace
) -> dict[str, Any]:
    """The measurement of one process, or `problem`: why there is none."""
    out = args.work / f"{peer}-{task}-{tokens}"
    for suffix in (".json", ".npy"):
        out.with_name(out.name + suffix).unlink(missing_ok=True)
    command = [
        *(str(python), __file__, "--worker", peer, "--task", task, "--tokens", str(tokens)),
        *("--model", str(args.model), "--threads", str(args.threads), "--out", str(out)),
        *("--precision", args.precision, "--repeats", str(args.repeats), "--work", str(args.work)),
    ]
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), TOKENIZERS_PARALLELISM="false")
    env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    log = out.with_name(out.name + ".log")
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
        problem = None
        while process.poll() is None:
            time.sleep(0.05)
            if status(process.pid, "VmRSS") > args.memory * 2**30:
                problem = f"out of memory (more than {args.memory:.1f} GiB)"
            elif time.monotonic() - began > args.timeout:
                problem = f"more than {args.timeout} s"
            if problem is not None:
                process.kill()
                process.wait()
    result = out.with_name(out.name + ".json")
    if problem is None and process.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        memory = process.returncode == -9 or any(
            sign in lines[-1]
            for sign in ("MemoryError", "not enough memory", "can't allocate memory")
        )
        problem = "out of memory" if memory else f"failed: {lines[-1][:120]} ({log})"
    return {"problem": problem} if problem else json.loads(result.read_text())


def differs(ours: Path, theirs: Path, task: str) -> str:
    """The median and the largest difference: of rows relative to their norm, or of scores."""
    a, b = np.load(ours, mmap_mode="r"), np.load(theirs, mmap_mode="r")
    if a.shape != b.shape:
        return f"shapes {a.shape} and {b.shape}"
    gaps = []
    for x, y in zip(a, b, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if task == "resid_post":
            norms = np.maximum(np.linalg.norm(x, axis=-1), 1e-12)
            gaps.append(np.linalg.norm(x - y, axis=-1) / norms)
        else:
            gaps.append(np.abs(x - y).ravel())
    every = np.concatenate(gaps)
    return f"{np.median(every):.1e}, at most {every.max():.1e}"


def available() -> float:
    """Free memory in GiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 8.0


def compare(
    task: str, tokens: int, pythons: dict[str, Path], args: argparse.Namespace
) -> list[str]:
    """The cells of each peer, after all turns of one task at one length."""
    measured: dict[str, list[dict[str, Any]]] = {peer: [] for peer in pythons}
    agree = dict.fromkeys(pythons, "")
    ours = args.work / f"fathom-{task}-{tokens}.npy"
    for _ in range(args.turns):
        for peer, python in pythons.items():
            if any("problem" in found for found in measured[peer]):
                continue
            measured[peer].append(run(peer, python, task, tokens, args))
            theirs = args.work / f"{peer}-{task}-{tokens}.npy"
            if peer != "fathom" and ours.exists() and theirs.exists():
                agree[peer] = differs(ours, theirs, task)
                theirs.unlink()
    ours.unlink(missing_ok=True)
    lines = []
    for peer, turns in measured.items():
        if "problem" in turns[-1]:
            lines.append(f"{peer} | {turns[-1]['problem']} | | | | ")
            continue
        seconds = min(turn["seconds"] for turn in turns)
        cpu = min(turn["cpu"] for turn in turns)
        pairs = zip(turns, measured.get("fathom", []))
        ratios = [a["cpu"] / b["cpu"] for a, b in pairs if "cpu" in b]
        ratio = f"{statistics.median(ratios):.1f}" if ratios else ""
        grown = max(turn["grown"] for turn in turns) / 2**20
        name = f"{peer} {turns[0]['version']}"
        numbers = f"{seconds:.2f} | {cpu:.2f} | {ratio} | {grown:.0f}"
        lines.append(f"{name} | {numbers} | {agree[peer]}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="a HuggingFace checkpoint's directory"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--repeats", type=int, default=3, help="passes of one process")
    parser.add_argument("--turns", type=int, default=1, help="processes of each peer")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--work", type=Path, default=Path("target/peers"), help="environments and results"
    )
    parser.add_argument(
        "--memory", type=float, help="GiB a process may have; 90 %% of what is free"
    )
    parser.add_argument("--timeout", type=int, default=1800, help="seconds a process may take")
    parser.add_argument("--worker", choices=list(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work = args.work.absolute()
    if args.worker:
        measure(args)
        return 0
    if args.memory is None:
        args.memory = 0.9 * available()
    args.work.mkdir(parents=True, exist_ok=True)
    pythons = {peer: interpreter(peer, args.work) for peer in args.peers}
    print(f"{args.model.name}, {args.precision}, {args.threads} threads, random ids\n")
    print(
        "| task | tokens | with | seconds | CPU seconds | ratio | memory beyond the model, MiB | "
        "differs from Fathom by |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for task in TASKS:
        for tokens in args.tokens:
            for line in compare(task, tokens, pythons, args):
                print(f"| {task} | {tokens} | {line} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
