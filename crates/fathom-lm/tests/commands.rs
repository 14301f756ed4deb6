//! Each command on good input, compared with planted truths and external references.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Checkpoint, fathom, fixture, succeed};
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn json_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn scan_finds_exactly_what_was_planted_in_both_precisions() {
    let truth = json(&fixture("planted/basic/truth.json"));
    for precision in ["f32", "bf16"] {
        let checkpoint = Checkpoint::planted();
        let output = checkpoint.scan().args(["--precision", precision]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let detections = json_lines(&checkpoint.run_dir().join("detections.jsonl"));
        let sequences = truth["sequences"].as_array().unwrap();
        assert_eq!(detections.len(), sequences.len());
        for (found, planted) in detections.iter().zip(sequences) {
            let found: BTreeMap<u64, (Value, Value)> = found["candidate_sinks"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(position, sink)| {
                    (position.parse().unwrap(), (sink["class"].clone(), sink["layer"].clone()))
                })
                .collect();
            let planted: BTreeMap<u64, (Value, Value)> = planted["sinks"]
                .as_array()
                .unwrap()
                .iter()
                .map(|sink| {
                    let fields = (sink["class"].clone(), sink["layers"].clone());
                    (sink["position"].as_u64().unwrap(), fields)
                })
                .collect();
            assert_eq!(found, planted, "{precision}");
        }
    }
}

#[test]
fn scan_says_plainly_that_there_is_no_primary_sink() {
    let checkpoint = Checkpoint::copy_of("golden/qwen3");
    checkpoint.write("traces.jsonl", r#"{"input_ids": [1, 5, 9, 13, 17, 21, 25, 29]}"#);
    let output = checkpoint.scan().output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(stdout.contains("no primary sink"), "{stdout}");
}

#[test]
fn capture_holds_what_transformers_computed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("captured.safetensors");
    let mut capture = fathom();
    capture.arg("capture").arg("--model").arg(fixture("planted/basic"));
    capture.arg("--traces").arg(fixture("planted/basic/traces.jsonl")).args(["--index", "1"]);
    capture.args(["--sites", "resid_post,blocks.5.hook_mlp_out", "--layers", "3,9..11"]);
    capture.args(["--positions", "0,7..=20"]).arg("--out").arg(&out);
    let output = capture.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let captured = fs::read(&out).unwrap();
    let captured = SafeTensors::deserialize(&captured).unwrap();
    let mut names = captured.names();
    names.sort();
    assert_eq!(names, ["mlp_out.5", "resid_post.10", "resid_post.3", "resid_post.9"]);

    let reference = fs::read(fixture("planted/basic/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&reference).unwrap();
    let norms = |name: &str| floats(reference.tensor(name).unwrap().data());
    let (resid, mlp) = (norms("resid_norm.1"), norms("mlp_out_norm.1")); // [layers, T]
    let tokens = reference.tensor("resid_norm.1").unwrap().shape()[1];
    let positions: Vec<usize> = std::iter::once(0).chain(7..=20).collect();
    for name in names {
        let tensor = captured.tensor(name).unwrap();
        assert_eq!(tensor.shape(), [positions.len(), 96]);
        let (site, layer) = name.split_once('.').unwrap();
        let layer: usize = layer.parse().unwrap();
        let expected = if site == "resid_post" { &resid } else { &mlp };
        for (row, position) in floats(tensor.data()).chunks(96).zip(&positions) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            let expected = expected[layer * tokens + position];
            assert!(
                (norm - expected).abs() <= 1e-4 * expected.max(1.0),
                "{name}: {norm} {expected}"
            );
        }
    }

    // An existing file is not overwritten.
    let before = fs::read(&out).unwrap();
    common::assert_refused(&capture.output().unwrap(), &["captured.safetensors", "exists"]);
    assert_eq!(fs::read(&out).unwrap(), before);
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn negative_numbers_count_from_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let traces = fixture("planted/basic/traces.jsonl");
    let count = fs::read_to_string(&traces).unwrap().lines().count();
    let capture = |name: &str, index: &str, layers: &str, positions: &str| {
        let out = dir.path().join(name);
        let mut capture = fathom();
        capture.arg("capture").arg("--model").arg(fixture("planted/basic")).arg("--traces");
        capture.arg(&traces).args(["--sites", "resid_post", "--index", index, "--layers", layers]);
        capture.args(["--positions", positions, "--out"]).arg(&out);
        (capture.output().unwrap(), out)
    };
    let (output, last) = capture("last", "-1", "-1", "-3..-1");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let last = fs::read(last).unwrap();
    let tensors = SafeTensors::deserialize(&last).unwrap();
    let names = tensors.names();
    assert_eq!((names.len(), tensors.tensor(names[0]).unwrap().shape()[0]), (1, 2));
    let layer = names[0].strip_prefix("resid_post.").unwrap();
    let (output, same) = capture("same", &(count - 1).to_string(), layer, "-3,-2");
    assert!(output.status.success());
    assert_eq!(fs::read(same).unwrap(), last);

    let (refused, _) = capture("no", &format!("-{}", count + 1), "0", "0");
    common::assert_refused(&refused, &["has no trace -"]);
    let (refused, _) = capture("no", "0", "-999", "0");
    common::assert_refused(&refused, &["layer -999 was asked for"]);
    let planted = fixture("planted/basic").display().to_string();
    let traces = traces.display().to_string();
    let scan =
        ["scan", "--model", &planted, "--traces", &traces, "--out", "no", "--reference", "-1"];
    let refused = common::run(&scan);
    assert_eq!(refused.status.code(), Some(2));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.contains("among the first positions"), "{stderr}");
}

#[test]
fn captures_too_large_are_refused_with_the_number() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.txt");
    fs::write(&ids, "5 ".repeat(60_000)).unwrap();
    let out = dir.path().join("out.safetensors");
    let mut capture = fathom();
    capture.arg("capture").arg("--model").arg(fixture("planted/basic")).arg("--ids").arg(&ids);
    let output = capture.args(["--sites", "attn_weights", "--out"]).arg(&out).output().unwrap();
    common::assert_refused(&output, &["GiB", "--max-gib"]);
    assert!(!out.exists());
}

#[test]
fn demo_agrees_with_the_truth_and_says_what_to_type_next() {
    for precision in ["f32", "bf16"] {
        let stdout = succeed(&["demo", "--seed", "3", "--precision", precision]);
        assert!(stdout.contains("sinks found"), "{stdout}");
        assert!(stdout.contains("scan --model"), "{stdout}");
    }
    let report: Value = serde_json::from_str(&succeed(&["demo", "--json"])).unwrap();
    assert_eq!(report["mismatches"], json!([]));
    assert!(report["planted"]["sinks"].as_u64().unwrap() > 20, "{report}");
}

#[test]
fn table_prints_four_ways() {
    let checkpoint = Checkpoint::planted();
    assert!(checkpoint.scan().output().unwrap().status.success());
    let run = checkpoint.run_dir();
    let table = |format: &[&str]| {
        let mut args = vec!["table", run.to_str().unwrap()];
        args.extend(format);
        succeed(&args)
    };
    // 9 primary and 25 secondary sinks in truth.json.
    let sinks: Value = serde_json::from_str(&table(&["--json"])).unwrap();
    assert_eq!(sinks["sinks"][0]["primary_sink_count"], 9);
    assert_eq!(sinks["sinks"][0]["secondary_sink_count"], 25);
    assert!(table(&[]).starts_with("| Model"));
    assert!(table(&["--csv"]).lines().next().unwrap().contains(','));
    assert!(table(&["--latex"]).contains("\\begin{tabular}"));
}

/// Attention-only and massive tokens are in the tables exactly as they were planted.
#[test]
fn the_four_measures_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let model = path("model");
    let plant = ["plant", "--out", &model, "--traces", "2"];
    succeed(&[&plant[..], &["--two-phases", "--attention-only", "--massive"]].concat());
    let truth = std::fs::read_to_string(dir.path().join("model/truth.json")).unwrap();
    let truth: Value = serde_json::from_str(&truth).unwrap();
    let traces = path("model/traces.jsonl");
    let scan = |out: &str, more: &[&str]| {
        let scan = ["scan", "--model", &model, "--traces", &traces, "--quiet", "--out", out];
        succeed(&[&scan[..], more].concat());
    };
    let run = path("run");
    scan(&run, &["--attention"]);
    let table = |run: &str, measures: &str, more: &[&str]| {
        succeed(&[&["table", run, "--measure", measures, "--top", "50"], more].concat())
    };
    let all = "agreement,rate,massive,unaligned,tokens,layers";
    let printed: Value = serde_json::from_str(&table(&run, all, &["--json"])).unwrap();

    let never = printed["unaligned"].as_array().unwrap().iter();
    let never = never.filter(|token| token["aligned"] == json!([]));
    let never: Vec<Value> =
        never.map(|t| json!([t["trace"], t["position"], t["layers"]])).collect();
    let planted = truth["sequences"].as_array().unwrap().iter().enumerate();
    let planted: Vec<Value> = planted
        .flat_map(|(trace, sequence)| {
            let tokens = sequence["attention_only"].as_array().unwrap().iter();
            tokens.map(move |token| json!([trace, token["position"], token["layers"]]))
        })
        .collect();
    assert_eq!(never.len(), planted.len());
    assert!(planted.iter().all(|token| never.contains(token)), "{never:?}");
    let dims = printed["massive"].as_array().unwrap().iter().map(|row| row["dim"].clone());
    let mut dims: Vec<u64> = dims.map(|dim| dim.as_u64().unwrap()).collect();
    dims.sort_unstable();
    assert_eq!(dims, [17, 71]);
    let agreement = printed["agreement"].as_array().unwrap();
    let only = agreement.iter().find(|row| row["attention"] == true && row["alignment"] == false);
    assert!(only.is_some(), "{agreement:?}");
    let pairs: u64 = agreement.iter().map(|row| row["pairs"].as_u64().unwrap()).sum();
    let ids = truth["sequences"].as_array().unwrap().iter();
    let tokens: usize = ids.map(|s| s["input_ids"].as_array().unwrap().len()).sum();
    assert_eq!(pairs, 27 * tokens as u64);
    assert_eq!(printed["rate"].as_array().unwrap().len(), 28);
    assert!(printed["tokens"][0]["mean_score"].is_array());

    assert!(table(&run, "rate", &[]).starts_with("| Model"));
    assert!(table(&run, "layers", &["--csv"]).lines().count() > 50);
    assert!(table(&run, "massive", &["--latex"]).contains("\\begin{tabular}"));

    // Without --attention, it is unknown, not absent.
    let without = path("without");
    scan(&without, &[]);
    let printed: Value = serde_json::from_str(&table(&without, all, &["--json"])).unwrap();
    assert!(printed["agreement"].as_array().unwrap().iter().all(|row| row["attention"].is_null()));
    assert!(printed["rate"][0]["reference"].is_null());
    assert_eq!(printed["unaligned"], json!([]));
    assert!(table(&without, "agreement", &[]).contains(" ? "));

    let file = path("run/detections.jsonl");
    let refused = fathom().args(["table", "--detections", &file, "--measure", "rate"]).output();
    assert_eq!(refused.unwrap().status.code(), Some(2));
}

#[test]
fn plant_writes_the_same_bytes_for_the_same_seed_and_only_where_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    let plant = |name: &str, seed: &str| {
        let out = dir.path().join(name);
        succeed(&["plant", "--out", out.to_str().unwrap(), "--seed", seed]);
        common::contents(&out)
    };
    let first = plant("a", "7");
    assert_eq!(first, plant("b", "7"));
    assert_ne!(first, plant("c", "8"));

    let output = fathom().args(["plant", "--out"]).arg(dir.path().join("a")).output().unwrap();
    common::assert_refused(&output, &["not empty"]);
    assert_eq!(common::contents(&dir.path().join("a")), first);
}

/// Runs `plant` with options and returns the truth it writes.
fn planted_truth(out: &Path, options: &[&str]) -> Value {
    let plant = ["plant", "--traces", "2", "--out", out.to_str().unwrap()];
    succeed(&[&plant[..], options].concat());
    json(&out.join("truth.json"))
}

#[test]
fn scan_finds_both_planted_phases_with_their_sinks() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let truth = planted_truth(&model, &["--two-phases", "--attention-only", "--massive"]);
    assert_eq!(truth["phases"], json!([{"start": 3, "end": 8}, {"start": 10, "end": 25}]));
    let sinks = |trace: usize, phase: u64| -> BTreeMap<String, Value> {
        let sinks = truth["sequences"][trace]["sinks"].as_array().unwrap();
        let of_phase = sinks.iter().filter(|sink| sink["phase"] == phase);
        let fields = |sink: &Value| json!([sink["class"], sink["layers"]]);
        of_phase.map(|sink| (sink["position"].to_string(), fields(sink))).collect()
    };
    let found = |sinks: &Value| -> BTreeMap<String, Value> {
        let fields = |sink: &Value| json!([sink["class"], sink["layer"]]);
        let sinks = sinks.as_object().unwrap().iter();
        sinks.map(|(position, sink)| (position.clone(), fields(sink))).collect()
    };
    for precision in ["f32", "bf16"] {
        let run = dir.path().join(precision);
        let mut scan = fathom();
        scan.arg("scan").arg("--model").arg(&model).arg("--traces");
        scan.arg(model.join("traces.jsonl")).arg("--out").arg(&run);
        scan.args(["--phases", "all", "--precision", precision]);
        let output = scan.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let detections = json_lines(&run.join("detections.jsonl"));
        for (trace, detection) in detections.iter().enumerate() {
            let [early] = &detection["phases"].as_array().unwrap()[..] else {
                panic!("{detection}")
            };
            assert_eq!(detection["fathom"]["clip"], truth["phases"][1]);
            assert_eq!(json!({"start": early["start"], "end": early["end"]}), truth["phases"][0]);
            assert_eq!(found(&early["sinks"]), sinks(trace, 0));
            assert_eq!(found(&detection["candidate_sinks"]), sinks(trace, 1));
        }
        assert_eq!(detections.len(), 2);
    }
}

#[test]
fn plant_adds_to_the_truth_only_what_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let keys = |name: &str, options: &[&str]| {
        let truth = planted_truth(&dir.path().join(name), options);
        let sequence = &truth["sequences"][0];
        let phases = truth.get("phases").is_some();
        let added = ["attention_only", "massive"].map(|key| sequence.get(key).is_some());
        (phases, added)
    };
    assert_eq!(keys("default", &[]), (false, [false, false]));
    assert_eq!(keys("phases", &["--two-phases"]), (true, [false, false]));
    assert_eq!(keys("attention", &["--attention-only"]), (false, [true, false]));
    assert_eq!(keys("massive", &["--massive"]), (false, [false, true]));

    let out = dir.path().join("json").display().to_string();
    let options = ["--two-phases", "--attention-only", "--massive", "--json"];
    let report = succeed(&[&["plant", "--out", &out][..], &options].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["attention_only"], 12, "two in each of six traces");
    assert!(report["massive"].as_u64().unwrap() > 12, "{report}");
    let help = succeed(&["plant", "--help"]);
    assert!(["--two-phases", "--attention-only", "--massive"].iter().all(|o| help.contains(o)));
}

#[test]
fn demo_checks_both_phases() {
    let args = ["demo", "--two-phases", "--json"];
    let report: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!(report["mismatches"], json!([]));
}

#[test]
fn doctor_names_kernels_this_cpu_runs() {
    let report: Value =
        serde_json::from_str(&succeed(&["doctor", "--json", "--threads", "2"])).unwrap();
    let runs = report["kernels_this_cpu_runs"].as_array().unwrap();
    assert!(runs.contains(&report["kernels"]) && runs.contains(&json!("portable")), "{report}");
    assert_eq!(report["threads"], 2);
}

#[test]
fn an_instruction_set_can_be_forced_where_the_cpu_has_it() {
    let report: Value = serde_json::from_str(&succeed(&["doctor", "--json"])).unwrap();
    let runs = report["kernels_this_cpu_runs"].as_array().unwrap();
    for isa in ["portable", "avx2", "avx512", "avx512-bf16", "amx-bf16"] {
        let args = ["doctor", "--json", "--isa", isa];
        if runs.contains(&json!(isa)) {
            let forced: Value = serde_json::from_str(&succeed(&args)).unwrap();
            assert_eq!(forced["kernels"], isa);
        } else {
            common::assert_refused(&fathom().args(args).output().unwrap(), &[isa]);
        }
    }
    let output = fathom().args(["doctor", "--isa", "mmx"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("amx-bf16"), "{output:?}");
}

#[test]
fn doctor_and_bench_engine_relate_a_model_to_the_machine() {
    let checkpoint = Checkpoint::planted();
    let model = checkpoint.path().to_str().unwrap();
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);

    let report: Value =
        serde_json::from_str(&succeed(&["doctor", "--measure", "--json", "--model", model]))
            .unwrap();
    let measured = &report["measured"];
    let one_core = &measured["limits"][0];
    assert_eq!(one_core["threads"], 1);
    assert!(positive(&one_core["read_bytes_per_s"]) && positive(&one_core["f32_flops_per_s"]));
    assert!(positive(&measured["prefill"]["of_matrix_rate"]), "{report}");
    assert!(positive(&measured["decode"][0]["of_bandwidth"]), "{report}");

    let args = ["bench-engine", "--json", "--model", model, "--tokens", "8,40", "--batches", "1,3"];
    let report: Value = serde_json::from_str(&succeed(&args)).unwrap();
    let lengths: Vec<&Value> = report["prefill"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["overhead"]["tokens"])
        .collect();
    assert_eq!(lengths, [8, 40]);
    let batches = report["decode"].as_array().unwrap();
    assert_eq!(batches.iter().map(|row| &row["batch"]).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(batches[0]["times_first"], 1.0);
}

/// With `--quiet`, only errors go to standard error. Without a terminal there are no bars.
#[test]
fn standard_error_is_quiet() {
    let checkpoint = Checkpoint::planted();
    let output = checkpoint.scan().arg("--quiet").output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The help of every command has an example.
#[test]
fn help_teaches() {
    let commands = [
        "demo",
        "scan",
        "table",
        "capture",
        "explain",
        "report",
        "generate",
        "bench",
        "simulate",
        "plant",
        "doctor",
        "bench-engine",
        "completions",
        "man",
    ];
    for command in commands {
        let help = succeed(&[command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("fathom {command} ")), "{help}");
    }
}
