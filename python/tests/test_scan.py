"""Scans and runs, which are those of the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import fathom, files

import fathom_lm as fl


@pytest.fixture(scope="module")
def traces(planted_dir: Path) -> Path:
    return planted_dir / "traces.jsonl"


@pytest.fixture(scope="module")
def rows(traces: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in traces.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(planted: fl.Model, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> fl.Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return fl.scan(planted, traces, out, progress=False)


@pytest.fixture(scope="module")
def command_run(planted_dir: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command") / "run"
    fathom("scan", "--model", planted_dir, "--traces", traces, "--out", out, "--attention")
    return out


def test_a_run_is_the_command_lines(run: fl.Run, command_run: Path) -> None:
    assert files(run.path) == files(command_run)
    assert set(files(run.path)) >= {"run.json", "detections.jsonl", "scores.parquet"}


@pytest.mark.parametrize(
    ("keywords", "flags"),
    [
        ({"attention": False}, []),
        ({"all_heads": True}, ["--attention", "--all-heads"]),
        (
            {"preset": "upstream", "threshold": 0.8},
            ["--attention", "--preset", "upstream", "--threshold", "0.8"],
        ),
        ({"rise": 3.0, "reference": (0, 1)}, ["--attention", "--rise", "3", "--reference", "0,1"]),
        ({"max_tokens": 40, "limit": 2}, ["--attention", "--max-tokens", "40", "--limit", "2"]),
    ],
)
def test_arguments_are_the_command_lines(
    planted: fl.Model,
    planted_dir: Path,
    traces: Path,
    tmp_path: Path,
    keywords: dict[str, Any],
    flags: list[str],
) -> None:
    ours = fl.scan(planted, traces, tmp_path / "ours", progress=False, **keywords)
    out = tmp_path / "theirs"
    fathom("scan", "--model", planted_dir, "--traces", traces, "--out", out, *flags)
    assert files(ours.path) == files(out)


def test_open_run_reads_what_the_command_line_wrote(command_run: Path, run: fl.Run) -> None:
    opened = fl.open_run(command_run)
    assert opened.manifest == json.loads((command_run / "run.json").read_text())
    assert opened.detections == run.detections
    assert len(opened) == len(run) == 6
    assert opened.summary() == run.summary()
    assert opened.remarks == ()
    with pytest.raises(fl.CheckpointError, match="holds no run"):
        fl.open_run(command_run.parent)


def forms(model: fl.Model, rows: list[dict[str, Any]]) -> dict[str, Any]:
    def turns(row: dict[str, Any]) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["output"]},
        ]

    return {
        "rows": rows,
        "iterator": iter(rows),
        "messages": [turns(row) for row in rows],
        "mixed": [rows[0], turns(rows[1]), *rows[2:]],
    }


@pytest.mark.parametrize("form", ["rows", "iterator", "messages", "mixed"])
def test_traces_in_memory_have_the_same_sinks(
    planted: fl.Model, rows: list[dict[str, Any]], run: fl.Run, form: str
) -> None:
    scanned = fl.scan(planted, forms(planted, rows)[form], progress=False)
    for ours, theirs in zip(scanned.detections, run.detections, strict=True):
        if "messages" not in form and form != "mixed":
            assert ours == theirs
        found = {at: sink["class"] for at, sink in ours["candidate_sinks"].items()}
        assert found == {at: sink["class"] for at, sink in theirs["candidate_sinks"].items()}
    assert scanned.manifest["traces"]["file"] == "(in memory)"


def test_ids_and_arrays_are_traces(planted: fl.Model, run: fl.Run) -> None:
    tokens = run.tokens.to_dict()
    ids = [tokens["token_id"][tokens["trace"] == trace] for trace in range(len(run))]
    lists = fl.scan(planted, [list(map(int, each)) for each in ids], progress=False)
    arrays = fl.scan(planted, (each for each in ids), progress=False)
    assert lists.detections == arrays.detections
    for ours, theirs in zip(lists.detections, run.detections, strict=True):
        assert ours["candidate_sinks"] == theirs["candidate_sinks"]


def test_a_text_is_bare(planted: fl.Model) -> None:
    text = "hello there " * 20
    scanned = fl.scan(planted, [text], progress=False)
    ids = planted.encode(text, chat_template=False).tolist()
    assert scanned.tokens["token_id"].tolist() == ids


def test_arrow_tables_are_traces(
    planted: fl.Model, rows: list[dict[str, Any]], run: fl.Run
) -> None:
    pa = pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    texts = [{"prompt": row["prompt"], "output": row["output"]} for row in rows]
    table = pa.Table.from_pylist(texts)
    for given in (table, pl.DataFrame(texts), table.to_reader(max_chunksize=2)):
        scanned = fl.scan(planted, given, progress=False)
        for ours, theirs in zip(scanned.detections, run.detections, strict=True):
            assert ours["candidate_sinks"] == theirs["candidate_sinks"]
    ids = pa.table({"input_ids": [planted.encode(row["prompt"]).tolist() for row in rows]})
    assert len(fl.scan(planted, ids, limit=3, progress=False)) == 3


def test_tables_are_arrow(run: fl.Run) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("sinks", "norms", "tokens", "measures", "scores"):
        table = getattr(run, name)
        written = parquet.read_table(run.path / f"{name}.parquet")
        read = pa.table(table)
        assert read.equals(written), name
        assert pa.schema(table).equals(written.schema)
        assert len(table) == written.num_rows
        assert table.columns == written.column_names
    first, again = pa.table(run.scores), pa.table(run.scores)
    assert addresses(first) == addresses(again), "the memory is the run's, not a copy"


def addresses(table: Any) -> dict[str, list[int]]:
    """The address of each column of numbers, chunk by chunk."""
    return {
        name: [chunk.buffers()[1].address for chunk in column.chunks]
        for name, column in zip(table.column_names, table.columns)
        if str(column.type) in ("uint32", "uint64", "float")
    }


def test_arrow_copies_nothing(run: fl.Run) -> None:
    """Two libraries read numbers at the same addresses, those of the run's table."""
    pa = pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    for name in ("sinks", "norms", "tokens", "scores"):
        table = getattr(run, name)
        read = addresses(pa.table(table))
        assert len(read) > 1
        assert addresses(pl.DataFrame(table).to_arrow()) == read, name


def test_tables_are_polars(run: fl.Run) -> None:
    pl = pytest.importorskip("polars")
    for name in ("sinks", "norms", "tokens", "scores"):
        frame = pl.DataFrame(getattr(run, name))
        assert frame.equals(pl.read_parquet(run.path / f"{name}.parquet")), name


def test_tables_are_pandas(run: fl.Run) -> None:
    pd = pytest.importorskip("pandas", minversion="3")
    pa = pytest.importorskip("pyarrow")
    for name in ("sinks", "norms", "tokens", "scores"):
        frame = pd.DataFrame.from_arrow(getattr(run, name))
        assert list(frame.columns) == getattr(run, name).columns
        pd.testing.assert_frame_equal(frame, pa.table(getattr(run, name)).to_pandas())
    mean = pd.DataFrame.from_arrow(run.sinks).groupby("class")["hidden_norm"].mean()
    sinks = run.sinks.to_dict()
    assert set(mean.index) == set(sinks["class"])
    primary = sinks["hidden_norm"][sinks["class"] == "primary"].mean()
    assert np.isclose(mean["primary"], primary)


def test_tables_are_duckdb(run: fl.Run) -> None:
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    for name in ("sinks", "norms", "tokens", "scores"):
        table = getattr(run, name)
        connection.register("run_table", table)
        assert connection.sql("select count(*) from run_table").fetchall() == [(len(table),)]
        columns = [column[0] for column in connection.sql("describe run_table").fetchall()]
        assert columns == table.columns
    sinks = run.sinks  # DuckDB finds the variable by its name
    found = duckdb.sql("select class, count(*) from sinks group by class order by class").fetchall()
    classes, counts = np.unique(sinks["class"].astype(str), return_counts=True)
    assert found == list(zip(classes.tolist(), counts.tolist()))
    largest = "select max(hidden_norm) from sinks where list_contains(layers, 10)"
    assert duckdb.sql(largest).fetchall()[0][0] > 0
    # And back: the rows of a query are traces.
    tokens = run.tokens
    assert len(tokens) > 0
    rows_of_traces = duckdb.sql(
        "select list(token_id order by position) as input_ids from tokens group by trace "
        "order by trace"
    )
    scanned = fl.scan(run_model(run), rows_of_traces, progress=False)
    for ours, theirs in zip(scanned.detections, run.detections, strict=True):
        assert ours["candidate_sinks"] == theirs["candidate_sinks"]


def run_model(run: fl.Run) -> fl.Model:
    assert run._model is not None
    return run._model


def test_tables_are_numpy(run: fl.Run) -> None:
    sinks = run.sinks.to_dict()
    flat = [
        (trace, at, sink)
        for trace, detection in enumerate(run.detections)
        for at, sink in detection["candidate_sinks"].items()
    ]
    assert len(run.sinks) == len(flat) > 6
    assert sinks["trace"].tolist() == [trace for trace, _, _ in flat]
    assert sinks["position"].tolist() == [at for _, at, _ in flat]
    assert sinks["class"].tolist() == [sink["class"] for _, _, sink in flat]
    assert [layers.tolist() for layers in sinks["layers"]] == [sink["layer"] for _, _, sink in flat]
    assert np.allclose(sinks["hidden_norm"], [sink["hidden_norm"] for _, _, sink in flat])
    norms = run.norms.to_dict()
    assert norms["position"].dtype == np.int64 and (norms["position"] == -1).any()
    heads = run.scores["heads"]
    assert any(each is None for each in heads)
    one = next(row for row, each in enumerate(heads) if each is not None)
    assert np.isclose(heads[one].mean(), run.scores["mean"][one], rtol=1e-4)
    measures = run.measures.to_dict()
    assert measures["alignment"].dtype == measures["attention"].dtype == np.bool_
    aligned = sum(len(sink["layer"]) for _, _, sink in flat)
    assert measures["alignment"].sum() == aligned
    drawing = [len(heads) > 0 for heads in measures["heads_above"]]
    assert measures["attention"].tolist() == drawing and any(drawing)
    with pytest.raises(KeyError, match="the columns are trace"):
        run.sinks["nothing"]
    assert "rows" in repr(run.sinks) and "<table>" in run.sinks._repr_html_()


def test_masks_are_the_detections(run: fl.Run) -> None:
    for trace, detection in enumerate(run.detections):
        sinks = detection["candidate_sinks"]
        tokens = detection["fathom"]["tokens"]

        def expected(classes: tuple[str, ...], layer: int | None) -> list[bool]:
            return [
                at in sinks
                and sinks[at]["class"] in classes
                and (layer is None or layer in sinks[at]["layer"])
                for at in range(tokens)
            ]

        for classes in (("primary",), ("secondary",), ("primary", "secondary"), ("noise",)):
            for layer in (None, *range(run.manifest["model"]["layers"])):
                mask = run.mask(trace, layer, classes)
                assert mask.dtype == np.bool_ and mask.tolist() == expected(classes, layer)
        assert run.mask(trace).tolist() == expected(("primary", "secondary"), None)
        assert run.mask(trace, -1, "primary").tolist() == expected(("primary",), 19)
        assert run.mask(trace, classes="secondary").any()
    assert not run.mask(0).flags.writeable
    for arguments in [(6,), (-7,), (0, 20), (0, None, ("bos",)), ("a",)]:
        with pytest.raises(fl.RequestError):
            run.mask(*arguments)  # type: ignore[arg-type]


def test_adapters_of_masks(run: fl.Run, planted: fl.Model) -> None:
    mask = fl.adapters.sae_mask(run, 0)
    assert mask.tolist() == run.mask(0).tolist()
    keep = fl.adapters.kvpress_keep(run, 0)
    assert keep.dtype == np.int64 and keep.tolist() == np.flatnonzero(mask).tolist()
    recent = fl.adapters.kvpress_keep(run, 0, recent=3).tolist()
    assert recent == sorted({*keep.tolist(), *range(len(mask) - 3, len(mask))})
    _, cache = planted.run_with_cache([1, 2], "q.0")
    if not _has("transformer_lens"):
        with pytest.raises(fl.UnsupportedError, match="is not installed"):
            fl.adapters.to_activation_cache(cache, None)


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("show", ["sinks", "tokens", "levels", "positions"])
def test_tables_are_the_command_lines(run: fl.Run, command_run: Path, show: Any) -> None:
    assert str(run.table(show)) == fathom("table", command_run, "--show", show)
    assert (
        str(run.table(show, "csv")).split()
        == fathom("table", command_run, "--show", show, "--csv").split()
    )
    assert str(run.table(show, "latex")) == fathom("table", command_run, "--show", show, "--latex")
    as_json = json.loads(fathom("table", command_run, "--show", show, "--json"))
    assert run.table(show).rows() == as_json[show]
    assert list(run.table(show).to_dict()) == list(as_json[show][0])
    assert "<table>" in run.table(show)._repr_html_()
    both = fl.table([run, fl.open_run(command_run)], show)
    assert str(both) == fathom("table", run.path, command_run, "--show", show)


def test_unknown_tables_are_refused(run: fl.Run) -> None:
    with pytest.raises(fl.RequestError, match="there is no table `all`"):
        run.table("all")  # type: ignore[arg-type]
    with pytest.raises(fl.RequestError, match="format='html'"):
        run.table(format="html")  # type: ignore[arg-type]


def test_explanations_are_the_command_lines(run: fl.Run, command_run: Path) -> None:
    reported: list[tuple[str, str, int, int]] = []
    explained = run.explain(
        ["stages", "effect", "entropy"], max_sinks=20, progress=lambda *step: reported.append(step)
    )
    flags = ["--stages", "--effect", "--entropy", "--max-sinks", "20"]
    output = fathom("explain", command_run, *flags)
    for one in explained:
        theirs = command_run / "explain" / f"{one.analysis}.json"
        assert one.file.read_bytes() == theirs.read_bytes()
        assert one.finding in output
        assert run.results[one.analysis] == json.loads(theirs.read_text())["result"]
    assert reported and reported[0][:2] == ("observing", "tokens")
    assert reported[-1][2] == reported[-1][3]
    opened = fl.open_run(command_run)
    again = opened.explain("stages", max_sinks=20)
    assert again[0].finding == explained[0].finding
    with pytest.raises(fl.RequestError, match="analysis `all` is unknown"):
        run.explain(["all"])


def test_a_run_of_memory_is_explained(planted: fl.Model, rows: list[dict[str, Any]]) -> None:
    scanned = fl.scan(planted, rows[:2], attention=False, progress=False)
    assert scanned.explain("stages", max_sinks=5, progress=False)[0].finding
    with pytest.raises(fl.RequestError, match="in memory"):
        fl.open_run(scanned.path).explain("stages", max_sinks=6, model=planted, progress=False)


def test_figures_and_reports(run: fl.Run, tmp_path: Path) -> None:
    files = run.report(tmp_path / "report.html")
    assert files.page.read_text().startswith("<!doctype html>") or files.page.stat().st_size > 1000
    assert "fig1-norms" in run.figures
    norms = run.figure("norms")
    assert (
        norms == (tmp_path / "figures" / "fig1-norms.svg").read_text() == run.figure("fig1-norms")
    )
    assert norms._repr_svg_().startswith("<svg") and norms.name == "norms"
    norms.save(tmp_path / "own.svg")
    assert (tmp_path / "own.svg").read_text() == norms
    with pytest.raises(fl.RequestError, match="expected one of fig1-norms"):
        run.figure("nothing")
    with pytest.raises(fl.RequestError, match="--pca` makes it"):
        run.figure("pca")
    assert "<table>" in run._repr_html_() and "sink" in repr(run)


def test_resuming_and_refusing(
    planted: fl.Model, traces: Path, run: fl.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fl.scan(planted, traces, out, limit=2, progress=False)
    with pytest.raises(fl.CheckpointError, match="already holds a run"):
        fl.scan(planted, traces, out, progress=False)
    resumed = fl.scan(planted, traces, out, resume=True, progress=False)
    assert resumed.detections == run.detections

    class Stop(Exception):
        pass

    def stop(step: str, unit: str, done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        fl.scan(planted, traces, tmp_path / "stopped", progress=stop)
    with pytest.raises(fl.CheckpointError, match="did not finish"):
        fl.open_run(tmp_path / "stopped")
    whole = fl.scan(planted, traces, tmp_path / "stopped", resume=True, progress=False)
    written = {name: file for name, file in files(run.path).items() if "explain" not in name}
    assert files(whole.path) == written


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT")
def test_ctrl_c_leaves_a_run_that_can_be_resumed(
    planted_dir: Path, planted: fl.Model, tmp_path: Path
) -> None:
    ids = [[1, *(3 + (i * (trace + 7)) % 40 for i in range(2000))] for trace in range(30)]
    program = f"""
import sys, fathom_lm as fl
model = fl.Model({str(planted_dir)!r}, threads=1)
ids = {ids!r}
seen = lambda step, unit, done, total: print("ready", flush=True)
try:
    fl.scan(model, ids, {str(tmp_path / "run")!r}, progress=seen)
    print("finished")
except KeyboardInterrupt:
    print("interrupted")
"""
    script = tmp_path / "scan.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1)
    sent = time.perf_counter()
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert rest.split()[-1] == "interrupted"
    assert time.perf_counter() - sent < 10
    with pytest.raises(fl.CheckpointError, match="did not finish"):
        fl.open_run(tmp_path / "run")
    resumed = fl.scan(planted, ids, tmp_path / "run", limit=None, resume=True, progress=False)
    assert len(resumed) == 30


def test_progress_is_reported(planted: fl.Model, rows: list[dict[str, Any]]) -> None:
    reported: list[tuple[str, str, int, int]] = []
    scanned = fl.scan(planted, rows, progress=lambda *step: reported.append(step))
    tokens = sum(detection["fathom"]["tokens"] for detection in scanned.detections)
    assert reported[0] == ("scanning", "tokens", 0, tokens)
    assert reported[-1] == ("scanning", "tokens", tokens, tokens)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"rise": 0}, "rise=0"),
        ({"attention": False, "all_heads": True}, "needs attention"),
        ({"reference": ()}, "expected positions"),
        ({"reference": (300,)}, "expected positions"),
        ({"limit": 0}, "limit=0"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"preset": "mine"}, "preset `mine` is unknown"),
        ({"resume": True}, "needs the run's directory"),
        ({"prompt_field": "q"}, "are for files"),
    ],
)
def test_arguments_are_refused(planted: fl.Model, keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(fl.RequestError, match=sentence):
        fl.scan(planted, [[1, 2, 3]], progress=False, **keywords)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there are no traces"),
        ([{"prompt": "a"}], "line 1: has `prompt` but no `output`"),
        ([[1, 2], [10**7]], "line 2: token id 10000000"),
        ([{"role": "user", "content": "a"}], "is one message"),
        ([1, 2], "is a number"),
        (3, "expected a path"),
        ({"prompt": "a", "output": "b"}, "expected a path"),
        ([{"input_ids": [1], "x": object()}], "trace 0: cannot be written as JSON"),
    ],
)
def test_traces_are_refused(planted: fl.Model, given: Any, sentence: str) -> None:
    with pytest.raises(fl.FathomError, match=sentence):
        fl.scan(planted, given, progress=False)


def test_remarks_are_warnings(planted: fl.Model) -> None:
    ids = [{"input_ids": [1, 5, 6, 7, 0], "attention_mask": [1, 1, 1, 1, 0]}]
    with pytest.warns(fl.FathomRemark, match="padding"):
        scanned = fl.scan(planted, ids, progress=False)
    assert any(remark.kind == "padding" for remark in scanned.remarks)


def test_an_interrupted_explanation_continues(
    planted: fl.Model, rows: list[dict[str, Any]]
) -> None:
    class Stop(Exception):
        pass

    def stop(step: str, unit: str, done: int, total: int) -> None:
        raise Stop

    scanned = fl.scan(planted, rows[:2], attention=False, progress=False)
    for analysis in ("stages", "swap", "suppress"):
        with pytest.raises(Stop):
            scanned.explain(analysis, max_sinks=4, progress=stop)
        assert analysis not in scanned.results
        assert scanned.explain(analysis, max_sinks=4, progress=False)[0].finding
        assert analysis in scanned.results


def test_phases_decide_which_sinks_are_listed(tmp_path: Path) -> None:
    from fathom_lm import _native

    out = tmp_path / "plant"
    assert _native.main(["fathom", "plant", "--out", str(out), "--two-phases", "--quiet"]) == 0
    truth = json.loads((out / "truth.json").read_text())
    assert len(truth["phases"]) == 2
    model = fl.Model(out)
    largest = fl.scan(model, out / "traces.jsonl", limit=2, attention=False)
    every = fl.scan(model, out / "traces.jsonl", limit=2, attention=False, phases="all")
    early = truth["phases"][0]

    def starts(run: fl.Run) -> list[int]:
        return [int(start) for start in run.sinks["l_start"]]

    assert all(start >= early["end"] for start in starts(largest))
    assert any(start < early["end"] for start in starts(every))
    assert str(largest.table(phases="all")) == str(every.table())
    assert str(largest.table()) == str(every.table(phases="largest"))
    with pytest.raises(fl.RequestError, match="phases `some` is unknown"):
        fl.scan(model, out / "traces.jsonl", phases="some")  # type: ignore[arg-type]
