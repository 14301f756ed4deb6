#!/usr/bin/env python3
"""Prefill and decoding of Fathom and llama.cpp on the same checkpoint and threads, in short turns.

    turns.py CHECKPOINT GGUF [--fathom PATH] [--llama BUILD] [--threads 2] [--turns 5]
             [--tokens 512,2048] [--minutes 6] [--json FILE]

CHECKPOINT has bfloat16 weights and a tokenizer, and GGUF has the same weights; prepare.sh writes
both. BUILD is what build_llama.sh makes: llama.cpp with all instruction sets of this CPU, and with
AVX2 alone. Without it, only the AVX2 of the package xllamacpp runs.

All engines are loaded once, as servers of one request at a time. All but the one whose turn it is
are stopped (SIGSTOP), so each has the machine to itself and a turn takes seconds. Each turn
measures, through the same requests of token ids: a prefill of each length, as the time to one
token; and decoding of one sequence, as the time to --steps tokens more than to one. So HTTP,
sampling and scheduling count, for every engine alike. The order is reversed in every second turn.

The ratios are those of the same turn: the median and the range. The range of five turns contains
the true median with a probability of 94 %, that of seven with 98 %. When the time is up, no further
turn is started.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "serve"), str(HERE.parents[1] / "tests/serve")]

from in_time import turns_in_time  # noqa: E402
from llama_server import LlamaServer  # noqa: E402
from server import Server  # noqa: E402

IDS = 4096  # prompts are of the first ids, which every vocabulary has
ENGINES = [
    "fathom",
    "fathom avx2",
    "llama.cpp",
    "llama.cpp, no flash attention",
    "llama.cpp avx2",
    "llama.cpp avx2, no flash attention",
]


def start(engine, args):
    """A server of one request at a time."""
    context = max([*args.tokens, args.context + args.steps]) + 16
    if engine.startswith("fathom"):
        options = ["--target", args.checkpoint, "--mode", "ar", "--precision", "bf16"]
        options += ["--batch-size", 1, "--no-prefix-cache", "--target-threads", args.threads]
        isa = ["--isa", "avx2"] if "avx2" in engine else []
        return Server(*options, *isa, fathom=args.fathom)
    binary = args.llama and args.llama / "native/bin/llama-server"
    libraries = args.llama / "avx2/bin" if args.llama and "avx2" in engine else None
    extra = ["-fa", "off" if "no flash" in engine else "auto"]
    return LlamaServer(args.gguf, args.threads, 1, context, binary, libraries, extra)


def seconds(engine, server, prompt, tokens):
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    if engine.startswith("llama"):
        # Greedy without llama.cpp's other samplers, which sort the vocabulary.
        body |= {"cache_prompt": False, "samplers": ["temperature"]}
    body = json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    took = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        sys.exit(f"{engine}: {answer.decode()}")
    counted = json.loads(answer)["usage"]
    told = counted["prompt_tokens"], counted["completion_tokens"]
    if told != (len(prompt), tokens):
        sys.exit(f"{engine}: {told} tokens of prompt and text; expected {(len(prompt), tokens)}")
    return took


def turn(engine, server, args, number):
    """The rates of one turn, in tokens per second."""
    os.kill(server.process.pid, signal.SIGCONT)
    try:
        # No two prompts of a server begin alike.
        prompt = lambda tokens: [(i * 2654435761 + number * 97) % IDS for i in range(tokens)]
        rates = {}
        for tokens in args.tokens:
            rates[f"prefill {tokens}"] = tokens / seconds(engine, server, prompt(tokens), 1)
        one = seconds(engine, server, prompt(args.context), 1)
        more = seconds(engine, server, prompt(args.context), 1 + args.steps)
        return rates | {"decode": args.steps / (more - one)}
    finally:
        os.kill(server.process.pid, signal.SIGSTOP)


def summary(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(turns):
    """Fathom's rates over llama.cpp's, by the pair of engines and the figure."""
    ours = [engine for engine in turns if engine.startswith("fathom")]
    theirs = [engine for engine in turns if engine.startswith("llama")]
    return {
        f"{a} / {b}": {
            figure: summary([x[figure] / y[figure] for x, y in zip(turns[a], turns[b])])
            for figure in turns[a][0]
        }
        for a in ours
        for b in theirs
    }


def tables(turns):
    figures = list(next(iter(turns.values()))[0])
    line = lambda cells: print(f"| {' | '.join(cells)} |")
    line(["engine, tok/s", *figures])
    line(["---", *["---:"] * len(figures)])
    for engine, rates in turns.items():
        of = lambda figure: statistics.median(rate[figure] for rate in rates)
        line([engine, *[f"{of(figure):.1f}" for figure in figures]])
    print()
    line(["ratio", *figures])
    line(["---", *["---:"] * len(figures)])
    for pair, told in ratios(turns).items():
        cell = lambda told: f"{told['median']:.2f} × ({told['min']:.2f} to {told['max']:.2f})"
        line([pair, *[cell(told[figure]) for figure in figures]])


def stop(server):
    os.kill(server.process.pid, signal.SIGCONT)  # a stopped process does not end
    server.__exit__(None, None, None)


def main():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--llama", type=pathlib.Path, help="the directory of build_llama.sh")
    parser.add_argument("--tokens", type=numbers, default=[512, 2048])
    parser.add_argument("--context", type=int, default=64, help="tokens before decoding")
    parser.add_argument("--steps", type=int, default=48, help="tokens of decoding")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--engines", type=lambda text: text.split(";"), help="; between two")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    began, load = time.monotonic(), os.getloadavg()
    engines = args.engines or (ENGINES if args.llama else [*ENGINES[:2], *ENGINES[4:]])
    servers, turns = {}, {engine: [] for engine in engines}
    try:
        for engine in engines:
            servers[engine] = start(engine, args)
            short = argparse.Namespace(tokens=args.tokens[:1], context=args.context, steps=4)
            turn(engine, servers[engine], short, 0)  # faults in memory; not counted
        for number in turns_in_time(args.turns, args.minutes, began):
            for engine in engines if number % 2 == 0 else engines[::-1]:
                turns[engine].append(turn(engine, servers[engine], args, number + 1))
    finally:
        for server in servers.values():
            stop(server)
    tables(turns)
    count = len(turns[engines[0]])
    took = time.monotonic() - began
    print(f"\n{count} turns, {args.threads} threads, {took:.0f} s, load average {load[0]:.1f}")
    if args.json:
        told = {"threads": args.threads, "load": load, "turns": turns, "ratios": ratios(turns)}
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
