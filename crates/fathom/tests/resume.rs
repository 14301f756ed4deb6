//! A run that is killed at any moment ends, after `--resume`, with the bytes of an undisturbed one.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Checkpoint, contents};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Enough traces that a scan takes a moment, of different lengths.
fn many_traces() -> Checkpoint {
    let checkpoint = Checkpoint::planted();
    let lines = fs::read_to_string(checkpoint.traces()).unwrap();
    checkpoint.write("traces.jsonl", lines.repeat(8));
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
    for name in ["run.json", "detections.jsonl", "sinks.parquet", "norms.parquet", "scores.parquet"]
    {
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
    for point in 0..12u32 {
        fs::remove_dir_all(&run).unwrap();
        // Two kills a run, spread over the time a whole one takes, the second sooner after its start.
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
    assert!(cut_short >= 6, "only {cut_short} kills came in time");
}

/// The states a kill can leave between one write and the next, made by hand.
#[test]
fn killed_between_two_writes() {
    let checkpoint = many_traces();
    let (expected, _) = undisturbed(&checkpoint);
    let run = checkpoint.run_dir();
    let detections = &expected[Path::new("detections.jsonl")];
    let line_ends: Vec<usize> =
        detections.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    let cuts = [
        0,
        1,
        line_ends[0] - 1,  // a whole line without its end
        line_ends[0],      // between two lines
        line_ends[20] + 7, // within a line
        detections.len() - 1,
        detections.len(), // all lines, nothing that comes after
    ];
    for cut in cuts {
        let manifest = interrupted_manifest(&checkpoint);
        fs::remove_dir_all(&run).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(run.join("run.json"), &manifest).unwrap();
        fs::write(run.join("detections.jsonl"), &detections[..cut]).unwrap();
        let output = scan(&checkpoint, true).output().unwrap();
        assert!(
            output.status.success(),
            "cut at {cut}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_same(&expected, &contents(&run), &format!("detections cut at {cut}"));
    }
}

/// The manifest of a run that has begun and not ended.
fn interrupted_manifest(checkpoint: &Checkpoint) -> Vec<u8> {
    let run = checkpoint.run_dir();
    let manifest = run.join("run.json");
    let _ = fs::remove_dir_all(&run);
    let mut child = scan(checkpoint, false).spawn().unwrap();
    while !manifest.exists() {
        std::thread::sleep(Duration::from_millis(1));
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fs::read(manifest).unwrap()
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
