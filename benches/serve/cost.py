#!/usr/bin/env python3
"""CPU seconds for each token: `fathom serve` with 16 streams, and `fathom generate` on the same
batch.

    cost.py TARGET [--draft D] [--fathom PATH] [--streams 16] [--tokens 256] [--rounds 5]

Both get the same prompts and options, ignore the end-of-text token and stop after --tokens tokens,
so they run the same passes. Each measures --tokens tokens less one token: loading, prefill and
starting cancel out. They take turns, and medians are printed. The server's clients are not counted.

A checkpoint in the shape of a real model: `fathom bench-engine --shape qwen2.5-0.5b --keep DIR`
writes one of random weights without a tokenizer; that of tests/fixtures/models/draft serves.
"""

import argparse
import asyncio
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests/serve"))

import wire  # noqa: E402
from server import Server  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def prompts(count):
    return [f"Natalia sold {i} clips in April, and half as many in May." for i in range(count)]


def options(args):
    models = ["--target", args.target, *(["--draft", args.draft] if args.draft else [])]
    # A fixed mode and draft length: what is measured, and chosen, varies from run to run.
    mode = ["--mode", "pearl", "--gamma", 4] if args.draft else ["--mode", "ar"]
    return [*models, *mode, "--precision", args.precision, "--batch-size", args.streams]


def generate(args, tokens):
    """CPU seconds of `fathom generate`."""
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts(args.streams)))
        command = [args.fathom, "generate", *options(args), "--prompts", file, "--ignore-eos"]
        command += ["--max-tokens", tokens, "--out", pathlib.Path(scratch) / "out.jsonl"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [str(part) for part in command] + ["--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def serve(args, server, tokens):
    """CPU seconds of a server for one streamed answer to each prompt."""

    async def together():
        bodies = [
            {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
            | {"temperature": 0, "stream": True, "ignore_eos": True}
            for prompt in prompts(args.streams)
        ]
        path = "/v1/chat/completions"
        await asyncio.gather(*(wire.exchange(server.port, path, body) for body in bodies))

    before = cpu_seconds(server.process.pid)
    asyncio.run(together())
    server.idle()
    return cpu_seconds(server.process.pid) - before


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--draft")
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    counted = args.streams * (args.tokens - 1)
    costs = {"generate": [], "serve": []}
    with Server(*options(args), "--no-prefix-cache", fathom=args.fathom) as server:
        serve(args, server, 2)  # the first pass allocates
        for _ in range(args.rounds):
            for name, run in [
                ("generate", lambda tokens: generate(args, tokens)),
                ("serve", lambda tokens: serve(args, server, tokens)),
            ]:
                one = run(1)
                costs[name].append((run(args.tokens) - one) / counted)
    medians = {name: statistics.median(told) for name, told in costs.items()}
    for name, told in costs.items():
        spread = f"{min(told) * 1e3:.3f} to {max(told) * 1e3:.3f}"
        print(f"{name}: {medians[name] * 1e3:.3f} ms of CPU time a token ({spread})")
    print(f"serve / generate: {medians['serve'] / medians['generate']:.3f}")


if __name__ == "__main__":
    main()
