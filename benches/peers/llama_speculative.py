#!/usr/bin/env python3
"""Plain and speculative decoding of llama.cpp on the prompts of `fathom bench`.

    llama_speculative.py --target T --draft D --data DIR [--benchmarks AIME,GSM8K] [--limit 2]
                         [--tokens 200] [--threads 1] [--gamma 4]

Greedy, batch size 1, the same checkpoints in bfloat16 and the same token ids. llama.cpp's Python
package does not contain its speculative-decoding program, and its built-in draft is a prompt
lookup. Here the package's draft interface gets a second model that keeps its KV cache, as in that
program. --gamma is not tuned. Prints tokens per second of both modes and their ratio, and whether
the texts agree.

Needs llama-cpp-python, gguf, numpy and transformers (for the chat template).
"""

import argparse
import json
import pathlib
import tempfile
import time

import llama_cpp
import numpy
from assisted_generation import prompt_of
from engines import write_gguf
from llama_cpp.llama_speculative import LlamaDraftModel
from transformers import AutoTokenizer


class SecondModel(LlamaDraftModel):
    """Drafts `gamma` tokens greedily; keeps the KV cache of the common prefix."""

    def __init__(self, model, gamma):
        self.model, self.gamma = model, gamma

    def __call__(self, input_ids, /, **_):
        model, text = self.model, [int(token) for token in input_ids]
        known = 0
        for ours, theirs in zip(model.input_ids[: model.n_tokens], text[:-1]):
            if ours != theirs:
                break
            known += 1
        model.n_tokens = known
        model._ctx.kv_cache_seq_rm(-1, known, -1)
        drafted, feed = [], text[known:]
        for _ in range(self.gamma):
            model.eval(feed)
            logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
            token = int(numpy.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())
            drafted.append(token)
            feed = [token]
        return numpy.array(drafted, dtype=numpy.intc)


def generate(model, ids, tokens):
    """Generates `tokens` tokens; returns them and the seconds since the first one."""
    model.reset()
    text, start = [], None
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        start = start or time.perf_counter()
        text.append(token)
        if len(text) == tokens:
            return text, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=pathlib.Path, required=True)
    parser.add_argument("--draft", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--benchmarks", default="AIME,CNNDM,GSM8K,HumanEval")
    parser.add_argument("--limit", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gamma", type=int, default=4)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:

        def load(checkpoint, **options):
            path = pathlib.Path(scratch) / f"{checkpoint.name}.gguf"
            if not path.exists():
                write_gguf(checkpoint, json.loads((checkpoint / "config.json").read_text()), path)
            options |= {"n_threads": args.threads, "n_threads_batch": args.threads}
            return llama_cpp.Llama(str(path), n_ctx=4096, n_batch=4096, verbose=False, **options)

        tokenizer = AutoTokenizer.from_pretrained(args.target)
        draft = SecondModel(load(args.draft), args.gamma)
        modes = {"plain": load(args.target), "speculative": load(args.target, draft_model=draft)}

        print("| Benchmark | plain (tok/s) | speculative (tok/s) | speedup | same text |")
        print("|---|---:|---:|---:|---|")
        for benchmark in args.benchmarks.split(","):
            lines = (args.data / f"{benchmark}.jsonl").read_text().splitlines()[: args.limit]
            seconds, same = dict.fromkeys(modes, 0.0), True
            for line in lines:
                messages = [{"role": "user", "content": prompt_of(line)}]
                text = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
                ids = tokenizer(text, add_special_tokens=False).input_ids
                texts = []
                for mode, model in modes.items():
                    generate(model, ids, 8)
                    text, took = generate(model, ids, args.tokens)
                    seconds[mode] += took
                    texts.append(text)
                same &= texts[0] == texts[1]
            rate = {mode: len(lines) * (args.tokens - 1) / seconds[mode] for mode in modes}
            ratio = rate["speculative"] / rate["plain"]
            row = f"| {benchmark} | {rate['plain']:.2f} | {rate['speculative']:.2f} | {ratio:.2f} |"
            print(f"{row} {'yes' if same else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
