#!/usr/bin/env python3
"""Many clients at once against `fathom serve` on the trained pair, with few pages.

    soak.py [--requests 300] [--clients 64] [--mode pearl] [--seed 0]

Requests have random lengths and options. Some clients leave, at once or in the middle; some read
slowly; some send nonsense. Checked: every text that is finished equals the text of the same request
alone; /health answers all the time; between rounds, when the server is idle, no descriptors, threads
or memory are kept, and at the end all pages are free; SIGTERM under load loses no answer that has begun.

Greedy texts are compared with those of another server without draft, batch and prefix cache.
Sampled texts depend on the mode, so they are compared with the server's own, one at a time.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import time

import wire
from server import PAIR, TARGET, Server, total

ROUNDS = 5
PAGES = 16  # few: texts are preempted
PAGE_TOKENS = 128


# --- requests -------------------------------------------------------------------------------------

WORDS = "clips April price seven train friends if return while river paper sum the of 12".split()
SYSTEM = "You solve problems step by step and check the result. " * 12  # shared: over a page
SCHEMA = {
    "type": "object",
    "properties": {"month": {"enum": ["April", "May"]}, "clips": {"enum": [24, 48]}},
    "required": ["month", "clips"],
    "additionalProperties": False,
}


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def make_request(rng):
    """A path and a body, without `stream`."""
    body = {"max_tokens": rng.choice([1, 2, 5, 20, 60, 150]), "seed": rng.randrange(1000)}
    length = rng.choice([1, 5, 40, 200, 400])
    if rng.random() < 0.7:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": words(rng, length)}]
        if rng.random() < 0.5:
            body["messages"].insert(0, {"role": "system", "content": SYSTEM})
        if rng.random() < 0.15:
            format = {"name": "sale", "schema": SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": format}
        if rng.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": rng.randrange(4)}
    else:
        path = "/v1/completions"
        body["prompt"] = words(rng, length)
        if rng.random() < 0.2:
            body["echo"] = True
    body["temperature"] = rng.choice([0, 0, 0, 0.7, 1.2])
    if body["temperature"]:
        body |= rng.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}])
    if rng.random() < 0.15:
        body["n"] = rng.randrange(2, 4)
    if rng.random() < 0.15:
        body["stop"] = [rng.choice(["the", "\n\n", ". ", "1"])]
    if rng.random() < 0.15:
        body |= rng.choice([{"repetition_penalty": 1.3}, {"presence_penalty": 0.5}])
    if rng.random() < 0.15 and "response_format" not in body:
        body |= {"ignore_eos": True, "min_tokens": body["max_tokens"] // 2}
    if rng.random() < 0.2:
        body["fathom"] = {"sinks": True}
    return path, body


NONSENSE = [
    {"messages": []},
    {"messages": [{"role": "user", "content": "x"}], "n": 10**9},
    {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
    {"messages": [{"role": "user", "content": "x " * 9000}]},
]


# --- answers --------------------------------------------------------------------------------------


def texts(choices):
    """Text, finish reason and tokens of each choice."""
    told = []
    for choice in choices:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        ids = [token["id"] for token in choice["fathom"]["tokens"]]
        told.append((text, choice["finish_reason"], ids))
    return told


def streamed_texts(events):
    """The same of a stream."""
    parts = collections.defaultdict(lambda: ["", None, []])
    for event in events:
        for choice in event["choices"]:
            told = parts[choice["index"]]
            told[0] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            told[1] = choice["finish_reason"] or told[1]
            told[2] += [token["id"] for token in choice["fathom"]["tokens"]]
    return [tuple(parts[index]) for index in sorted(parts)]


async def ask(port, path, body, stream, pace=None):
    """The texts of a request; raises Refused for a status that is not 200."""
    if not stream:
        answer = json.loads(await wire.exchange(port, path, body, pace))
        return texts(answer["choices"])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    data = await wire.exchange(port, path, body | options, pace)
    return streamed_texts(wire.events(data))


async def alone(port, requests):
    """The texts of requests, one after the other."""
    return [await ask(port, path, body, stream=False) for path, body in requests]


# --- the soak -------------------------------------------------------------------------------------


class Soak:
    """Clients of one server, with what they should be told."""

    def __init__(self, port, requests, expected):
        self.port = port
        self.requests = requests
        self.expected = expected
        self.counts = collections.Counter()
        self.slowest_health = 0.0

    async def client(self, rng):
        """One request of one client."""
        index = rng.randrange(len(self.requests))
        path, body = self.requests[index]
        stream = rng.random() < 0.6
        kind = rng.choices(["finish", "slow", "leave", "nonsense"], [70, 6, 18, 6])[0]
        if kind == "leave":
            await wire.leave(self.port, path, body | {"stream": stream}, rng)
        elif kind == "nonsense":
            try:
                await wire.exchange(self.port, "/v1/chat/completions", rng.choice(NONSENSE))
                raise AssertionError("nonsense was answered with 200")
            except wire.Refused as refused:
                assert refused.status == 400, refused
        else:
            pace = 0.05 if kind == "slow" else None
            told = await ask(self.port, path, body, stream, pace)
            self.compare(index, told, f"stream={stream}, {kind}")
        self.counts[kind] += 1

    def compare(self, index, told, how):
        expected = self.expected[index]
        path, body = self.requests[index]
        assert told == expected, (
            f"{path} {json.dumps(body)} ({how}) gives\n{told}\nand alone\n{expected}"
        )

    async def round(self, count, clients, rng):
        """`count` requests by `clients` clients, while /health is asked all the time."""
        left = iter(range(count))
        lone = [random.Random(rng.random()) for _ in range(clients)]

        async def work(own):
            for _ in left:
                await self.client(own)

        watch = asyncio.create_task(self.watch_health())
        try:
            async with asyncio.TaskGroup() as group:
                for own in lone:
                    group.create_task(work(own))
        finally:
            watch.cancel()

    async def watch_health(self):
        while True:
            started = time.monotonic()
            await wire.exchange(self.port, "/health", None)
            self.slowest_health = max(self.slowest_health, time.monotonic() - started)
            await asyncio.sleep(0.1)

    async def terminate_under_load(self, server, clients, rng):
        """SIGTERM: answers that have begun are finished; later requests may be refused."""
        chosen = [rng.randrange(len(self.requests)) for _ in range(clients)]

        async def one(index):
            path, body = self.requests[index]
            try:
                told = await ask(self.port, path, body, stream=rng.random() < 0.5)
            except (wire.Refused, ConnectionError) as refused:
                # Not begun: the server says that it is closing, or no longer listens.
                assert not isinstance(refused, wire.Refused) or refused.status in [429, 503]
                return "refused"
            self.compare(index, told, "during SIGTERM")
            return "finished"

        tasks = [asyncio.create_task(one(index)) for index in chosen]
        while total(await asyncio.to_thread(server.metrics), "vllm:num_requests_running") == 0:
            await asyncio.sleep(0.01)
        server.terminate()
        outcomes = collections.Counter(await asyncio.gather(*tasks))
        assert outcomes["finished"] > 0, outcomes
        return outcomes


def kept(server):
    """What an idle server holds: descriptors, threads, memory."""
    server.idle(within=60)
    time.sleep(0.3)  # closed connections
    resident, descriptors, threads = server.resources()
    return {"descriptors": descriptors, "threads": threads, "MiB": round(resident, 1)}


def fill(server):
    """One text that needs every page. It would wait for ever for a page that nobody gave back."""
    tokens = PAGES * PAGE_TOKENS
    body = {"prompt": [5], "max_tokens": tokens - 1, "ignore_eos": True, "temperature": 0}
    answer = asyncio.run(wire.exchange(server.port, "/v1/completions", body))
    assert json.loads(answer)["usage"]["total_tokens"] == tokens


def check_kept(states):
    """Compares the last round with the first one: what is kept once is no leak."""
    first, last = states[0], states[-1]
    assert last["descriptors"] <= first["descriptors"] + 2, (first, last)
    assert last["threads"] <= first["threads"] + 1, (first, last)
    assert last["MiB"] <= first["MiB"] * 1.15 + 16, (first, last)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--mode", default="pearl", help="ar or pearl; others do not repeat samples")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    requests = [make_request(rng) for _ in range(max(30, min(400, args.requests // 6)))]
    greedy = [index for index, (_, body) in enumerate(requests) if body["temperature"] == 0]
    expected = [None] * len(requests)
    started = time.monotonic()

    one_by_one = ["--mode", "ar", "--no-prefix-cache", "--batch-size", 1]
    with Server(*TARGET, *one_by_one) as plain:
        told = asyncio.run(alone(plain.port, [requests[index] for index in greedy]))
    for index, answer in zip(greedy, told):
        expected[index] = answer

    models = TARGET if args.mode == "ar" else PAIR
    tight = ["--batch-size", 16, "--kv-pages", PAGES, "--max-queue", 10 * args.clients]
    server = Server(*models, "--mode", args.mode, *tight)
    try:
        sampled = [index for index in range(len(requests)) if expected[index] is None]
        told = asyncio.run(alone(server.port, [requests[index] for index in sampled]))
        for index, answer in zip(sampled, told):
            expected[index] = answer
        print(f"{len(requests)} different requests alone: {time.monotonic() - started:.1f} s")

        soak = Soak(server.port, requests, expected)
        states = []
        for _ in range(ROUNDS):
            asyncio.run(soak.round(args.requests // ROUNDS, args.clients, rng))
            states.append(kept(server))
            print(dict(soak.counts), states[-1])
        check_kept(states)
        fill(server)
        assert soak.slowest_health < 2, f"/health took {soak.slowest_health:.2f} s"
        metrics = server.metrics()
        preempted = total(metrics, "vllm:num_preemptions_total")
        print(f"slowest /health: {soak.slowest_health:.3f} s; {preempted:.0f} preemptions")
        print("SIGTERM:", dict(asyncio.run(soak.terminate_under_load(server, args.clients, rng))))
        code = server.end(within=60)
        assert code == 0, f"exit code {code}:\n{server.log()[-2000:]}"
        assert "panicked" not in server.log()
    except BaseException:
        server.process.kill()
        print(server.log()[-4000:], file=sys.stderr)
        raise
    print(f"{args.requests} requests, {args.clients} clients: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
