#!/usr/bin/env python3
"""HuggingFace transformers' plain and assisted generation on the prompts that `fathom bench` decodes.

    assisted_generation.py --target T --draft D --data DIR [--benchmarks AIME,GSM8K] [--limit 2]
                           [--tokens 200] [--threads 1] [--precision bf16]

Greedy, batch size 1 (assisted generation takes no batches), end-of-text ignored, the same chat template; the first
call of each way is a warm-up. Prints tokens per second of both ways and their ratio, and whether the texts agree.
Compare the ratio with the speedup of `fathom bench --batch-sizes 1`, and the plain rate with that of its AR rows,
on the same machine and number of threads.

Needs torch and transformers.
"""

import argparse
import json
import pathlib
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def prompt_of(line):
    record = json.loads(line)
    return record.get("prompt") or record.get("problem") or record.get("question") or record["turns"][0]


def timed(model, ids, tokens, **options):
    start = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        **options,
    )
    return out[0, ids.shape[1] :].tolist(), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--benchmarks", default="AIME,CNNDM,GSM8K,HumanEval")
    parser.add_argument("--limit", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    target, draft = load(args.target), load(args.draft)
    ways = {"plain": {}, "assisted": {"assistant_model": draft}}

    print("| Benchmark | plain (tok/s) | assisted (tok/s) | speedup | same text |")
    print("|---|---:|---:|---:|---|")
    warm = False
    for benchmark in args.benchmarks.split(","):
        lines = (args.data / f"{benchmark}.jsonl").read_text().splitlines()[: args.limit]
        seconds, same = dict.fromkeys(ways, 0.0), True
        for line in lines:
            messages = [{"role": "user", "content": prompt_of(line)}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            texts = []
            for way, options in ways.items():
                if not warm:
                    timed(target, ids, 8, **options)
                # One token first: what remains of the difference is decoding, without the prompt.
                _, prefill = timed(target, ids, 1)
                text, total = timed(target, ids, args.tokens, **options)
                seconds[way] += total - prefill
                texts.append(text)
            warm = True
            same &= texts[0] == texts[1]
        rate = {way: len(lines) * (args.tokens - 1) / seconds[way] for way in ways}
        ratio = rate["assisted"] / rate["plain"]
        print(f"| {benchmark} | {rate['plain']:.2f} | {rate['assisted']:.2f} | {ratio:.2f} | {'yes' if same else 'no'} |")


if __name__ == "__main__":
    main()
