#!/usr/bin/env python3
"""Plain and assisted generation of HuggingFace transformers on the prompts of `fathom bench`.

    assisted_generation.py --target T --draft D --data DIR [--benchmarks AIME,GSM8K] [--limit 2]
                           [--tokens 200] [--threads 1] [--precision bf16]

Greedy, batch size 1 (assisted generation does not support batches), end-of-text ignored, the same
chat template; the first call of each mode is a warm-up. Prints tokens per second of both modes and
their ratio, and whether the texts agree. Compare the ratio with the speedup of
`fathom bench --batch-sizes 1`, and the plain rate with that of its AR rows, on the same machine
with the same number of threads.

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
    keys = [key for key in ("prompt", "problem", "question") if record.get(key)]
    return record[keys[0]] if keys else record["turns"][0]


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
    modes = {"plain": {}, "assisted": {"assistant_model": draft}}

    print("| Benchmark | plain (tok/s) | assisted (tok/s) | speedup | same text |")
    print("|---|---:|---:|---:|---|")
    warm = False
    for benchmark in args.benchmarks.split(","):
        lines = (args.data / f"{benchmark}.jsonl").read_text().splitlines()[: args.limit]
        seconds, same = dict.fromkeys(modes, 0.0), True
        for line in lines:
            messages = [{"role": "user", "content": prompt_of(line)}]
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            texts = []
            for mode, options in modes.items():
                if not warm:
                    timed(target, ids, 8, **options)
                # Generate one token first and subtract its time, so that the prompt does not count.
                _, prefill = timed(target, ids, 1)
                text, total = timed(target, ids, args.tokens, **options)
                seconds[mode] += total - prefill
                texts.append(text)
            warm = True
            same &= texts[0] == texts[1]
        rate = {mode: len(lines) * (args.tokens - 1) / seconds[mode] for mode in modes}
        ratio = rate["assisted"] / rate["plain"]
        row = f"| {benchmark} | {rate['plain']:.2f} | {rate['assisted']:.2f} | {ratio:.2f} |"
        print(f"{row} {'yes' if same else 'no'} |")


if __name__ == "__main__":
    main()
