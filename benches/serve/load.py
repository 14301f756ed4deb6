#!/usr/bin/env python3
"""Latency and throughput of `fathom serve` beside llama.cpp's server.

    load.py CHECKPOINT [--fathom PATH] [--isa avx2] [--draft D] [--clients 1,4,16,64]
            [--prompt-tokens 128] [--output-tokens 64] [--rounds 3] [--threads N] [--gguf FILE]
            [--llama BUILD | --no-llama] [--generator guidellm --seconds 25] [--quick]
            [--minutes 12] [--json FILE]

CHECKPOINT has bfloat16 weights and a byte-level BPE tokenizer. llama.cpp serves the same weights as
a GGUF file, which this script writes unless --gguf names it. Each server runs alone, with the same
number of threads and a place in the batch for every client. They take turns for several rounds,
because memory bandwidth on a shared host varies, and the medians of the rounds are printed, and
their ratios, with the range of the rounds. No two prompts are alike; every answer has
--output-tokens tokens.

The clients are those of clients.py, one thread, with a fixed number of requests; or those of
guidellm for --seconds seconds, whose processes take much of a machine of two cores from the server.

BUILD is what ../peers/build_llama.sh makes: all instruction sets of this CPU, or AVX2 alone with
--isa avx2. Without it, the llama.cpp of the package xllamacpp runs, which is compiled for AVX2.

Needs the packages of requirements.txt.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import clients as own

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "peers"), str(HERE.parents[1] / "tests/serve")]

from engines import write_gguf  # noqa: E402
from llama_server import LlamaServer  # noqa: E402
from server import Server  # noqa: E402

# Name in guidellm's report -> heading.
FIGURES = {
    "time_to_first_token_ms": "TTFT, ms",
    "time_per_output_token_ms": "TPOT, ms",
    "inter_token_latency_ms": "ITL, ms",
}
RATE = "output, tok/s"
HEADS = [*FIGURES.values(), RATE]


def fathom(args, draft, most):
    models = ["--target", args.checkpoint, *(["--draft", draft] if draft else [])]
    mode = "auto" if draft else "ar"
    options = ["--mode", mode, "--precision", args.precision, "--batch-size", most]
    options += ["--max-queue", 4 * most, *(["--isa", args.isa] if args.isa else [])]
    # A draft gets its own share of the threads.
    options += [] if draft else ["--target-threads", args.threads]
    return Server(*models, *options, fathom=args.fathom)


def llama_cpp(args, gguf, most):
    # Room for the tokens by which a prompt of random words exceeds its nominal length.
    context = 2 * args.prompt_tokens + args.output_tokens
    binary = args.llama and args.llama / "native/bin/llama-server"
    libraries = args.llama / "avx2/bin" if args.llama and args.isa == "avx2" else None
    return LlamaServer(gguf, args.threads, most, context, binary, libraries)


def guidellm(url, args):
    """The figures by number of clients, from guidellm's report."""
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch) / "report.json"
        data = f"prompt_tokens={args.prompt_tokens},output_tokens={args.output_tokens}"
        command = [str(pathlib.Path(sys.executable).with_name("guidellm")), "run"]
        command += ["--backend", f"kind=openai_http,target={url},request_format=/v1/completions"]
        command += ["--profile", "kind=concurrent,streams=1"]
        command += ["--override", "profile.streams", ",".join(map(str, args.clients))]
        command += ["--constraint", f"kind=max_duration,seconds={args.seconds}"]
        command += ["--data", f"kind=synthetic_text,{data}"]
        command += ["--tokenizer", f"kind=hf_auto,model={args.checkpoint}"]
        command += ["--output", f"kind=json,path={report}", "--disable-console"]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        offline |= {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}
        subprocess.run(command, check=True, env=os.environ | offline)
        benchmarks = json.loads(report.read_text())["benchmarks"]
    return {clients: figures(told) for clients, told in zip(args.clients, benchmarks)}


def figures(benchmark):
    """The median latencies and the rate of one benchmark; errors end the measurement."""
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    if totals["errored"] or not totals["successful"]:
        sys.exit(f"guidellm: {totals}; no request ended within --seconds, or one failed")
    told = {head: metrics[name]["successful"]["median"] for name, head in FIGURES.items()}
    tokens = metrics["output_token_count"]["successful"]["total_sum"]
    return told | {RATE: tokens / benchmark["duration"]}


def measure(server, args):
    """The figures by number of clients."""
    if args.generator == "guidellm":
        return guidellm(server.url, args)
    own.load(server.port, 1, 1, args)  # faults in memory; not counted
    # Few clients send more requests each, so that the medians are of some; many send two.
    requests = lambda clients: clients * max(2, round(8 / clients))
    return {
        clients: own.load(server.port, clients, requests(clients), args)
        for clients in args.clients
    }


def medians(rounds):
    return {head: statistics.median(told[head] for told in rounds) for head in HEADS}


def ratios(ours, theirs, head):
    """The median and the range of the rounds' ratios; above 1 is better than llama.cpp."""
    better = lambda a, b: a / b if head == RATE else b / a
    told = [better(a[head], b[head]) for a, b in zip(ours, theirs)]
    return {"median": statistics.median(told), "min": min(told), "max": max(told)}


def summary(rounds, args):
    """By server and number of clients: the medians and, beside llama.cpp, the ratios."""
    of = lambda name, clients: [told[clients] for told in rounds[name]]
    results = {
        name: {str(clients): medians(of(name, clients)) for clients in args.clients}
        for name in rounds
    }
    for name in rounds:
        for clients in args.clients if "llama.cpp" in rounds and name != "llama.cpp" else []:
            ours, theirs = of(name, clients), of("llama.cpp", clients)
            told = {head: ratios(ours, theirs, head) for head in HEADS}
            results[name][str(clients)]["ratios"] = told
    return results


def table(results):
    """One row for each server and number of clients. In brackets: the ratio to llama.cpp's server,
    above 1 is better than llama.cpp, and the range of the rounds."""
    print(f"| server | clients | {' | '.join(HEADS)} |")
    print("|---|---:|" + "---:|" * len(HEADS))
    for name, by_clients in results.items():
        for clients, told in by_clients.items():
            cells = [f"{told[head]:.1f}" for head in HEADS]
            for i, ratio in enumerate(told.get("ratios", {}).values()):
                between = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
                cells[i] += f" ({ratio['median']:.2f} ×, {between})"
            print(f"| {name} | {clients} | {' | '.join(cells)} |")


def arguments():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--isa", help="instruction set of fathom serve")
    parser.add_argument("--draft", help="also measure `--mode auto` with this draft")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 16, 64])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--generator", choices=["own", "guidellm"], default="own")
    parser.add_argument(
        "--seconds", type=int, default=25, help="guidellm: for each number of clients"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--llama", type=pathlib.Path, help="the directory of build_llama.sh")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round of little, a minute")
    parser.add_argument("--minutes", type=float, default=12, help="no round is started after that")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.prompt_tokens, args.output_tokens = 1, 5, 32, 16
        args.clients = args.clients[:3]
    args.seed = 0
    return args


def main():
    args = arguments()
    began, load, most = time.monotonic(), os.getloadavg(), max(args.clients)
    with contextlib.ExitStack() as stack:
        servers = {"fathom": lambda: fathom(args, None, most)}
        if args.draft:
            servers["fathom with a draft"] = lambda: fathom(args, args.draft, most)
        if not args.no_llama:
            gguf = args.gguf
            if gguf is None:
                scratch = stack.enter_context(tempfile.TemporaryDirectory())
                gguf = pathlib.Path(scratch) / "model.gguf"
                config = json.loads((args.checkpoint / "config.json").read_text())
                write_gguf(args.checkpoint, config, gguf)
            servers["llama.cpp"] = lambda: llama_cpp(args, gguf, most)
        rounds, longest = {name: [] for name in servers}, 0
        for number in range(args.rounds):
            at = time.monotonic()
            if at + longest > began + 60 * args.minutes:
                print(f"{number} of {args.rounds} rounds: the time is up", file=sys.stderr)
                break
            for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
                with servers[name]() as server:
                    rounds[name].append(measure(server, args))
            longest = max(longest, time.monotonic() - at)
    results = summary(rounds, args)
    table(results)
    took = time.monotonic() - began
    count = len(rounds["fathom"])
    print(f"\n{count} rounds, {args.threads} threads, {took:.0f} s, load average {load[0]:.1f}")
    if args.json:
        told = {"threads": args.threads, "isa": args.isa, "load": load, "generator": args.generator}
        told |= {"servers": results, "rounds": rounds}
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
