//! Data sets on the command line: file formats, row formats, unreadable rows, and runs that grow.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{Planted, assert_refused, contents, fathom, succeed};
use serde_json::Value;

const ROWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fathom-model/tests/data/rows");

impl Planted {
    fn command(&self, traces: &Path, run: &str, args: &[&str]) -> Command {
        let mut command = self.scan_command(traces, run);
        command.arg("--attention").args(args);
        command
    }

    #[track_caller]
    fn scan(&self, traces: &Path, run: &str, args: &[&str]) -> Output {
        let output = self.command(traces, run, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        output
    }

    /// The files of a run without its manifest.
    fn results(&self, run: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let files = contents(&self.path(run)).into_iter();
        files.filter(|(path, _)| path != Path::new("run.json")).collect()
    }
}

fn lines(numbers: std::ops::Range<usize>) -> String {
    let line =
        |i| format!("{{\"prompt\": \"What is {i} times 7?\", \"output\": \"It is {}.\"}}\n", i * 7);
    numbers.map(line).collect()
}

#[test]
fn one_result_whatever_the_file() {
    let planted = Planted::new();
    let rows = Path::new(ROWS);
    planted.scan(&rows.join("rows.jsonl"), "plain", &[]);
    for (n, name) in ["rows.jsonl.gz", "rows.json", "polars.parquet", "shards"].iter().enumerate() {
        let run = format!("run{n}");
        planted.scan(&rows.join(name), &run, &[]);
        assert_eq!(planted.results(&run), planted.results("plain"), "{name}");
    }
    let read = &planted.manifest("plain")["traces"]["read"];
    assert_eq!((&read["traces"], &read["fields"]["`messages`"]), (&6.into(), &6.into()), "{read}");
}

#[test]
fn standard_input_and_output() {
    let planted = Planted::new();
    let pipe = |mut command: Command, text: &str| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = pipe(planted.command(Path::new("-"), "piped", &[]), &lines(0..2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("cannot be resumed or explained"),
        "{stderr}"
    );
    let traces = planted.write("traces.jsonl", lines(0..2));
    planted.scan(&traces, "plain", &[]);
    assert_eq!(planted.results("piped"), planted.results("plain"));
    let output = pipe(planted.command(Path::new("-"), "piped", &["--resume"]), &lines(0..2));
    assert_refused(&output, &["--resume", "standard input"]);
    let output = fathom().arg("explain").arg(planted.path("piped")).output().unwrap();
    assert_refused(&output, &["standard input", "cannot be explained"]);

    let mut command = fathom();
    command.args(["generate", "--max-tokens", "2", "--prompts", "-", "--out", "-", "--target"]);
    command.arg(planted.model()).current_dir(planted.path(""));
    let output = pipe(command, "{\"question\": \"What is 6 times 7?\"}\n");
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["max_tokens"], 2);
    assert!(!planted.path("-").exists(), "no file of that name is written");
}

#[test]
fn a_run_grows_with_its_limit_and_with_its_file() {
    let planted = Planted::new();
    let traces = planted.write("traces.jsonl", lines(0..5));
    planted.scan(&traces, "whole", &[]);
    planted.scan(&traces, "run", &["--limit", "2"]);
    planted.scan(&traces, "run", &["--limit", "3", "--resume"]);
    planted.scan(&traces, "run", &["--resume"]);
    assert_eq!(planted.results("run"), planted.results("whole"));
    let manifest = planted.manifest("run");
    let grown: Vec<_> = manifest["traces"]["grown"].as_array().unwrap().to_vec();
    assert_eq!(
        grown,
        [serde_json::json!({"from": 2, "to": 3}), serde_json::json!({"from": 3, "to": 5})]
    );
    assert_eq!(
        (&manifest["status"], &manifest["counts"]["traces"]),
        (&"complete".into(), &5.into())
    );

    // Lines appended.
    let more = planted.write("traces.jsonl", lines(0..7));
    planted.scan(&more, "run", &["--resume"]);
    planted.scan(&more, "whole7", &[]);
    assert_eq!(planted.results("run"), planted.results("whole7"));
    // Once more changes nothing.
    let before = contents(&planted.path("run"));
    planted.scan(&more, "run", &["--resume"]);
    assert_eq!(contents(&planted.path("run")), before);

    // Changed rows, or a smaller limit, cannot be resumed.
    let changed = planted.write("traces.jsonl", lines(1..9));
    let output = planted.command(&changed, "run", &["--resume"]).output().unwrap();
    assert_refused(&output, &["run.json", "cannot be resumed"]);
    let fewer = planted.write("traces.jsonl", lines(0..7));
    let output = planted.command(&fewer, "run", &["--resume", "--limit", "3"]).output().unwrap();
    assert_refused(&output, &["run.json", "cannot be resumed"]);
    assert_eq!(contents(&planted.path("run")), before);
}

/// A run that is killed while it grows can be resumed.
#[test]
fn a_run_killed_while_it_grows() {
    let planted = Planted::new();
    let traces = planted.write("traces.jsonl", lines(0..40));
    planted.scan(&traces, "whole", &[]);
    for delay in [0, 20, 60, 150, 400] {
        let run = format!("run{delay}");
        planted.scan(&traces, &run, &["--limit", "4"]);
        let mut child = planted.command(&traces, &run, &["--resume", "--quiet"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
        planted.scan(&traces, &run, &["--resume"]);
        assert_eq!(planted.results(&run), planted.results("whole"), "killed after {delay} ms");
    }
}

#[test]
fn rows_that_cannot_be_read_are_passed_over_when_asked() {
    let planted = Planted::new();
    let bad = format!("{}nonsense\n{{\"prompt\": \"a\"}}\n{}", lines(0..1), lines(1..2));
    let traces = planted.write("traces.jsonl", &bad);
    let output = planted.command(&traces, "run", &[]).output().unwrap();
    assert_refused(&output, &["traces.jsonl: line 2"]);
    let output = planted.scan(&traces, "run", &["--skip-bad-lines", "--verbose"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("passed over 2 rows, the first because: "), "{stderr}");
    assert!(stderr.contains("2 rows read from `prompt` and `output`"), "{stderr}");
    let skipped = planted.manifest("run")["traces"]["read"]["skipped"].clone();
    assert_eq!(skipped["count"], 2);
    assert!(skipped["lines"][1].as_str().unwrap().contains("line 3: has `prompt` but no `output`"));
    planted.write("clean.jsonl", lines(0..2));
    planted.scan(&traces, "run", &["--skip-bad-lines", "--resume"]);
    // An explanation skips the same rows.
    succeed(&["explain", planted.path("run").to_str().unwrap(), "--entropy", "--threads", "1"]);
    let nothing = planted.write("nothing.jsonl", "nonsense\n");
    let output = planted.command(&nothing, "none", &["--skip-bad-lines"]).output().unwrap();
    assert_refused(&output, &["holds no traces"]);
}

#[test]
fn fields_that_the_user_names() {
    let planted = Planted::new();
    let row = "{\"x\": {\"ask\": \"What is 6 times 7?\"}, \"all\": [\"42\", \"It is 42.\"]}\n";
    let traces = planted.write("traces.jsonl", row);
    let output = planted.command(&traces, "run", &[]).output().unwrap();
    assert_refused(&output, &["line 1", "--prompt-field"]);
    planted.scan(&traces, "run", &["--prompt-field", "x.ask", "--output-field", "all"]);
    let manifest = planted.manifest("run");
    assert_eq!(manifest["counts"]["traces"], 2);
    assert_eq!(manifest["traces"]["read"]["prompt_field"], "x.ask");
    succeed(&["explain", planted.path("run").to_str().unwrap(), "--entropy", "--threads", "1"]);
    let two =
        planted.write("two.jsonl", "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n");
    let output = planted.command(&two, "none", &[]).output().unwrap();
    assert_refused(&output, &["two.jsonl: line 1", "`chosen`", "`rejected`", "--output-field"]);
}
