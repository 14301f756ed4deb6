#!/usr/bin/env python3
"""Print the JSON of several `fathom bench` runs as two Markdown tables, one per accounting.

    pearl_tables.py batch-1.json batch-4.json ...

Below each table: how close SD and PEARL come to the simulator, and AUTO to the best mode.
Needs only Python's standard library.
"""

import json
import sys

COLUMNS = [
    ("Batch Size", "batch_size", "{}"),
    ("Benchmark", "benchmark", "{}"),
    ("Mode", "mode", "{}"),
    ("Num Tokens", "num_tokens", "{}"),
    ("Time (s)", "time_s", "{:.2f}"),
    ("Throughput (tok/s)", "throughput_tok_s", "{:.1f}"),
    ("MAT", "mat", "{:.2f}"),
    ("γ", "gamma", "{:.1f}"),
    ("Tokens/step", "tokens_per_step", "{:.2f}"),
    ("Accepted", "acceptance", "{:.0%}"),
    ("Speedup", "speedup", "{:.2f}"),
    ("Predicted", "predicted_speedup", "{:.2f}"),
    ("Measured/predicted", "measured_of_predicted", "{:.2f}"),
    ("Of the best", "of_best", "{:.2f}"),
]


def rows_of(accounting):
    """The rows of an accounting, each merged with its breakdown."""
    return [{**row, **more} for row, more in zip(accounting["rows"], accounting["breakdown"])]


def main():
    accountings = {}
    for path in sys.argv[1:]:
        with open(path) as file:
            for accounting in json.load(file)["accountings"]:
                accountings.setdefault(accounting["accounting"], []).extend(rows_of(accounting))
    for name, rows in accountings.items():
        print(f"{name}\n")
        print("| " + " | ".join(title for title, _, _ in COLUMNS) + " |")
        print("|---:|---|---|" + "---:|" * (len(COLUMNS) - 3))
        for row in rows:
            cells = [
                form.format(row[key]) if row.get(key) is not None else "–"
                for _, key, form in COLUMNS
            ]
            print("| " + " | ".join(cells) + " |")
        print()
        for mode in ("SD", "PEARL"):
            ratios = [r["measured_of_predicted"] for r in rows if r["mode"] == mode]
            ratios = [ratio for ratio in ratios if ratio]
            if ratios:
                print(f"{mode}: {min(ratios):.2f} to {max(ratios):.2f} of the simulator's forecast")
        auto = [r["of_best"] for r in rows if r["of_best"]]
        if auto:
            print(f"AUTO: {min(auto):.2f} to {max(auto):.2f} of the best, in {len(auto)} rows\n")


if __name__ == "__main__":
    main()
