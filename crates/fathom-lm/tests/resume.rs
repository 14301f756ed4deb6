//! A run that is killed at any moment and resumed has the same bytes as an uninterrupted one.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Checkpoint, contents};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Traces of different lengths, enough for a scan to take some time.
fn many_traces() -> Checkpoint {
    let checkpoint = Checkpoint::planted();
    let lines = fs::read_to_string(checkpoint.traces()).unwrap();
    checkpoint.write("traces.jsonl", lines.repeat(4));
    checkpoint
}

fn scan(checkpoint: &Checkpoint, resume: bool) -> std::process::Command {
    let mut scan = checkpoint.scan();
    scan.args(["--attention", "--quiet"]);
    if resume {
        scan.arg("--resume");
    }
    scan.stdout(std::process::Stdio::null());
    scan
}

fn undisturbed(checkpoint: &Checkpoint) -> (Files, Duration) {
    let start = Instant::now();
    assert!(scan(checkpoint, false).status().unwrap().success());
    let files = contents(&checkpoint.run_dir());
    let tables = ["sinks", "norms", "tokens", "measures", "scores"];
    let tables = tables.map(|table| format!("{table}.parquet"));
    let names = ["run.json", "detections.jsonl"].into_iter();
    for name in names.chain(tables.iter().map(String::as_str)) {
        assert!(!files[Path::new(name)].is_empty(), "{name}");
    }
    (files, start.elapsed())
}

fn assert_same(left: &Files, right: &Files, when: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(left), names(right), "{when}");
    for (name, bytes) in left {
        assert!(right[name] == *bytes, "{}: other bytes, {when}", name.display());
    }
}

#[test]
fn killed_at_random_moments() {
    let checkpoint = many_traces();
    let (expected, duration) = undisturbed(&checkpoint);
    let run = checkpoint.run_dir();
    let mut cut_short = 0;
    for point in 0..8u32 {
        fs::remove_dir_all(&run).unwrap();
        // Two kills per run, spread over the duration of a whole run; the second comes sooner.
        let fraction = (f64::from(point) * 0.618_034).fract();
        for delay in [duration.mul_f64(fraction), duration.mul_f64(fraction / 2.0)] {
            let mut child = scan(&checkpoint, run.exists()).spawn().unwrap();
            std::thread::sleep(delay);
            if child.try_wait().unwrap().is_none() {
                cut_short += 1;
            }
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
        }
        assert!(scan(&checkpoint, run.exists()).status().unwrap().success());
        assert_same(&expected, &contents(&run), &format!("killed at {fraction:.2}"));
    }
    assert!(cut_short >= 4, "only {cut_short} kills came in time");
}

/// The states that a kill between two writes can leave: the tables of a trace without its line, or
/// with an incomplete line; all lines, but none of the files written after them.
#[test]
fn killed_between_two_writes() {
    let checkpoint = many_traces();
    let (expected, _) = undisturbed(&checkpoint);
    let run = checkpoint.run_dir();
    for lines in [1, 2, 11, 24] {
        for cut in [Cut::Line, Cut::LineEnd, Cut::Middle, Cut::Nothing] {
            interrupt(&checkpoint, lines);
            let path = run.join("detections.jsonl");
            let detections = fs::read(&path).unwrap();
            let kept = cut.kept(&detections);
            fs::write(&path, &detections[..kept]).unwrap();
            let output = scan(&checkpoint, true).output().unwrap();
            let when = format!("{cut:?} after {lines} lines");
            assert!(output.status.success(), "{when}: {}", String::from_utf8_lossy(&output.stderr));
            assert_same(&expected, &contents(&run), &when);
        }
    }
}

/// The part that is missing at the end of the detections.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Line,
    LineEnd,
    Middle,
    Nothing,
}

impl Cut {
    fn kept(self, detections: &[u8]) -> usize {
        let without_end = detections.len().saturating_sub(1);
        let last_line = detections[..without_end].iter().rposition(|byte| *byte == b'\n');
        let last_line = last_line.map_or(0, |end| end + 1);
        match self {
            Cut::Line => last_line,
            Cut::LineEnd => without_end,
            Cut::Middle => (last_line + without_end) / 2,
            Cut::Nothing => detections.len(),
        }
    }
}

/// Leaves a run that was killed as soon as it had `lines` lines.
fn interrupt(checkpoint: &Checkpoint, lines: usize) {
    let run = checkpoint.run_dir();
    let detections = run.join("detections.jsonl");
    for _ in 0..20 {
        let _ = fs::remove_dir_all(&run);
        let mut child = scan(checkpoint, false).spawn().unwrap();
        let written = || fs::read(&detections).map_or(0, |bytes| line_ends(&bytes));
        while written() < lines && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let manifest = fs::read_to_string(run.join("run.json")).unwrap();
        if manifest.contains("\"running\"") {
            return;
        }
    }
    panic!("20 kills after {lines} lines all came too late");
}

fn line_ends(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let checkpoint = Checkpoint::planted();
    let (expected, _) = undisturbed(&checkpoint);
    assert!(scan(&checkpoint, true).status().unwrap().success());
    assert_same(&expected, &contents(&checkpoint.run_dir()), "resumed when finished");
}

#[test]
fn threads_and_repetition_change_no_byte() {
    let checkpoint = Checkpoint::planted();
    let (expected, _) = undisturbed(&checkpoint);
    fs::remove_dir_all(checkpoint.run_dir()).unwrap();
    let mut scan = common::fathom();
    scan.arg("scan").arg("--model").arg(checkpoint.path()).arg("--traces").arg(checkpoint.traces());
    scan.arg("--out").arg(checkpoint.run_dir()).args(["--threads", "2", "--attention"]);
    assert!(scan.output().unwrap().status.success());
    assert_same(&expected, &contents(&checkpoint.run_dir()), "with 2 threads");
}
