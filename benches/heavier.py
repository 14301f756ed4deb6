#!/usr/bin/env python3
"""Write a checkpoint that computes the same logits as another one at the cost of a larger model.

    heavier.py SOURCE DESTINATION --layers L --intermediate M

Small trained models have real acceptance rates but trivial cost. This script appends layers that
add nothing to the residual stream (zero attention and MLP output projections) and MLP neurons whose
output is not read (zero columns of down_proj). Everything is still multiplied, so time and memory
traffic are those of a model of the new shape, and the logits are unchanged.

For BF16 checkpoints in one safetensors file, with separate q/k/v and gate/up projections (Llama,
Qwen2, Qwen3). Needs only Python's standard library.
"""

import argparse
import json
import pathlib
import shutil
import struct

BYTES = 2  # per bfloat16


def read_checkpoint(path):
    """Reads a BF16 safetensors file: {name: (shape, bytes)}."""
    blob = path.read_bytes()
    (header_len,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8 : 8 + header_len])
    header.pop("__metadata__", None)
    data = memoryview(blob)[8 + header_len :]
    tensors = {}
    for name, info in header.items():
        if info["dtype"] != "BF16":
            raise SystemExit(f"{path}: tensor {name} is {info['dtype']}; expected BF16")
        start, end = info["data_offsets"]
        tensors[name] = (info["shape"], data[start:end])
    return tensors


def wider(name, shape, data, intermediate):
    """Widens a tensor of a layer to `intermediate` MLP neurons."""
    rows, columns = shape if len(shape) == 2 else (shape[0], 1)
    if name.endswith(("gate_proj.weight", "up_proj.weight")):  # [intermediate, hidden]: more rows
        repeats = -(-intermediate // rows)
        return [intermediate, columns], (bytes(data) * repeats)[: intermediate * columns * BYTES]
    if name.endswith("down_proj.weight"):  # [hidden, intermediate]: zero columns
        row = columns * BYTES
        padding = bytes((intermediate - columns) * BYTES)
        lines = (bytes(data[r * row : (r + 1) * row]) + padding for r in range(rows))
        return [rows, intermediate], b"".join(lines)
    return shape, bytes(data)


def heavier(tensors, old_layers, layers, intermediate):
    """Yields (name, shape, bytes) of the new checkpoint, one tensor in memory at a time."""
    prefix = "model.layers."
    parts = [name.removeprefix(prefix + "0") for name in tensors if name.startswith(prefix + "0.")]
    for name, (shape, data) in tensors.items():
        if not name.startswith(prefix):
            yield name, shape, bytes(data)
    for layer in range(layers):
        for part in parts:
            shape, data = tensors[f"{prefix}{layer % old_layers}{part}"]
            shape, data = wider(part, shape, data, intermediate)
            if layer >= old_layers and part.endswith(("o_proj.weight", "down_proj.weight")):
                data = bytes(len(data))
            yield f"{prefix}{layer}{part}", shape, data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("destination", type=pathlib.Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--intermediate", type=int, required=True)
    args = parser.parse_args()

    config = json.loads((args.source / "config.json").read_text())
    old_layers, old_intermediate = config["num_hidden_layers"], config["intermediate_size"]
    if args.layers < old_layers or args.intermediate < old_intermediate:
        parser.error(
            f"the source has {old_layers} layers and an MLP of {old_intermediate}; it can only grow"
        )
    tensors = read_checkpoint(args.source / "model.safetensors")
    new = lambda: heavier(tensors, old_layers, args.layers, args.intermediate)

    header, offset = {}, 0
    for name, shape, data in new():
        start, offset = offset, offset + len(data)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, offset]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)

    args.destination.mkdir(parents=True)
    for file in args.source.iterdir():
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, args.destination / file.name)
    with open(args.destination / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for _, _, data in new():
            out.write(data)
    config.update(num_hidden_layers=args.layers, intermediate_size=args.intermediate)
    if config.get("layer_types"):
        kinds = config["layer_types"]
        config["layer_types"] = [kinds[layer % old_layers] for layer in range(args.layers)]
    (args.destination / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
