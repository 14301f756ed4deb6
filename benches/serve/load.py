#!/usr/bin/env python3
"""Latency and throughput of `fathom serve` under guidellm, beside llama.cpp's server.

    load.py CHECKPOINT [--fathom PATH] [--draft D] [--precision bf16] [--clients 1,4,16,64]
            [--prompt-tokens 128] [--output-tokens 64] [--seconds 30] [--rounds 3] [--threads N]
            [--llama-server PATH | --no-llama] [--json]

CHECKPOINT has bfloat16 weights and a byte-level BPE tokenizer. llama.cpp serves the same weights as
a GGUF file, which this script writes. Each server runs alone, with the same number of threads and a
place in the batch for every client. They take turns for several rounds, because memory bandwidth on
a shared host varies, and the medians of the rounds are printed. Prompts are random words, no two
alike; every answer has --output-tokens tokens.

The llama.cpp of the package xllamacpp is compiled for AVX2. On a CPU with AVX-512 or AMX, give a
--llama-server that was built on the machine.

Needs the packages of requirements.txt.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "peers"), str(HERE.parents[1] / "tests/serve")]

from engines import write_gguf  # noqa: E402
from server import Server  # noqa: E402

# Name in guidellm's report -> heading.
FIGURES = {
    "time_to_first_token_ms": "TTFT, ms",
    "time_per_output_token_ms": "TPOT, ms",
    "inter_token_latency_ms": "ITL, ms",
}
RATE = "output, tok/s"


@contextlib.contextmanager
def fathom(args, draft, most):
    models = ["--target", args.checkpoint, *(["--draft", draft] if draft else [])]
    mode = "auto" if draft else "ar"
    options = ["--mode", mode, "--precision", args.precision, "--batch-size", most]
    options += ["--max-queue", 4 * most]
    # A draft gets its own share of the threads.
    options += [] if draft else ["--target-threads", args.threads]
    with Server(*models, *options, fathom=args.fathom) as server:
        yield server.url


@contextlib.contextmanager
def llama_cpp(args, gguf, most):
    # Room for the tokens by which a prompt of random words exceeds its nominal length.
    context = 2 * args.prompt_tokens + args.output_tokens
    if args.llama_server:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [args.llama_server, "-m", gguf, "--port", port, "-np", most]
        command += ["-c", most * context, "-t", args.threads, "-tb", args.threads]
    else:
        command = [sys.executable, HERE / "llama_server.py", gguf, "--slots", most]
        command += ["--threads", args.threads, "--context", context]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL if args.llama_server else subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        told = f"http://127.0.0.1:{port}" if args.llama_server else process.stdout.readline()
        url = told.strip()
        wait_until_healthy(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def wait_until_healthy(url, process):
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                sys.exit("llama.cpp's server ended")
            time.sleep(0.1)


def guidellm(url, args, clients):
    """The benchmarks of guidellm's report, one for each number of clients."""
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch) / "report.json"
        data = f"prompt_tokens={args.prompt_tokens},output_tokens={args.output_tokens}"
        command = [str(pathlib.Path(sys.executable).with_name("guidellm")), "run"]
        command += ["--backend", f"kind=openai_http,target={url},request_format=/v1/completions"]
        command += ["--profile", "kind=concurrent,streams=1"]
        command += ["--override", "profile.streams", ",".join(map(str, clients))]
        command += ["--constraint", f"kind=max_duration,seconds={args.seconds}"]
        command += ["--data", f"kind=synthetic_text,{data}"]
        command += ["--tokenizer", f"kind=hf_auto,model={args.checkpoint}"]
        command += ["--output", f"kind=json,path={report}", "--disable-console"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        subprocess.run(command, check=True, env=offline)
        return json.loads(report.read_text())["benchmarks"]


def figures(benchmark):
    """The median latencies and the rate of one benchmark; errors end the measurement."""
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    if totals["errored"] or not totals["successful"]:
        sys.exit(f"guidellm: {totals}")
    told = {head: metrics[name]["successful"]["median"] for name, head in FIGURES.items()}
    tokens = metrics["output_token_count"]["successful"]["total_sum"]
    return told | {RATE: tokens / benchmark["duration"]}


def medians(rounds):
    return {head: statistics.median(told[head] for told in rounds) for head in rounds[0]}


def table(results, args):
    """One row for each server and number of clients, with ratios to llama.cpp's server: above 1 is
    better than llama.cpp."""
    heads = [*FIGURES.values(), RATE]
    print(f"| server | clients | {' | '.join(heads)} |")
    print("|---|---:|" + "---:|" * len(heads))
    peer = results.get("llama.cpp")
    for name, by_clients in results.items():
        for clients in args.clients:
            told = by_clients[clients]
            cells = [f"{told[head]:.1f}" for head in heads]
            if peer and by_clients is not peer:
                other = peer[clients]
                better = [other[head] / told[head] for head in FIGURES.values()]
                better.append(told[RATE] / other[RATE])
                cells = [f"{cell} ({ratio:.2f} ×)" for cell, ratio in zip(cells, better)]
            print(f"| {name} | {clients} | {' | '.join(cells)} |")


def main():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--draft", help="also measure `--mode auto` with this draft")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 16, 64])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=30, help="for each number of clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-server", help="a llama-server that was built on this machine")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    most = max(args.clients)
    with tempfile.TemporaryDirectory() as scratch:
        servers = {"fathom": lambda: fathom(args, None, most)}
        if args.draft:
            servers["fathom with a draft"] = lambda: fathom(args, args.draft, most)
        if not args.no_llama:
            gguf = pathlib.Path(scratch) / "model.gguf"
            config = json.loads((args.checkpoint / "config.json").read_text())
            write_gguf(args.checkpoint, config, gguf)
            servers["llama.cpp"] = lambda: llama_cpp(args, gguf, most)
        rounds = {name: [] for name in servers}
        for _ in range(args.rounds):
            for name, start in servers.items():
                with start() as url:
                    rounds[name].append(guidellm(url, args, args.clients))
    results = {
        name: {
            clients: medians([figures(benchmarks[i]) for benchmarks in told])
            for i, clients in enumerate(args.clients)
        }
        for name, told in rounds.items()
    }
    if args.json:
        print(json.dumps({"threads": args.threads, "servers": results}, indent=1))
    else:
        table(results, args)


if __name__ == "__main__":
    main()
