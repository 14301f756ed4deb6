#!/usr/bin/env python3
"""Time to the first token after a system prompt that was seen before, with and without the prefix
cache.

    prefix_cache.py TARGET [--fathom PATH] [--tokens 2048] [--users 8] [--rounds 3]

Every user asks another question after the same system prompt. Users come one after the other, and
the first of a server, who fills the cache, is not counted.
"""

import argparse
import asyncio
import json
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests/serve"))

import wire  # noqa: E402
from server import Server  # noqa: E402

WORDS = "the river sold seven clips in April and half as many in May while a train left".split()


def count(server, text):
    body = {"prompt": text}
    return json.loads(asyncio.run(wire.exchange(server.port, "/tokenize", body)))["count"]


def system_prompt(server, tokens):
    """Words of about so many tokens."""
    words = [WORDS[i * 7919 % 17 % len(WORDS)] for i in range(tokens)]
    while (length := count(server, " ".join(words))) > tokens:
        words = words[: len(words) * tokens // length]
    return " ".join(words)


def first_token(server, system, user):
    """Seconds until the answer of one token, and the number of cached prompt tokens."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    body = {"messages": messages, "max_tokens": 1, "temperature": 0}
    started = time.perf_counter()
    answer = asyncio.run(wire.exchange(server.port, "/v1/chat/completions", body))
    seconds = time.perf_counter() - started
    return seconds, json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    seconds = {"without": [], "with": []}
    for _ in range(args.rounds):
        for name, option in [("without", ["--no-prefix-cache"]), ("with", [])]:
            models = ["--target", args.target, "--precision", args.precision]
            with Server(*models, *option, fathom=args.fathom) as server:
                system = system_prompt(server, args.tokens)
                told = [first_token(server, system, f"And {i}?") for i in range(args.users + 1)]
                seconds[name] += [each for each, _ in told[1:]]
                cached = {tokens for _, tokens in told[1:]}
                assert (max(cached) == 0) == (name == "without"), cached
    medians = {name: statistics.median(told) for name, told in seconds.items()}
    for name, median in medians.items():
        print(f"{name} the prefix cache: {median * 1e3:.1f} ms to the first token")
    print(f"without / with: {medians['without'] / medians['with']:.1f}")


if __name__ == "__main__":
    main()
