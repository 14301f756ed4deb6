"""Writes the same six rows in every supported file format.

    pip install pyarrow==26.0.1 polars==2.1.0 duckdb==2.0.1 zstandard==0.25.0
    python generate.py

The rows are nested like data sets on the hub (lists of structs), and have nulls, an empty list,
non-ASCII characters and columns that traces do not use.
"""

import gzip
import json
import pathlib

import duckdb
import polars
import pyarrow
import pyarrow.parquet
import zstandard

HERE = pathlib.Path(__file__).parent


def turn(role, content):
    return {"role": role, "content": content}


ROWS = [
    {
        "id": i,
        "messages": [turn("user", f"What is {i} + {i}?"), turn("assistant", f"é😀 {2 * i}\n")],
        "score": None if i % 2 else i / 4,
        "tags": [] if i % 3 else ["a", "b"],
        "meta": {"source": f"s{i}", "deep": {"n": i}},
    }
    for i in range(6)
]

lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
(HERE / "rows.jsonl").write_bytes(lines)
(HERE / "rows.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
(HERE / "rows.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
(HERE / "rows.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))

table = pyarrow.Table.from_pylist(ROWS)
pyarrow.parquet.write_table(table, HERE / "pyarrow.parquet", row_group_size=4)
for codec in ["zstd", "gzip", "lz4", "brotli", "none"]:
    pyarrow.parquet.write_table(table, HERE / f"pyarrow-{codec}.parquet", compression=codec)
polars.DataFrame(ROWS).write_parquet(HERE / "polars.parquet")
duckdb.sql(f"COPY (SELECT * FROM '{HERE / 'pyarrow.parquet'}') TO '{HERE / 'duckdb.parquet'}' (FORMAT parquet)")

# Shards of a data set.
shards = HERE / "shards"
shards.mkdir(exist_ok=True)
for number, rows in enumerate([ROWS[:2], ROWS[2:3], ROWS[3:]]):
    shard = pyarrow.Table.from_pylist(rows, schema=table.schema)
    pyarrow.parquet.write_table(shard, shards / f"train-{number:05}-of-00003.parquet")
