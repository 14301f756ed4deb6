"""The overhead of Python: a scan and a capture against the command line, in turns.

    python overhead.py MODEL [--tokens 2048] [--traces 2] [--turns 5] [--precision bf16]

MODEL is a checkpoint directory. A scan is timed from the command to its end, loading included, on
both sides; a capture is `run_with_cache` of one layer's residual stream, against the bare pass that
`fathom bench-engine` times. Medians of the ratios within a turn.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCAN = """
import sys, fathom_lm as fl
model = fl.Model(sys.argv[1], precision=sys.argv[4], chat_template=False)
fl.scan(model, sys.argv[2], out=sys.argv[3], attention=True, progress=False)
"""


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--traces", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="bf16")
    asked = parser.parse_args()
    import fathom_lm as fl

    model = fl.Model(asked.model, precision=asked.precision, chat_template=False)
    ids = [
        [(i * 7919 + t * 31) % model.vocab for i in range(asked.tokens)]
        for t in range(asked.traces)
    ]
    fathom = [sys.executable, "-m", "fathom_lm"]
    scans, captures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        traces = Path(scratch) / "traces.jsonl"
        traces.write_text("".join(json.dumps({"input_ids": one}) + "\n" for one in ids))
        for turn in range(asked.turns):
            runs = [str(Path(scratch) / f"{turn}-{side}") for side in ("python", "command")]
            python = seconds(
                sys.executable, "-c", SCAN, asked.model, str(traces), runs[0], asked.precision
            )
            command = seconds(
                *fathom, "scan", "--quiet", "--model", asked.model, "--traces", str(traces),
                "--out", runs[1], "--attention", "--no-chat-template", "--precision", asked.precision,
            )  # fmt: skip
            scans.append(python / command)
            start = time.perf_counter()
            model.run_with_cache(ids[0], f"resid_post.{model.layers - 1}", logits=None)
            with_cache = time.perf_counter() - start
            measured = subprocess.run(
                [*fathom, "bench-engine", "--quiet", "--json", "--model", asked.model, "--tokens",
                 str(asked.tokens), "--batches", "1", "--repeats", "1", "--precision",
                 asked.precision],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            bare = json.loads(measured.stdout)["prefill"][0]["overhead"]["prefill_tokens_per_s"]
            captures.append(with_cache * bare / asked.tokens)
    print(f"scan from Python: {statistics.median(scans):.3f} times the command line's")
    print(f"run_with_cache of one layer: {statistics.median(captures):.3f} times the bare pass")


if __name__ == "__main__":
    main()
