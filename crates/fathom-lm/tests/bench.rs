//! `fathom bench` on the trained pair of the fixtures: published columns, equal texts, both
//! accountings.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Checkpoint, assert_refused, fathom, fixture};
use serde_json::Value;

fn bench(args: &[&str]) -> Command {
    let mut command = fathom();
    command.arg("bench").arg("--target").arg(fixture("models/draft"));
    command.arg("--draft").arg(fixture("models/draft-weak")).arg("--data").arg(fixture("prompts"));
    command.args(["--benchmarks", "AIME,HumanEval"]).args(args);
    command
}

fn stdout(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(bench(&[args, &["--json"]].concat()))).unwrap()
}

fn accounting<'a>(report: &'a Value, name: &str) -> &'a Value {
    let accountings = report["accountings"].as_array().unwrap();
    accountings.iter().find(|accounting| accounting["accounting"] == name).unwrap()
}

#[test]
fn the_published_protocol() {
    let report = json(&[
        "--batch-sizes",
        "1,3",
        "--steps",
        "20",
        "--ar-tokens",
        "30",
        "--limit",
        "7",
        "--modes",
        "sd,pearl,auto",
        "--gamma",
        "3",
        "--repeats",
        "3",
    ]);
    for name in ["one_core_each", "whole_machine"] {
        let accounting = accounting(&report, name);
        let rows = accounting["rows"].as_array().unwrap();
        // 2 batch sizes, 2 benchmarks, ar and three others
        assert_eq!(rows.len(), 16);
        for (row, breakdown) in rows.iter().zip(accounting["breakdown"].as_array().unwrap()) {
            // Complete batches only: 7 prompts are 7 batches of 1, or 2 of 3.
            let batch = row["batch_size"].as_u64().unwrap();
            let prompts = 7 / batch * batch;
            let tokens = row["num_tokens"].as_u64().unwrap();
            let seconds = row["time_s"].as_f64().unwrap();
            let throughput = row["throughput_tok_s"].as_f64().unwrap();
            assert!((throughput * seconds / tokens as f64 - 1.0).abs() < 1e-9);
            match row["mode"].as_str().unwrap() {
                "AR" => {
                    assert_eq!(tokens, prompts * 30);
                    assert_eq!((&row["mat"], &row["speedup"]), (&1.0.into(), &1.0.into()));
                }
                mode => {
                    assert_eq!(breakdown["steps"], 20 * (7 / batch));
                    assert!(tokens >= 20 * prompts, "{row}");
                    let per_step = breakdown["tokens_per_step"].as_f64().unwrap();
                    assert!((per_step - tokens as f64 / (20 * prompts) as f64).abs() < 1e-9);
                    if mode != "AUTO" {
                        assert!(per_step <= 4.0 && row["mat"].as_f64().unwrap() > 1.0, "{row}");
                        assert!(breakdown["predicted_speedup"].as_f64().unwrap() > 0.0);
                        assert_eq!(breakdown["gamma"], 3.0);
                    }
                }
            }
        }
    }
}

#[test]
fn the_natural_protocol_gives_every_mode_the_same_tokens() {
    let report = json(&["--protocol", "natural", "--max-tokens", "40", "--batch-sizes", "4"]);
    for accounting in report["accountings"].as_array().unwrap() {
        let rows = accounting["rows"].as_array().unwrap();
        for benchmark in ["AIME", "HumanEval"] {
            let tokens: Vec<&Value> = rows
                .iter()
                .filter(|row| row["benchmark"] == benchmark)
                .map(|row| &row["num_tokens"])
                .collect();
            assert_eq!(tokens.len(), 3);
            assert!(tokens.iter().all(|count| *count == tokens[0]), "{tokens:?}");
        }
    }
}

/// Bubbles and branches: `forked` has at most as many bubbles as `pearl` has rejections and texts,
/// and fewer by the rejections that went on in a branch.
#[test]
fn branches_take_the_place_of_bubbles() {
    let report = json(&[
        "--protocol",
        "natural",
        "--max-tokens",
        "60",
        "--batch-sizes",
        "1",
        "--limit",
        "3",
        "--gamma",
        "4",
        "--modes",
        "sd,pearl,forked",
    ]);
    let accounting = accounting(&report, "one_core_each");
    let rows = accounting["rows"].as_array().unwrap();
    let breakdown = accounting["breakdown"].as_array().unwrap();
    let of = |benchmark: &str, mode: &str| {
        let is_it = |row: &&Value| row["benchmark"] == benchmark && row["mode"] == mode;
        breakdown.iter().find(is_it).unwrap()
    };
    for benchmark in ["AIME", "HumanEval"] {
        let tokens = rows.iter().filter(|row| row["benchmark"] == benchmark);
        let tokens: Vec<&Value> = tokens.map(|row| &row["num_tokens"]).collect();
        assert!(tokens.iter().all(|count| *count == tokens[0]), "{tokens:?}");
        let (pearl, forked) = (of(benchmark, "PEARL"), of(benchmark, "FORKED"));
        let number = |row: &Value, column: &str| row[column].as_f64().unwrap();
        assert!(number(forked, "branch_hits") > 0.0, "{forked}");
        assert!(number(forked, "bubbles") < number(pearl, "bubbles"), "{forked} {pearl}");
        assert!(number(forked, "steps") < number(pearl, "steps"), "{forked} {pearl}");
        assert!(pearl["branch_hits"].is_null() && of(benchmark, "SD")["bubbles"].is_null());
        let used = number(forked, "tokens_per_step") * number(forked, "steps");
        let rows = used / (1.0 - number(forked, "wasted_rows"));
        assert!((rows - rows.round()).abs() < 1e-6, "{rows} rows");
    }
}

/// Texts are cut where they repeat, in all modes alike; halves of the prompts predict each other.
#[test]
fn loops_are_cut_and_halves_predict_each_other() {
    let natural = ["--protocol", "natural", "--max-tokens", "120", "--batch-sizes", "2"];
    let modes = ["--limit", "8", "--modes", "sd,pearl,forked,suffix,auto"];
    let rows = |more: &[&str]| {
        let report = json(&[&natural[..], &modes, more].concat());
        let setup = accounting(&report, "one_core_each");
        (setup["rows"].as_array().unwrap().clone(), setup["breakdown"].as_array().unwrap().clone())
    };
    let tokens = |rows: &[Value]| -> Vec<u64> {
        rows.iter().map(|row| row["num_tokens"].as_u64().unwrap()).collect()
    };
    let (whole, breakdown) = rows(&[]);
    let (cut, _) = rows(&["--cut-loops", "--no-free-guesses"]);
    let (whole, cut) = (tokens(&whole), tokens(&cut));
    assert!(whole.iter().zip(&cut).all(|(whole, cut)| cut <= whole), "{whole:?} {cut:?}");
    assert!(cut[0] < whole[0], "some text of this small model loops");
    for of_benchmark in cut.chunks(6) {
        assert!(of_benchmark.iter().all(|count| *count == of_benchmark[0]), "{cut:?}");
    }
    for row in breakdown {
        let ratio =
            |half: &Value| half["measured"].as_f64().unwrap() / half["predicted"].as_f64().unwrap();
        let Some(halves) = row["held_out"].as_array() else {
            assert_eq!(row["mode"], "AUTO");
            continue;
        };
        let ratios: Vec<f64> = halves.iter().map(ratio).collect();
        let is_near = |ratio: &f64| (0.5..2.0).contains(ratio);
        assert!(ratios.len() == 2 && ratios.iter().all(is_near), "{row}");
        if row["mode"] == "AR" {
            assert_eq!(ratios, [1.0, 1.0]);
        }
    }
    assert_refused(&bench(&["--cut-loops"]).output().unwrap(), &["needs --protocol natural"]);
}

/// Without a draft model: `ar` and guesses from the text, the same tokens in both.
#[test]
fn guesses_from_the_text_are_measured() {
    let bench = |modes: &[&str]| {
        let mut command = fathom();
        command.arg("bench").arg("--target").arg(fixture("models/draft"));
        command.args(["--draft", "suffix"]).arg("--data").arg(fixture("prompts"));
        command.args(["--benchmarks", "HumanEval", "--batch-sizes", "1", "--limit", "2"]);
        command.args(["--protocol", "natural", "--json"]).args(modes);
        command
    };
    for (modes, names) in [(&[][..], &["AR", "SUFFIX"][..]), (&["--modes=auto"], &["AR", "AUTO"])] {
        let report: Value = serde_json::from_str(&stdout(bench(modes))).unwrap();
        let rows = accounting(&report, "one_core_each")["rows"].as_array().unwrap();
        assert_eq!(rows.iter().map(|row| &row["mode"]).collect::<Vec<_>>(), names);
        assert!(rows.iter().all(|row| row["num_tokens"] == rows[0]["num_tokens"]));
        assert!(rows.iter().all(|row| row["draft_model"] == "suffix"));
    }
    assert_refused(&bench(&["--modes=pearl"]).output().unwrap(), &["needs a draft model"]);
}

/// A draft with a shorter context excludes no prompt: beyond it, decoding continues without a
/// draft.
#[test]
fn a_draft_with_a_shorter_context() {
    let short = Checkpoint::copy_of_dir(&fixture("models/draft-weak"));
    short.edit_config(|config| drop(config.insert("max_position_embeddings".into(), 90.into())));
    let mut command = fathom();
    command.arg("bench").arg("--target").arg(fixture("models/draft"));
    command.arg("--draft").arg(short.path()).arg("--data").arg(fixture("prompts"));
    command.args(["--benchmarks", "AIME", "--batch-sizes", "4", "--accounting", "whole-machine"]);
    command.args(["--steps", "30", "--ar-tokens", "60", "--repeats", "2", "--json"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(
        stderr.matches("has a context of 90 tokens, the target 4096").count(),
        1,
        "{stderr}"
    );
    assert!(!stderr.contains("left out"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let whole = accounting(&report, "whole_machine");
    for (row, breakdown) in
        whole["rows"].as_array().unwrap().iter().zip(whole["breakdown"].as_array().unwrap())
    {
        assert!(row["num_tokens"].as_u64().unwrap() >= 8 * 30, "{row}");
        assert!(breakdown["predicted_speedup"].is_null(), "{breakdown}");
    }
}

#[test]
fn tables_for_people_and_for_spreadsheets() {
    let quick = ["--batch-sizes", "2", "--limit", "2", "--steps", "4", "--ar-tokens", "4"];
    let text = stdout(bench(&quick));
    assert!(text.starts_with("One core each: "), "{text}");
    assert!(text.contains("\nWhole machine: AR has "), "{text}");
    assert!(
        text.contains("| Draft Model | Target Model | Batch Size | Benchmark | Mode "),
        "{text}"
    );
    let csv = stdout(bench(&[&quick[..], &["--csv", "--accounting", "one-core-each"]].concat()));
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * 3);
    assert!(lines[0].ends_with("Throughput (tok/s),MAT,Speedup,Accounting"), "{csv}");
    assert!(lines[1].starts_with("draft-weak,draft,2,AIME,AR,8,"), "{csv}");
}

#[test]
fn what_cannot_be_measured() {
    for (args, parts) in [
        (&["--batch-sizes", "9"][..], &["AIME.jsonl", "8 prompts", "a batch of 9"][..]),
        (&["--batch-sizes", "0"], &["batch-size is 0"]),
        (&["--gamma", "0"], &["gamma is 0"]),
        (&["--max-prompt-tokens", "2", "--batch-sizes", "1"], &["AIME.jsonl", "0 prompts"]),
    ] {
        assert_refused(&bench(args).output().unwrap(), parts);
    }
    let refused = |name: &str, data: &Path, parts: &[&str]| {
        let mut command = fathom();
        command.arg("bench").arg("--target").arg(fixture("models/draft"));
        command.arg("--draft").arg(fixture("models/draft-weak"));
        command.arg("--data").arg(data).args(["--benchmarks", name]);
        assert_refused(&command.output().unwrap(), parts);
    };
    refused("none", &fixture("prompts"), &["none.jsonl", "cannot be opened"]);
    refused("../prompts/AIME", &fixture("prompts"), &["`../prompts/AIME`", "name"]);
    refused("AIME", Path::new("no/such/dir"), &["no/such/dir"]);
}
