#!/usr/bin/env python3
"""Compare Fathom, HuggingFace transformers and llama.cpp on the same checkpoint and threads.

    engines.py CHECKPOINT [--fathom PATH] [--tokens 512,2048] [--context 64] [--threads N]
               [--rounds 3] [--json]

CHECKPOINT is a Qwen2- or Llama-class directory; `fathom bench-engine --shape qwen2.5-0.5b --keep
DIR` writes one of random weights. llama.cpp gets the same weights as a bfloat16 GGUF file, which
this script writes. Each engine runs in its own process: prefill of each length (with at most one
row of logits, because no text is generated), then greedy decoding of one sequence after --context
tokens. The engines take turns for several rounds, because memory bandwidth on a shared host varies,
and the medians of the rounds are printed. llama.cpp runs with and without flash attention; the
faster one counts.

Needs the packages of requirements.txt.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

DECODE_STEPS = 48


def ids(vocab, tokens):
    return [i * 2654435761 % vocab for i in range(tokens)]


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(prefill, decode_from, step, args, vocab):
    """`prefill(ids)` and `decode_from(ids)` start a new sequence; `step()` decodes one token."""
    result = {"prefill": {}}
    for tokens in args.tokens:
        prompt = ids(vocab, tokens)
        prefill(prompt)
        result["prefill"][str(tokens)] = tokens / seconds(lambda: prefill(prompt))
    decode_from(ids(vocab, args.context))
    step()
    result["decode"] = 1 / statistics.median(seconds(step) for _ in range(DECODE_STEPS))
    return result


def run_transformers(args, precision):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=dtype).eval()
    state = {}

    def forward(tokens, past=None):
        with torch.inference_mode():
            out = model(
                torch.tensor([tokens]), past_key_values=past, use_cache=True, logits_to_keep=1
            )
        state["past"], state["next"] = out.past_key_values, int(out.logits[0, -1].argmax())

    def step():
        forward([state["next"]], state["past"])

    vocab = model.config.vocab_size
    forward(ids(vocab, args.context))
    first = state["next"]
    return measure(forward, forward, step, args, vocab) | {"next": first}


def run_llama_cpp(args, precision):
    import llama_cpp

    config = json.loads((args.checkpoint / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "model.gguf"
        write_gguf(args.checkpoint, config, path)
        best = None
        for flash_attention in [False, True]:
            model = llama_cpp.Llama(
                str(path),
                n_ctx=max(args.tokens) + DECODE_STEPS + 16,
                n_threads=args.threads,
                n_threads_batch=args.threads,
                flash_attn=flash_attention,
                verbose=False,
            )
            best = faster(best, measure_llama_cpp(model, args, config["vocab_size"]))
            model.close()
        return best


def measure_llama_cpp(model, args, vocab):
    import llama_cpp
    import numpy

    def next_token():
        logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        return int(numpy.ctypeslib.as_array(logits, (vocab,)).argmax())

    def start(tokens):
        model.reset()
        model.eval(tokens)

    start(ids(vocab, args.context))
    first = next_token()
    return measure(start, start, lambda: model.eval([next_token()]), args, vocab) | {"next": first}


def faster(a, b):
    """The better value of each figure in two measurements of an engine."""
    if a is None:
        return b
    prefill = {tokens: max(rate, b["prefill"][tokens]) for tokens, rate in a["prefill"].items()}
    return a | {"prefill": prefill, "decode": max(a["decode"], b["decode"])}


def run_fathom(args, precision):
    command = [args.fathom, "bench-engine", "--json", "--quiet", "--model", args.checkpoint]
    command += ["--precision", precision, "--threads", args.threads, "--batches", 1]
    command += ["--tokens", ",".join(map(str, args.tokens))]
    command += ["--context", args.context, "--repeats", 2]
    command = [str(part) for part in command]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(out.stdout)
    rows = [row["overhead"] for row in report["prefill"]]
    prefill = {str(row["tokens"]): row["prefill_tokens_per_s"] for row in rows}
    return {"prefill": prefill, "decode": report["decode"][0]["tokens_per_s"]}


# --- GGUF -----------------------------------------------------------------------------------------

# HuggingFace's tensor names within a layer -> GGUF's.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name):
    module, kind = name.rsplit(".", 1)
    if module in OTHER_NAMES:
        return f"{OTHER_NAMES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def tensors(checkpoint):
    """Yields the name and the bfloat16 bits of every tensor of a bfloat16 checkpoint."""
    import numpy

    for path in sorted(checkpoint.glob("*.safetensors")):
        data = numpy.memmap(path, numpy.uint8, "r")
        end = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8:end]))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                sys.exit(f"{path}: tensor {name} is {entry['dtype']}; expected BF16")
            first, last = entry["data_offsets"]
            yield name, data[end + first : end + last].view("<u2").reshape(entry["shape"])


def add_tokenizer(writer, checkpoint, config):
    """The checkpoint's byte-level BPE tokenizer, if it has one. Ids beyond it are unused."""
    import gguf

    path = checkpoint / "tokenizer.json"
    if not path.exists():
        writer.add_tokenizer_model("no_vocab")
        return
    tokenizer = json.loads(path.read_text())
    vocab = config["vocab_size"]
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    types = [gguf.TokenType.UNUSED] * vocab
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    merges = tokenizer["model"]["merges"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    ends = config.get("eos_token_id")  # random weights have none
    if ends is not None:
        writer.add_eos_token_id(ends[0] if isinstance(ends, list) else ends)


def write_gguf(checkpoint, config, path):
    import gguf
    import numpy

    model_type = config["model_type"]
    architectures = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "mistral": "llama"}
    architecture = architectures.get(model_type)
    rope = config.get("rope_parameters") or {}
    scaled = config.get("rope_scaling") or rope.get("rope_type", "default") != "default"
    if architecture is None or scaled:
        sys.exit(
            f"{checkpoint}: cannot write GGUF for a {model_type} with this rotary embedding"
        )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, checkpoint, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, bits in tensors(checkpoint):
        rotated = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if architecture == "llama" and rotated:
            # GGUF's llama rotates neighbouring components; HuggingFace pairs the halves of a head.
            halves = bits.reshape(rotated, 2, -1, *bits.shape[1:])
            bits = numpy.ascontiguousarray(halves.swapaxes(1, 2)).reshape(bits.shape)
        if bits.ndim == 1:
            values = (bits.astype(numpy.uint32) << 16).view(numpy.float32)
            writer.add_tensor(gguf_name(name), values)
        else:
            pairs = numpy.ascontiguousarray(bits).view(numpy.uint8)
            writer.add_tensor(gguf_name(name), pairs, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- comparison -----------------------------------------------------------------------------------

ENGINES = {
    "fathom bf16": (run_fathom, "bf16"),
    "fathom f32": (run_fathom, "f32"),
    "transformers f32": (run_transformers, "f32"),
    "transformers bf16": (run_transformers, "bf16"),
    "llama.cpp bf16": (run_llama_cpp, "bf16"),
}


def measured_alone(engine):
    """Measures one engine in its own process; None if it fails."""
    command = [sys.executable, *sys.argv, "--only", engine]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if out.returncode != 0:
        return None
    return json.loads(out.stdout.splitlines()[-1])


def medians(results):
    """The median of each figure of an engine; None if it did not run in every round."""
    if None in results:
        return None
    prefill = {
        length: statistics.median(result["prefill"][length] for result in results)
        for length in results[0]["prefill"]
    }
    decode = statistics.median(result["decode"] for result in results)
    return results[0] | {"prefill": prefill, "decode": decode}


def table(results, args):
    lengths = [str(tokens) for tokens in args.tokens]
    ours = {precision: results[f"fathom {precision}"] for precision in ["bf16", "f32"]}
    rate = lambda result, length: result["prefill"][length] if length else result["decode"]
    heads = [f"prefill {length}, tok/s" for length in lengths] + ["decode, tok/s"]
    print(f"| engine | {' | '.join(f'{head} | fathom bf16 | fathom f32' for head in heads)} |")
    print("|---|" + "---:|---:|---:|" * len(heads))
    for engine, result in results.items():
        if result is None:
            print(f"| {engine} | did not run |")
            continue
        cells = []
        for length in lengths + [None]:
            theirs = rate(result, length)
            cells.append(f"{theirs:.1f}")
            cells += [f"{rate(ours[name], length) / theirs:.2f} ×" for name in ["bf16", "f32"]]
        print(f"| {engine} | {' | '.join(cells)} |")
    ran = [(engine, result) for engine, result in results.items() if result]
    tokens = [f"{result['next']} ({engine})" for engine, result in ran if "next" in result]
    print(f"\nThe first token decoded: {', '.join(tokens)}.")


def main():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--fathom", default="fathom")
    parser.add_argument("--tokens", type=numbers, default=[512, 2048])
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--only", choices=ENGINES, help="run this engine in this process; print its rates as JSON"
    )
    args = parser.parse_args()

    if args.only:
        run, precision = ENGINES[args.only]
        print(json.dumps(run(args, precision)))
        return
    rounds = [{engine: measured_alone(engine) for engine in ENGINES} for _ in range(args.rounds)]
    results = {engine: medians([results[engine] for results in rounds]) for engine in ENGINES}
    if args.json:
        print(json.dumps({"threads": args.threads, "engines": results}, indent=1))
    else:
        table(results, args)


if __name__ == "__main__":
    main()
