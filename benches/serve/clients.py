"""Clients that stream completions, all in one thread: a load that takes little of a small machine.

The figures are defined as guidellm defines them. Every client sends its next request when the last
one has ended; prompts are token ids, no two alike; every answer has the same number of tokens.
"""

import asyncio
import json
import statistics
import time

IDS = 4096  # prompts are of the first ids, which every vocabulary has


def prompt(number, tokens):
    # The first id differs from request to request, so that no prefix is in a cache.
    return [(number * 613 + i * 2654435761 + (i > 0) * number * 97) % IDS for i in range(tokens)]


async def answer(port, number, args):
    """The times of the request's beginning, first and last token, and the number of tokens."""
    body = {"prompt": prompt(number, args.prompt_tokens), "max_tokens": args.output_tokens}
    body |= {"temperature": 0, "ignore_eos": True, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(head.encode() + data)
        first, last, tokens, status = None, None, None, (await reader.readline()).decode()
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            now, event = time.perf_counter(), json.loads(line[6:])
            # A token may have no text, as part of a character, or as one beyond the tokenizer.
            if event.get("choices"):
                first, last = first or now, now
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    finally:
        writer.close()
    if " 200 " not in status or tokens != args.output_tokens or first is None:
        raise SystemExit(f"request {number}: {status.strip()}, {tokens} tokens")
    return began, first, last, tokens


async def together(port, clients, requests, args):
    numbers = iter(range(requests))
    told = []

    async def client():
        for number in numbers:
            told.append(await answer(port, args.seed + number, args))

    await asyncio.gather(*(client() for _ in range(clients)))
    args.seed += requests
    return told


def load(port, clients, requests, args):
    """Median latencies in milliseconds, and tokens per second, of `requests` by `clients`."""
    told = asyncio.run(together(port, clients, requests, args))
    median = lambda of: statistics.median(of(*each) for each in told) * 1e3
    took = max(last for _, _, last, _ in told) - min(began for began, _, _, _ in told)
    return {
        "TTFT, ms": median(lambda began, first, last, tokens: first - began),
        "TPOT, ms": median(lambda began, first, last, tokens: (last - began) / tokens),
        "ITL, ms": median(lambda began, first, last, tokens: (last - first) / (tokens - 1)),
        "output, tok/s": sum(tokens for _, _, _, tokens in told) / took,
    }
