//! `fathom explain` and `fathom capture --edit` on the command line.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{Checkpoint, assert_refused, contents, fathom, fixture, run, succeed};
use fathom_lm::Analysis;
use serde_json::Value;
use tempfile::TempDir;

/// A run of the planted model, with copies of the model and its traces.
struct Scanned {
    dir: TempDir,
    model: Checkpoint,
}

impl Scanned {
    fn new() -> Scanned {
        let dir = tempfile::tempdir().unwrap();
        let model = Checkpoint::copy_of("planted/basic");
        let scanned = Scanned { dir, model };
        fs::copy(fixture("planted/basic/traces.jsonl"), scanned.path("traces.jsonl")).unwrap();
        let model = scanned.model.path().display().to_string();
        let (traces, run) = (scanned.path("traces.jsonl"), scanned.path("run"));
        succeed(&[
            "scan",
            "--model",
            &model,
            "--traces",
            &traces,
            "--out",
            &run,
            "--limit",
            "2",
            "--attention",
        ]);
        scanned
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

#[test]
fn every_analysis_is_stored_and_kept() {
    let scanned = Scanned::new();
    let run_dir = scanned.path("run");
    let explain = |more: &[&str]| {
        let explain = ["explain", &run_dir, "--json", "--quiet", "--max-sinks", "6"];
        let printed = succeed(&[&explain, more].concat());
        serde_json::from_str::<Value>(&printed).unwrap()
    };
    // Eviction makes many passes and has to be asked for.
    let (printed, evict) = (explain(&[]), explain(&["--evict", "--budgets", "64"]));
    let files = |printed: &Value| printed["explain"].as_object().unwrap().clone();
    assert_eq!((files(&printed).len(), files(&evict).len()), (9, 1));
    for (name, file) in files(&printed).iter().chain(&files(&evict)) {
        let text = fs::read_to_string(file.as_str().unwrap()).unwrap();
        let stored: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(stored["analysis"], name.as_str());
        assert_eq!(stored["options"]["max_sinks"], 6);
    }
    assert!(printed["findings"]["suppress"].as_str().unwrap().contains("clamped"));
    // All results are stored, so the model and traces are not needed.
    fs::remove_file(scanned.path("traces.jsonl")).unwrap();
    let again = succeed(&["explain", &run_dir, "--max-sinks", "6", "--quiet"]);
    assert_eq!(again.lines().count(), 18, "a file and a sentence each");
    assert!(Path::new(again.lines().next().unwrap()).exists());
}

#[test]
fn what_is_gone_or_changed_is_named() {
    let scanned = Scanned::new();
    let run_dir = scanned.path("run");
    let explain =
        |more: &[&str]| run(&[&["explain", &run_dir, "--stages", "--quiet"], more].concat());

    let other = Checkpoint::copy_of("golden/qwen2");
    let other = other.path().display().to_string();
    assert_refused(&explain(&["--model", &other]), &["config.json", "differ", "run.json"]);
    assert_refused(&explain(&["--model", "nowhere/at-all"]), &["nowhere/at-all"]);

    let other = scanned.path("other.jsonl");
    fs::write(&other, "{\"input_ids\": [1, 30, 31]}\n").unwrap();
    assert_refused(&explain(&["--traces", &other]), &["other.jsonl", "is not the file"]);
    fs::remove_file(scanned.path("traces.jsonl")).unwrap();
    assert_refused(&explain(&[]), &["traces.jsonl", "give `--traces`"]);

    fs::rename(scanned.model.path(), scanned.path("moved")).unwrap();
    assert_refused(&explain(&[]), &["the run's model is not here", "with `--model`"]);
    // An analysis of the scan's own results needs no model.
    succeed(&["explain", &run_dir, "--effect", "--quiet"]);

    let half = scanned.path("half");
    fs::create_dir(&half).unwrap();
    assert_refused(&run(&["explain", &half]), &["holds no run"]);
    let manifest = fs::read_to_string(scanned.path("run/run.json")).unwrap();
    let running = manifest.replace("\"complete\"", "\"running\"");
    fs::write(scanned.path("half/run.json"), running).unwrap();
    assert_refused(&run(&["explain", &half]), &["`status` is `running`", "--resume"]);
}

#[test]
fn runs_that_cannot_be_explained_are_refused() {
    let scanned = Scanned::new();
    let run_dir = scanned.path("run");
    let explain = || run(&["explain", &run_dir, "--effect", "--quiet"]);
    let spoilt = |name: &str, spoil: &dyn Fn(&str) -> String, parts: &[&str]| {
        let file = scanned.path(name);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, spoil(&text)).unwrap();
        assert_refused(&explain(), parts);
        fs::write(&file, text).unwrap();
    };
    let newer = |text: &str| text.replace("\"format\": 1", "\"format\": 2");
    spoilt("run/run.json", &newer, &["run.json", "`format` is 2", "reads 1"]);
    let half = |text: &str| text[..text.len() / 2].to_owned();
    spoilt("run/run.json", &half, &["run.json", "is not valid JSON"]);
    let one = |text: &str| text.lines().next().unwrap().to_owned() + "\n";
    spoilt("run/detections.jsonl", &one, &["detections.jsonl", "holds 1 traces", "says 2"]);
    let text = |_: &str| "not a trace\n".to_owned();
    spoilt("run/detections.jsonl", &text, &["detections.jsonl", "line 1"]);
    fs::write(scanned.path("run/explain"), "in the way").unwrap();
    assert_refused(&explain(), &["explain"]);
    fs::remove_file(scanned.path("run/explain")).unwrap();
    succeed(&["explain", &run_dir, "--effect", "--quiet"]);
}

#[test]
fn weights_that_have_changed_since_are_refused() {
    let scanned = Scanned::new();
    let weights = scanned.model.file("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1; // one bit of one weight
    fs::write(&weights, bytes).unwrap();
    let explained = run(&["explain", &scanned.path("run"), "--stages", "--quiet"]);
    assert_refused(&explained, &["its weights differ from those of", "run.json"]);
}

/// All analyses have a result for a run of one trace without sinks.
#[test]
fn a_run_of_one_trace_without_sinks_says_so() {
    let model = Checkpoint::planted();
    model.write("traces.jsonl", "{\"input_ids\": [30, 31, 32, 33, 34, 35, 36, 37]}\n");
    let run_dir = model.run_dir().display().to_string();
    assert!(model.scan().args(["--quiet", "--attention"]).output().unwrap().status.success());
    let findings = |more: &[&str]| {
        let printed = succeed(&[&["explain", &run_dir, "--json", "--quiet"], more].concat());
        let printed: Value = serde_json::from_str(&printed).unwrap();
        printed["findings"].as_object().unwrap().clone()
    };
    let (most, evict) = (findings(&[]), findings(&["--evict"]));
    assert_eq!((most.len(), evict.len()), (9, 1));
    for (analysis, found) in most.iter().chain(&evict) {
        let expected = match analysis.as_str() {
            "stages" => "no sinks beside",
            "entropy" => "nats at layer",
            "knockout" => "hidden at 16 layers, KL in nats: BOS",
            "evict" => "no trace is longer than a budget of 64",
            _ => "no secondary sinks",
        };
        assert!(found.as_str().unwrap().contains(expected), "{analysis}: {found}");
    }
}

/// The files in `explain/`.
fn explained(run_dir: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    contents(&Path::new(run_dir).join("explain"))
}

#[test]
fn an_explanation_that_was_killed_goes_on_and_ends_with_the_same_bytes() {
    let scanned = Scanned::new();
    let run_dir = scanned.path("run");
    let explain = || {
        let mut explain = fathom();
        explain.args(["explain", &run_dir, "--quiet", "--max-sinks", "6", "--threads", "1"]);
        explain.args(Analysis::ALL.map(|analysis| format!("--{}", analysis.name())));
        explain.stdout(Stdio::null());
        explain
    };
    assert!(explain().status().unwrap().success());
    let expected = explained(&run_dir);
    assert_eq!(expected.len(), Analysis::ALL.len(), "results and nothing else");

    let dir = Path::new(&run_dir).join("explain");
    let parts = || fs::read_dir(dir.join("parts")).map_or(0, |files| files.count());
    let mut cut_short = 0;
    // Kill it at these numbers of parts: within the first trace, between traces, after the first
    // pass.
    for enough in [1, 4, 9, 13, 16, 18] {
        fs::remove_dir_all(&dir).unwrap();
        let mut child = explain().spawn().unwrap();
        while parts() < enough && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        cut_short += usize::from(dir.join("parts").exists());
        let kept: Vec<PathBuf> = explained(&run_dir).into_keys().collect();
        assert!(explain().status().unwrap().success(), "{enough}: {kept:?}");
        assert!(explained(&run_dir) == expected, "killed after {enough} parts: {kept:?}");
    }
    assert!(cut_short >= 4, "only {cut_short} kills came in time");
}

#[test]
fn what_was_killed_for_something_else_changes_nothing() {
    let scanned = Scanned::new();
    let run_dir = scanned.path("run");
    let dir = Path::new(&run_dir).join("explain");
    let explain = |analysis: &str| {
        let mut explain = fathom();
        explain.args(["explain", &run_dir, "--quiet", "--max-sinks", "6", "--threads", "1"]);
        explain.arg(analysis).stdout(Stdio::null());
        explain
    };
    let all = [("--neurons", "neurons"), ("--suppress", "suppress")];
    let clean = all.map(|(analysis, _)| {
        assert!(explain(analysis).status().unwrap().success());
        let files = explained(&run_dir);
        fs::remove_dir_all(&dir).unwrap();
        files
    });
    for (killed, then) in [(0, 1), (1, 0)] {
        let ((analysis, name), (other, _)) = (all[killed], all[then]);
        // Kill it as soon as it has intervened in the first of two traces.
        let kill = || {
            drop(fs::remove_dir_all(&dir)); // left by a kill that came too late
            let mut child = explain(analysis).spawn().unwrap();
            let reached = || dir.join("parts").join(format!("{name}-0.cbor")).exists();
            while !reached() && child.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
            reached()
        };
        assert!((0..5).any(|_| kill()), "no kill of {analysis} came in time");
        assert!(explain(other).status().unwrap().success());
        let (file, bytes) = clean[then].first_key_value().unwrap();
        assert!(explained(&run_dir)[file] == *bytes, "{other} after {analysis} was killed");
        // The results so far are still there, and the rest of the run gives the same bytes.
        assert!(dir.join("parts").join(format!("{name}-0.cbor")).exists());
        assert!(explain(analysis).status().unwrap().success());
        let own = |(file, bytes): (&PathBuf, &Vec<u8>)| (file.clone(), bytes.clone());
        let both: BTreeMap<PathBuf, Vec<u8>> = clean.iter().flatten().map(own).collect();
        assert!(explained(&run_dir) == both, "{analysis}, killed, then {other}");
    }
}

#[test]
fn a_capture_can_be_edited() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("planted/basic").display().to_string();
    let traces = fixture("planted/basic/traces.jsonl").display().to_string();
    let capture = |name: &str, edits: &[&str]| {
        let out = dir.path().join(name).display().to_string();
        let mut args = vec!["capture", "--model", &model, "--traces", &traces, "--quiet"];
        args.extend(["--sites", "mlp_out,resid_post", "--layers", "6", "--out", &out]);
        edits.iter().for_each(|edit| args.extend(["--edit", edit]));
        run(&args)
    };
    let rows = |name: &str, tensor: &str| -> Vec<f32> {
        let bytes = fs::read(dir.path().join(name)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor(tensor).unwrap().data().as_chunks().0;
        data.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    assert!(capture("plain", &[]).status.success());
    assert!(capture("edited", &["mlp_out.6@23=zero", "resid_pre.2@40=scale(2)"]).status.success());
    let (plain, edited) = (rows("plain", "mlp_out.6"), rows("edited", "mlp_out.6"));
    let row = |rows: &[f32], t: usize| rows[t * 96..(t + 1) * 96].to_vec();
    assert!(row(&plain, 23).iter().any(|x| *x != 0.0));
    assert!(row(&edited, 23).iter().all(|x| *x == 0.0));
    assert!(row(&edited, 39) == row(&plain, 39) && row(&edited, 40) != row(&plain, 40));

    let refused = capture("bad", &["mlp_out.6@23=zero", "mlp_out.6@*=scale(2)"]);
    assert_refused(&refused, &["mlp_out.6@23=zero", "mlp_out.6@*=scale(2)", "order would matter"]);
    assert_refused(&capture("bad", &["mlp_out.16@1=zero"]), &["0..=15"]);
    assert_refused(&capture("bad", &["mlp_out.6@1=nothing"]), &["`nothing` is not one of zero"]);
    assert!(!dir.path().join("bad").exists());
}
