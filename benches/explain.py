#!/usr/bin/env python3
"""Time and memory of a scan and of every analysis of `fathom explain`, on long traces.

Writes a model of Qwen2.5-0.5B's shape (random weights with a few planted sinks) and traces of token
ids, runs the commands one after another and prints a Markdown table.

    python3 benches/explain.py --fathom target/release/fathom --work /var/tmp/explain-bench \\
        --traces 30 --tokens 16384

`--steps` lists what to run: `scan`, `scan+attention`, analyses (several joined by `+` share their
passes), `all`. On a machine with other load, CPU time is more reliable than wall time.

Needs numpy. Secondary sinks are created at layers 8 and 12. Planted tokens are marked by an
embedding coordinate that no random weight writes to, so the true sinks are known and the run must
find all of them.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 24, 896, 4864, 14, 2, 151_936
HEAD_DIM = HIDDEN // HEADS
RESERVED = 8  # coordinates of the residual stream that random weights do not write
SINK, BOS_MARK, MARKS = 0, 1, {8: 2, 12: 3}  # MARKS: creation layer -> coordinate
BOS, KINDS = 1, {8: 10, 12: 11}  # token ids
MARK = 30.0
WRITES = {3: (BOS_MARK, 3000.0), 8: (MARKS[8], 400.0), 12: (MARKS[12], 900.0), 21: (SINK, -3000.0)}
SINKS_OF_A_KIND = 8  # per trace


def bf16(values: np.ndarray) -> bytes:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def tensors():
    kv = HEAD_DIM * KV_HEADS
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for l in range(LAYERS):
        name = f"model.layers.{l}."
        yield name + "input_layernorm.weight", (HIDDEN,)
        for part, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
            yield name + f"self_attn.{part}_proj.weight", (rows, HIDDEN)
            yield name + f"self_attn.{part}_proj.bias", (rows,)
        yield name + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield name + "post_attention_layernorm.weight", (HIDDEN,)
        yield name + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield name + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield name + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)


def value(name: str, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    if name.endswith("norm.weight"):
        # The tied output head has long rows, so a small final norm keeps the logits moderate.
        return np.full(shape, 0.05 if name == "model.norm.weight" else 1.0, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    weights = rng.standard_normal(shape, dtype=np.float32)
    if name.startswith("model.embed"):
        weights[:, :RESERVED] = 0
        weights[BOS, BOS_MARK] = MARK
        for layer, token in KINDS.items():
            weights[token, MARKS[layer]] = MARK
        return weights
    weights /= np.sqrt(shape[-1])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        weights[:RESERVED] = 0
    layer = int(name.split(".")[2])
    if layer in WRITES and ".mlp." in name:
        coordinate, amount = WRITES[layer]
        # The marker at the MLP input: the residual stream grows by about 0.4 per layer and
        # coordinate.
        seen = np.sqrt(HIDDEN) if coordinate == SINK else MARK / np.sqrt(2 + 0.4 * layer)
        if name.endswith("down_proj.weight"):
            weights[:, 0] = 0
            weights[SINK, 0] = amount / seen**2
        else:
            weights[0] = 0
            weights[0, coordinate] = 1
    return weights


def write_model(out: Path) -> None:
    out.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
    }
    (out / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in tensors():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors():
            file.write(bf16(value(name, shape, rng)))


def write_traces(path: Path, traces: int, tokens: int) -> int:
    rng = np.random.default_rng(1)
    with open(path, "w") as file:
        for _ in range(traces):
            ids = rng.integers(100, VOCAB, tokens)
            ids[0] = BOS
            places = rng.permutation(np.arange(1, tokens))[: SINKS_OF_A_KIND * len(KINDS)]
            for token, some in zip(KINDS.values(), np.split(places, len(KINDS))):
                ids[some] = token
            file.write(json.dumps({"input_ids": ids.tolist()}) + "\n")
    return traces * SINKS_OF_A_KIND * len(KINDS)


def measure(command: list) -> tuple[float, float, float, str]:
    """Wall seconds, CPU seconds, peak MiB, standard output."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))} failed")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--fathom", default="target/release/fathom")
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; about 1.2 GB")
    parser.add_argument("--traces", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--precision", default="bf16")
    steps = "scan,scan+attention,stages,pca,clusters,swap,effect,entropy,suppress,neurons,all"
    parser.add_argument("--steps", default=steps)
    args = parser.parse_args()
    model, traces, run = args.work / "model", args.work / "traces.jsonl", args.work / "run"
    if not model.exists():
        # In a separate process, because the peak memory of a child includes what its parent held.
        writer = multiprocessing.Process(target=write_model, args=(model,))
        writer.start()
        writer.join()
    planted = write_traces(traces, args.traces, args.tokens)

    print(f"{args.traces} traces × {args.tokens} tokens, {args.precision}, {os.cpu_count()} CPUs\n")
    print("| step | wall (s) | CPU (s) | peak (MiB) |\n|---|--:|--:|--:|")

    def step(name: str, *command) -> str:
        wall, cpu, peak, output = measure([args.fathom, *map(str, command), "--quiet", "--json"])
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {peak:.0f} |", flush=True)
        return output

    def scan(name: str, *options) -> dict:
        shutil.rmtree(run, ignore_errors=True)
        output = step(name, "scan", "--model", model, "--traces", traces, "--out", run,
                      "--precision", args.precision, *options)
        return json.loads(output)

    findings = []
    for name in args.steps.split(","):
        if name in ("scan", "scan+attention"):
            found = scan(name, *(["--attention"] if "+" in name else []))["counts"]["secondary"]
            if found != planted:
                sys.exit(f"{planted} secondary sinks were planted, {found} were found")
            continue
        shutil.rmtree(run / "explain", ignore_errors=True)
        analyses = [] if name == "all" else [f"--{analysis}" for analysis in name.split("+")]
        findings.append(step(f"explain {name}", "explain", run, *analyses))
    if findings:
        print("\n```json\n" + "\n".join(findings).strip() + "\n```")


if __name__ == "__main__":
    main()
