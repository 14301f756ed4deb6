//! `--adapter` on the command line: runs of a base model and of a tuned one.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{assert_refused, fathom, fixture, run, succeed};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory for adapters and results.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Writes an adapter called `name`: `fields` are added to a minimal config; names of `tensors`
    /// are without PEFT's prefix.
    fn adapter(&self, name: &str, fields: &Value, tensors: &[(String, Vec<usize>, f32)]) -> String {
        let dir = self.0.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut config = json!({
            "peft_type": "LORA",
            "base_model_name_or_path": "example/base",
            "target_modules": ["q_proj"],
            "r": 1,
            "lora_alpha": 1,
        });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
        // Numbers of both signs with magnitudes up to `size`.
        let number = |size: f32, i: usize| size * ((i * 7919 % 13) as f32 / 6.0 - 1.0);
        let bytes: Vec<(String, &Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, shape, size)| {
                let values = (0..shape.iter().product()).map(|i| number(*size, i));
                let bytes = values.flat_map(f32::to_le_bytes).collect();
                (format!("base_model.model.{name}"), shape, bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(dir.join("adapter_model.safetensors"), file).unwrap();
        dir.display().to_string()
    }
}

fn planted() -> String {
    fixture("planted/basic").display().to_string()
}

/// An adapter for the planted model that zeroes its MLP outputs: no sink forms.
fn no_mlp(place: &Place) -> String {
    let down = |l| (format!("model.layers.{l}.mlp.down_proj.weight"), vec![96, 40], 0.0);
    let fields = json!({ "modules_to_save": ["down_proj"] });
    let mut tensors: Vec<_> = (0..16).map(down).collect();
    tensors.extend(query("lora_A", [1, 96], 0.1));
    tensors.extend(query("lora_B", [96, 1], 0.1));
    place.adapter("no-mlp", &fields, &tensors)
}

/// A tensor of the query projection of layer 0.
fn query(part: &str, shape: [usize; 2], size: f32) -> Option<(String, Vec<usize>, f32)> {
    Some((format!("model.layers.0.self_attn.q_proj.{part}.weight"), shape.to_vec(), size))
}

/// A scan of the planted model.
fn scan(place: &Place, run: &str, more: &[&str]) -> std::process::Output {
    let traces = fixture("planted/basic/traces.jsonl");
    let mut command = fathom();
    command.arg("scan").arg("--model").arg(planted()).arg("--traces").arg(traces);
    command.args(["--out", &place.path(run), "--limit", "2", "--threads", "1"]).args(more);
    command.output().unwrap()
}

#[track_caller]
fn scan_succeeds(place: &Place, run: &str, more: &[&str]) -> String {
    let output = scan(place, run, more);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr
}

fn manifest(place: &Place, run: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(&place.path(run)).join("run.json")).unwrap())
        .unwrap()
}

#[test]
fn base_and_tuned_runs_are_distinguished() {
    let place = Place::new();
    let adapter = no_mlp(&place);
    scan_succeeds(&place, "base", &[]);
    let stderr = scan_succeeds(&place, "tuned", &["--adapter", &adapter]);
    assert!(stderr.contains("the adapter was trained on `example/base`"), "{stderr}");

    let (base, tuned) = (manifest(&place, "base"), manifest(&place, "tuned"));
    assert_eq!(base["model"].get("adapter"), None);
    let noted = tuned["model"]["adapter"].as_object().unwrap();
    assert_eq!(noted["path"], adapter.as_str());
    for sha256 in ["config_sha256", "weights_sha256"] {
        assert_eq!(noted[sha256].as_str().unwrap().len(), 64);
        assert_eq!(base["model"][sha256], tuned["model"][sha256]);
    }
    assert!(base["counts"]["secondary"].as_u64() > Some(0), "{base}");
    assert_eq!(tuned["counts"]["no_primary_sink"], 2, "{tuned}");

    let runs = [place.path("base"), place.path("tuned")];
    let table = succeed(&["table", &runs[0], &runs[1], "--json"]);
    let table: Value = serde_json::from_str(&table).unwrap();
    let names: Vec<&str> = table["sinks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["model"].as_str().unwrap())
        .collect();
    assert_eq!(names, [planted().as_str(), &format!("{} + no-mlp", planted())]);

    // The run can be resumed only with its own adapter, which may have moved.
    let moved = place.path("moved");
    fs::rename(&adapter, &moved).unwrap();
    scan_succeeds(&place, "tuned", &["--resume", "--adapter", &moved]);
    let without = scan(&place, "tuned", &["--resume"]);
    assert_refused(&without, &["run.json", "`model.adapter", "cannot be resumed"]);
    let with = scan(&place, "base", &["--resume", "--adapter", &moved]);
    assert_refused(&with, &["run.json", "`model.adapter", "cannot be resumed"]);
}

#[test]
fn an_explanation_takes_the_runs_adapter() {
    let place = Place::new();
    // Small enough that the sinks remain.
    let tensors: Vec<_> =
        query("lora_A", [1, 96], 0.1).into_iter().chain(query("lora_B", [96, 1], 0.1)).collect();
    let adapter = place.adapter("small", &json!({}), &tensors);
    scan_succeeds(&place, "tuned", &["--adapter", &adapter]);
    let tuned = place.path("tuned");
    succeed(&["explain", &tuned, "--stages", "--neurons", "--max-sinks", "4"]);

    let moved = place.path("moved");
    fs::rename(&adapter, &moved).unwrap();
    fs::remove_dir_all(Path::new(&tuned).join("explain")).unwrap();
    let gone = run(&["explain", &tuned, "--stages"]);
    assert_refused(&gone, &["the run's adapter", "small", "name that with `--adapter`"]);
    succeed(&["explain", &tuned, "--stages", "--adapter", &moved]);

    fs::remove_dir_all(Path::new(&tuned).join("explain")).unwrap();
    let config = Path::new(&moved).join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"lora_alpha\":1", "\"lora_alpha\":2")).unwrap();
    let changed = run(&["explain", &tuned, "--stages", "--adapter", &moved]);
    assert_refused(&changed, &["moved", "its config differs from those of", "run.json"]);

    scan_succeeds(&place, "base", &[]);
    let base = run(&["explain", &place.path("base"), "--stages", "--adapter", &moved]);
    assert_refused(&base, &["--adapter: the run's model had no adapter"]);
}

#[test]
fn a_capture_is_of_the_merged_model() {
    let place = Place::new();
    let (model, adapter) = (fixture("adapters/llama/f32"), fixture("adapters/llama/plain"));
    fs::write(place.path("ids.json"), "[1, 17, 5, 42, 63, 8, 8, 30]").unwrap();
    let out = place.path("logits.safetensors");
    let (ids, model) = (place.path("ids.json"), model.display().to_string());
    let args = ["capture", "--model", &model, "--adapter", &adapter.display().to_string()];
    succeed(&[&args[..], &["--ids", &ids, "--sites", "logits", "--out", &out]].concat());
    let floats = |path: PathBuf| -> Vec<f32> {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let logits = tensors.tensor("logits").unwrap().data().to_vec();
        logits.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    };
    let (ours, peft) = (floats(out.into()), floats(adapter.join("merged.f32.safetensors")));
    assert_eq!(ours.len(), peft.len());
    let largest = peft.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let error = ours.iter().zip(&peft).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(error <= 1e-5 * largest, "{error} of {largest}");
}

/// An adapter for the small trained target that changes its text.
fn of_target(place: &Place) -> String {
    let tensors: Vec<_> =
        query("lora_A", [1, 128], 0.5).into_iter().chain(query("lora_B", [128, 1], 0.5)).collect();
    place.adapter("tuned", &json!({}), &tensors)
}

fn lines(more: &[&str]) -> Vec<Value> {
    let (target, draft) = (fixture("models/draft"), fixture("models/draft-weak"));
    let (target, draft) = (target.display().to_string(), draft.display().to_string());
    let args =
        ["generate", "--target", &target, "--draft", &draft, "--prompt", "What is 6 times 7?"];
    let args =
        [&args[..], &["--max-tokens", "40", "-n", "1", "--json", "--gamma", "3"], more].concat();
    let printed: Value = serde_json::from_str(&succeed(&args)).unwrap();
    printed["texts"].as_array().unwrap().clone()
}

#[test]
fn generated_lines_name_the_adapter() {
    let place = Place::new();
    let adapter = of_target(&place);
    let (base, tuned) = (lines(&[]), lines(&["--adapter", &adapter]));
    let target = fixture("models/draft").display().to_string();
    assert_eq!(base[0]["model"], target.as_str());
    assert_eq!(tuned[0]["model"], format!("{target} + tuned"));
    assert_ne!(base[0]["weights"], tuned[0]["weights"]);
    assert_ne!(base[0]["output"], tuned[0]["output"]);
    // The text is that of the merged target, in every decoding mode.
    assert_eq!(lines(&["--adapter", &adapter, "--mode", "ar"]), tuned);
    assert_eq!(lines(&["--adapter", &adapter, "--mode", "sd"]), tuned);
    let no_draft = ["generate", "--target", &target, "--prompt", "a", "--draft-adapter", &adapter];
    let output = run(&no_draft);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.contains("--draft <D>")), (Some(2), true), "{stderr}");
}

#[test]
fn a_draft_can_have_its_own_adapter() {
    let place = Place::new();
    let adapter = of_target(&place);
    let model = fixture("models/draft").display().to_string();
    let generate = |more: &[&str]| {
        let args = ["generate", "--target", &model, "--draft", &model, "--adapter", &adapter];
        let how = ["--prompt", "What is 6 times 7?", "--max-tokens", "40", "--json"];
        let args = [&args[..], &how, &["--mode", "sd", "--gamma", "3"], more].concat();
        let printed: Value = serde_json::from_str(&succeed(&args)).unwrap();
        let mat = printed["texts"][0]["mat"].as_f64().or(printed["metrics"]["mat"].as_f64());
        (printed["texts"][0]["input_ids"].clone(), mat.unwrap())
    };
    let (text, mat) = generate(&[]);
    let (same, of_equal) = generate(&["--draft-adapter", &adapter]);
    assert_eq!(text, same);
    // A draft equal to the target is always accepted.
    assert!(of_equal > mat, "{of_equal} {mat}");
}

#[test]
fn a_benchmark_names_both() {
    let place = Place::new();
    let adapter = of_target(&place);
    let (target, data) = (fixture("models/draft"), fixture("prompts"));
    let (target, data) = (target.display().to_string(), data.display().to_string());
    let args =
        ["bench", "--target", &target, "--adapter", &adapter, "--draft", &target, "--data", &data];
    let few =
        ["--benchmarks", "AIME", "--batch-sizes", "1", "--limit", "1", "--steps", "2", "--csv"];
    let table = succeed(&[&args[..], &few, &["--ar-tokens", "4", "--modes", "sd"]].concat());
    assert!(table.contains("draft,draft + tuned,"), "{table}");
    let both = ["--draft-adapter", &adapter, "--ar-tokens", "4", "--modes", "sd"];
    let table = succeed(&[&args[..], &few, &both].concat());
    assert!(table.contains("draft + tuned,draft + tuned,"), "{table}");
}

#[test]
fn adapters_that_do_not_fit_are_refused_before_anything_is_written() {
    let place = Place::new();
    let wide: Vec<_> =
        query("lora_A", [1, 128], 0.5).into_iter().chain(query("lora_B", [128, 1], 0.5)).collect();
    let adapter = place.adapter("wide", &json!({}), &wide);
    let output = scan(&place, "run", &["--adapter", &adapter]);
    assert_refused(
        &output,
        &["tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`", "[1, 128]"],
    );
    let dora = place.adapter("dora", &json!({ "use_dora": true }), &wide);
    assert_refused(&scan(&place, "run", &["--adapter", &dora]), &["`use_dora` is true: DoRA"]);
    let nowhere = scan(&place, "run", &["--adapter", "no/such"]);
    assert_refused(&nowhere, &["adapter: ", "no/such"]);
    let model = scan(&place, "run", &["--adapter", &planted()]);
    assert_refused(
        &model,
        &["holds no adapter: there is no adapter_config.json; it holds a model"],
    );
    assert!(!Path::new(&place.path("run")).exists());
}

#[test]
fn an_adapters_tokenizer_and_template_are_not_used_and_reported() {
    let place = Place::new();
    let adapter = of_target(&place);
    let base = fixture("models/draft");
    let stderr = |adapter: &str| {
        let args = ["--prompt", "a", "--max-tokens", "1", "--adapter", adapter];
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(&base).args(args);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    for file in ["tokenizer.json", "chat_template.jinja"] {
        fs::copy(base.join(file), Path::new(&adapter).join(file)).unwrap();
    }
    let same = stderr(&adapter);
    assert!(!same.contains("tokenizer.json") && !same.contains("chat_template"), "{same}");

    let path = Path::new(&adapter).join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    token["id"] = json!(4096);
    token["content"] = json!("<|new|>");
    added.push(token);
    fs::write(&path, tokenizer.to_string()).unwrap();
    fs::write(Path::new(&adapter).join("chat_template.jinja"), "{{ messages }}").unwrap();
    let other = stderr(&adapter);
    for said in [
        "tokenizer.json: names 1 of its tokens differently from the base's, which is used; \
         the first is",
        "`<|new|>` here and none there",
        "chat_template.jinja: is another chat template than the base's, which is used",
    ] {
        assert!(other.contains(said), "`{said}` is not in {other}");
    }
}
