#!/usr/bin/env python3
"""The error of bfloat16 precision against HuggingFace's f32: ours, and HuggingFace's own.

    bf16_error.py FATHOM [--isa avx2,avx512-bf16] [--seeds 8]

Runs every golden checkpoint, and variants of it whose weights are shuffled within each tensor and
whose prompts are random. Needs the packages of peers/requirements.txt. Prints, for each engine, the
largest and median relative error of a tensor (residual stream after each layer, logits) and of its
worst row, how many runs exceed a bound, and a tensor's error as a multiple of transformers'.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).parent.parent / "tests/fixtures/golden"
BOUNDS = (2e-2, 3e-2)


def errors(got, want):
    """Relative error of the tensor, and of its worst row."""
    difference, want = (got.double() - want.double()), want.double()
    rows = difference.norm(dim=-1) / want.norm(dim=-1)
    return (difference.norm() / want.norm()).item(), rows.max().item()


def huggingface(model, ids, dtype):
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, attn_implementation="eager"
    ).eval()
    sites = {}

    def keep(name):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            sites[name] = output.detach().float().reshape(len(ids), -1)

        return hook

    for i, layer in enumerate(network.model.layers):
        layer.register_forward_hook(keep(f"resid_post.{i}"))
    with torch.no_grad():
        sites["logits"] = network(torch.tensor([ids])).logits[0].float()
    return sites


def fathom(command, model, ids, isa):
    with tempfile.TemporaryDirectory() as scratch:
        ids_file, out = Path(scratch, "ids.json"), Path(scratch, "out.safetensors")
        ids_file.write_text(json.dumps(ids))
        subprocess.run(
            [command, "capture", "--quiet", "--model", model, "--ids", ids_file, "--out", out]
            + ["--sites", "resid_post,logits", "--precision", "bf16", "--isa", isa],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return load_file(out)


def shuffle(model, generator):
    for file in model.glob("model*.safetensors"):
        weights = load_file(file)
        for name, x in weights.items():
            order = torch.randperm(x.numel(), generator=generator)
            weights[name] = x.flatten()[order].reshape(x.shape).contiguous()
        save_file(weights, file, metadata={"format": "pt"})


def runs(seeds):
    """Yields (model directory, token ids)."""
    for golden in sorted(path for path in GOLDEN.iterdir() if path.is_dir()):
        reference = json.loads((golden / "reference.json").read_text())
        prompts = [prompt["input_ids"] for prompt in reference["prompts"]]
        yield from ((golden, ids) for ids in prompts)
        for seed in range(1, seeds + 1):
            generator = torch.Generator().manual_seed(seed)
            with tempfile.TemporaryDirectory() as scratch:
                model = Path(scratch, "model")
                shutil.copytree(golden, model)
                shuffle(model, generator)
                for ids in prompts:
                    yield model, torch.randint(0, 300, (len(ids),), generator=generator).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fathom")
    parser.add_argument("--isa", default="avx2,avx512-bf16")
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)

    measured = defaultdict(list)  # per engine, the errors of each run's tensors
    for model, ids in runs(args.seeds):
        want = huggingface(model, ids, torch.float32)
        engines = {"transformers": huggingface(model, ids, torch.bfloat16)}
        for isa in args.isa.split(","):
            engines[f"fathom {isa}"] = fathom(args.fathom, model, ids, isa)
        for engine, got in engines.items():
            measured[engine].append([errors(got[name], want[name]) for name in want])
    for engine, of_runs in measured.items():
        tensors, rows = zip(*(error for run in of_runs for error in run))
        over = [
            f"{sum(any(error[0] > bound for error in run) for run in of_runs)} over {bound:g}"
            for bound in BOUNDS
        ]
        print(f"{engine}: {len(of_runs)} runs, {', '.join(over)}")
        for what, x in (("tensor", tensors), ("worst row", rows)):
            print(f"  {what}: median {statistics.median(x):.4f}, largest {max(x):.4f}")
        theirs = [error[0] for run in measured["transformers"] for error in run]
        ratios = [ours / other for ours, other in zip(tensors, theirs)]
        print(f"  tensor, times transformers': {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
