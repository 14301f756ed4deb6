#!/usr/bin/env python3
"""Speculative decoding of Fathom, HuggingFace transformers and llama.cpp on the same trained pair,
in turns, each as a ratio over the engine's own plain decoding.

    speculation.py TARGET DRAFT --data DIR [--gguf TARGET DRAFT] [--fathom PATH] [--llama BUILD]
                   [--modes sd,pearl,suffix,auto] [--prompts 2] [--turns 5] [--json FILE]

Natural protocol: greedy, batch size 1, to the end-of-text token or --max-tokens, the same token
ids. Small models repeat themselves, which is easy to draft, so a text that ends in a loop is cut
where it first repeats: plain decoding says once where that is, and that many tokens are asked of
every engine (--no-cut to leave it). Fathom is `fathom bench --protocol natural`, one core for each
model: `ar` and the drafts' target have one thread, and pearl's draft a second one. The other
engines draft and verify on one thread: transformers' assisted generation and prompt lookup, and
llama.cpp's server with a draft model and with n-grams.

For each prompt, the engines run one after the other, each in all its modes, plain decoding among
them; the order is reversed in every second turn. Rates are those of decoding, without prefill.
The table has medians over turns, and their range. A mode whose text differs from the engine's own
plain text is marked.

--gguf has the models in GGUF; prepare.sh writes them. BUILD is what build_llama.sh makes; without
it, the AVX2 of the package xllamacpp runs. Needs torch and transformers, or --engines without
transformers.
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
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "serve"))

from assisted_generation import prompt_of  # noqa: E402
from in_time import turns_in_time  # noqa: E402
from llama_server import LlamaServer  # noqa: E402

# `draft N P`: at most N drafted tokens, each with a probability of at least P.
LLAMA_MODES = ["plain", "draft 4", "draft 8", "draft 16 0.75", "n-gram", "draft 8, n-gram"]
HF_MODES = ["plain", "assisted", "prompt lookup"]
PLAIN = {"fathom": "ar", "transformers": "plain", "llama.cpp": "plain"}


# --- texts ----------------------------------------------------------------------------------------


def first_repetition(text):
    """Where a text that ends in a loop of at least three rounds repeats for the first time; its
    length if it does not."""
    first = len(text)
    for period in range(1, len(text) // 3 + 1):
        start = len(text)
        while start > period and text[start - 1] == text[start - 1 - period]:
            start -= 1
        if len(text) - start >= 2 * period:
            first = min(first, start)
    return first


def read_prompts(args):
    """[{benchmark, line, ids, tokens}]: `tokens` is the number to ask for."""
    prompts = []
    for benchmark in args.benchmarks:
        with tempfile.TemporaryDirectory() as scratch:
            out = pathlib.Path(scratch) / "traces.jsonl"
            command = [args.fathom, "generate", "--target", args.target, "--mode", "ar"]
            command += ["--precision", args.precision, "--limit", args.prompts, "--quiet"]
            command += ["--prompts", args.data / f"{benchmark}.jsonl", "--out", out]
            command += ["--max-tokens", args.max_tokens]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            traces = [json.loads(line) for line in out.read_text().splitlines()]
        lines = (args.data / f"{benchmark}.jsonl").read_text().splitlines()
        for line, trace in zip(lines, traces):
            split = trace["prompt_len"]
            ids, text = trace["input_ids"][:split], trace["input_ids"][split:]
            tokens = first_repetition(text) if args.cut else len(text)
            prompts.append(
                {"benchmark": benchmark, "line": line, "ids": ids, "tokens": max(tokens, 2)}
                | {"prompt": prompt_of(line), "of": len(text)}
            )
    return prompts


# --- engines --------------------------------------------------------------------------------------
# `run(prompt)` returns {mode: (tokens, seconds, same text as plain decoding)}.


class Fathom:
    def __init__(self, args):
        self.args = args

    def run(self, prompt):
        args = self.args
        with tempfile.TemporaryDirectory() as scratch:
            (pathlib.Path(scratch) / "one.jsonl").write_text(prompt["line"] + "\n")
            command = [args.fathom, "bench", "--target", args.target, "--draft", args.draft]
            command += ["--data", scratch, "--benchmarks", "one", "--batch-sizes", 1, "--json"]
            command += ["--protocol", "natural", "--max-tokens", prompt["tokens"], "--quiet"]
            command += ["--modes", ",".join(args.modes), "--accounting", "one-core-each"]
            command += ["--target-threads", 1, "--draft-threads", 1]
            command += ["--precision", args.precision]
            # Fails if the text of a mode differs from that of plain decoding.
            out = subprocess.run(
                [str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True
            )
        rows = json.loads(out.stdout)["accountings"][0]["rows"]
        return {row["mode"].lower(): (row["num_tokens"], row["time_s"], True) for row in rows}

    def close(self):
        pass


class Llama:
    """One server for each mode; idle ones take no time."""

    def __init__(self, args):
        self.servers = contextlib.ExitStack()
        self.modes = {}
        target, draft = args.gguf
        for mode in args.llama_modes:
            kinds, extra = [], []
            for part in mode.split(", "):
                if part.startswith("draft"):
                    kinds.append("draft-simple")
                    _, most, *least = part.split()
                    extra += ["-md", draft, "--spec-draft-n-max", most]
                    extra += ["--spec-draft-p-min", *least] if least else []
                elif part == "n-gram":
                    kinds.append("ngram-simple")
            extra += ["--spec-type", ",".join(kinds)] if kinds else []
            binary = args.llama and args.llama / "native/bin/llama-server"
            server = LlamaServer(target, 1, 1, args.context, binary, extra=extra)
            self.modes[mode] = self.servers.enter_context(server)

    def run(self, prompt):
        told, plain = {}, None
        for mode, server in self.modes.items():
            body = {"prompt": prompt["ids"], "n_predict": prompt["tokens"], "temperature": 0}
            body |= {"samplers": ["temperature"], "cache_prompt": False, "return_tokens": True}
            headers = {"Content-Type": "application/json"}
            body = json.dumps(body).encode()
            request = urllib.request.Request(f"{server.url}/completion", body, headers)
            with urllib.request.urlopen(request, timeout=600) as response:
                answer = json.loads(response.read())
            text, timings = answer["tokens"], answer["timings"]
            plain = plain or text
            # Its clock starts at the first token.
            tokens = timings["predicted_n"] - 1
            told[mode] = (tokens, timings["predicted_ms"] / 1e3, text == plain)
        return told

    def close(self):
        self.servers.close()


class Transformers:
    """A process of its own that reads prompts and writes results, one JSON line each."""

    def __init__(self, args):
        command = [sys.executable, __file__, args.target, args.draft, "--worker"]
        command += ["--precision", args.precision, "--data", args.data]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, prompt):
        told = {key: prompt[key] for key in ("ids", "tokens")}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("transformers' process ended")
        return {mode: tuple(told) for mode, told in json.loads(line).items()}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def transformers_worker(args):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """Seconds and tokens since the first tokens of the text."""

        def __init__(self):
            self.began, self.first, self.puts = None, 0, 0

        def put(self, value):
            self.puts += 1
            if self.puts == 2:  # the first put is the prompt
                self.began, self.first = time.perf_counter(), value.numel()

        def end(self):
            self.ended = time.perf_counter()

    torch.set_num_threads(1)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    target, draft = load(args.target), load(args.draft)
    options = {
        "plain": {},
        "assisted": {"assistant_model": draft},
        "prompt lookup": {"prompt_lookup_num_tokens": 10},
    }

    def generate(ids, tokens, more):
        clock = Clock()
        mask = torch.ones_like(ids)
        out = target.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            streamer=clock,
            **more,
        )
        text = out[0, ids.shape[1] :].tolist()
        return text, len(text) - clock.first, clock.ended - clock.began

    for line in sys.stdin:
        prompt = json.loads(line)
        ids, told, plain = torch.tensor([prompt["ids"]]), {}, None
        for mode in HF_MODES:
            generate(ids, 2, options[mode])  # faults in memory
            text, tokens, seconds = generate(ids, prompt["tokens"], options[mode])
            plain = plain or text
            told[mode] = (tokens, seconds, text == plain)
        print(json.dumps(told), flush=True)


ENGINES = {"fathom": Fathom, "transformers": Transformers, "llama.cpp": Llama}


# --- results --------------------------------------------------------------------------------------


def rows_of(results, args):
    """One row for each benchmark, engine and mode: tokens per second, speedup and its range."""
    rows = []
    for benchmark in [*args.benchmarks, "all"]:
        for engine in args.engines:
            turns = results[engine]
            of = lambda turn: [told for name, told in turn if benchmark in (name, "all")]
            for mode in of(turns[0])[0]:
                rate = lambda turn, mode: sum(told[mode][0] for told in of(turn)) / max(
                    sum(told[mode][1] for told in of(turn)), 1e-9
                )
                rates = [rate(turn, mode) for turn in turns]
                speedups = [rate(turn, mode) / rate(turn, PLAIN[engine]) for turn in turns]
                same = all(told[mode][2] for turn in turns for told in of(turn))
                rows.append(
                    {"benchmark": benchmark, "engine": engine, "mode": mode, "same_text": same}
                    | {"tok_s": statistics.median(rates), "speedup": statistics.median(speedups)}
                    | {"min": min(speedups), "max": max(speedups)}
                )
    return rows


def table(rows):
    print("| Benchmark | Engine | Mode | tok/s | Speedup | of the turns | Same text |")
    print("|---|---|---|---:|---:|---|---|")
    for row in rows:
        print(
            f"| {row['benchmark']} | {row['engine']} | {row['mode']} | {row['tok_s']:.1f} "
            f"| {row['speedup']:.2f} | {row['min']:.2f} to {row['max']:.2f} "
            f"| {'yes' if row['same_text'] else 'no'} |"
        )


def main():
    names = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("draft", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--gguf", type=pathlib.Path, nargs=2, metavar=("TARGET", "DRAFT"))
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--llama", type=pathlib.Path, help="the directory of build_llama.sh")
    parser.add_argument("--engines", type=names, default=list(ENGINES))
    parser.add_argument("--modes", type=names, default=["sd", "pearl", "suffix", "auto"])
    parser.add_argument("--llama-modes", type=lambda text: text.split(";"), default=LLAMA_MODES)
    parser.add_argument("--benchmarks", type=names, default=names("AIME,CNNDM,GSM8K,HumanEval"))
    parser.add_argument("--prompts", type=int, default=2, help="of each benchmark")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--no-cut", dest="cut", action="store_false")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=15, help="no turn is started after that")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return transformers_worker(args)
    if "llama.cpp" in args.engines and not args.gguf:
        parser.error("llama.cpp needs --gguf")

    began, load = time.monotonic(), os.getloadavg()
    prompts = read_prompts(args)
    for prompt in prompts:
        used = f"{prompt['tokens']} of {prompt['of']} tokens"
        print(f"{prompt['benchmark']}: {used}", file=sys.stderr)
    results = {engine: [] for engine in args.engines}
    engines = {}
    try:
        for name in args.engines:
            engines[name] = ENGINES[name](args)
            engines[name].run(prompts[0])  # faults in memory; not counted
        for number in turns_in_time(args.turns, args.minutes, began):
            turn = {name: [] for name in engines}
            for prompt in prompts:
                for name in args.engines if number % 2 == 0 else args.engines[::-1]:
                    turn[name].append((prompt["benchmark"], engines[name].run(prompt)))
            for name, told in turn.items():
                results[name].append(told)
    finally:
        for engine in engines.values():
            engine.close()
    rows = rows_of(results, args)
    table(rows)
    took = time.monotonic() - began
    print(f"\n{len(results[args.engines[0]])} turns, {took:.0f} s, load average {load[0]:.1f}")
    if args.json:
        texts = [{key: prompt[key] for key in ("benchmark", "tokens", "of")} for prompt in prompts]
        told = {"load": load, "texts": texts, "rows": rows, "turns": results}
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
