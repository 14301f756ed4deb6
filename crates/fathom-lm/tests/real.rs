//! Trained models, compared with HuggingFace transformers in f32.
//!
//! Run by `check.sh`, which prepares the models; see `tests/real/README.md` for their origin.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{fixture, succeed};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model and a directory for results.
struct Real {
    model: String,
    dir: TempDir,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        let values = tensor.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x));
        (name, (tensor.shape().to_vec(), values.collect()))
    };
    tensors.tensors().into_iter().map(of).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

impl Real {
    fn new(model: &Path) -> Real {
        let model = model.display().to_string();
        Real { model, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The output of `fathom capture` for these tokens.
    fn capture(&self, ids: &Value, sites: &str) -> Tensors {
        let (tokens, out) = (self.path("ids.json"), self.path("capture.safetensors"));
        fs::write(&tokens, ids.to_string()).unwrap();
        let of = ["capture", "--model", &self.model, "--ids", &tokens, "--sites", sites];
        succeed(&[&of[..], &["--out", &out, "--quiet"]].concat());
        tensors(Path::new(&out))
    }

    /// The ids of a prompt, and the ids that `fathom generate` generates after it.
    fn generate(&self, prompt: &str, tokens: usize, more: &[&str]) -> (Vec<u32>, Vec<u32>) {
        let (prompts, out) = (self.path("prompts.jsonl"), self.path("texts.jsonl"));
        fs::write(&prompts, json!({ "prompt": prompt }).to_string() + "\n").unwrap();
        let tokens = tokens.to_string();
        let of = ["generate", "--target", &self.model, "--prompts", &prompts, "--out", &out];
        succeed(&[&of[..], &["--max-tokens", &tokens, "--quiet"], more].concat());
        let line: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
        fs::remove_file(out).unwrap();
        let mut ids = ids(&line["input_ids"]);
        let written = ids.split_off(usize::try_from(line["prompt_len"].as_u64().unwrap()).unwrap());
        (ids, written)
    }
}

/// The largest error and its location.
#[derive(Default)]
struct Worst {
    error: f64,
    at: String,
}

impl Worst {
    fn take(&mut self, error: f64, at: impl FnOnce() -> String) {
        if error.is_nan() || error > self.error {
            (self.error, self.at) = (error, at());
        }
    }

    fn check(&self, what: &str, most: f64) {
        println!(
            "{what}: off by at most {:.1e} ({}), where {most:.0e} is allowed",
            self.error, self.at
        );
        assert!(self.error <= most, "{what}: {:.2e} at {}", self.error, self.at);
    }
}

/// The norms of the rows of `[rows, width]`.
fn norms(values: &[f32], width: usize) -> Vec<f64> {
    let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    values.chunks_exact(width).map(norm).collect()
}

/// The means of the columns of `[heads, T]`.
fn mean_of_heads(scores: &[f32], tokens: usize) -> Vec<f64> {
    let heads = (scores.len() / tokens) as f64;
    let mean = |t: usize| scores[t..].iter().step_by(tokens).map(|x| f64::from(*x)).sum::<f64>();
    (0..tokens).map(|t| mean(t) / heads).collect()
}

#[test]
#[ignore = "needs target/real/smollm2: tests/real/prepare.sh"]
fn smollm2_is_what_it_is_in_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let model = root.join("target/real/smollm2");
    assert!(model.join("made-from").exists(), "run tests/real/prepare.sh first");
    let text = fs::read_to_string(root.join("tests/real/smollm2.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let real = Real::new(&model);

    let captured = real.capture(&expected["ids"], "resid_post,sink_score");
    let tokens = expected["ids"].as_array().unwrap().len();
    let (mut norm_error, mut score_error) = (Worst::default(), Worst::default());
    for layer in 0..30 {
        let (shape, states) = &captured[&format!("resid_post.{layer}")];
        assert_eq!(shape[..], [tokens, 576]);
        let wanted = floats(&expected["resid_post_norm"][layer]);
        assert_eq!(wanted.len(), tokens);
        for (t, (norm, wanted)) in norms(states, 576).into_iter().zip(wanted).enumerate() {
            norm_error.take((norm / wanted - 1.0).abs(), || format!("layer {layer}, token {t}"));
        }
        let (shape, scores) = &captured[&format!("sink_score.{layer}")];
        assert_eq!(shape[..], [9, tokens]);
        let wanted = floats(&expected["sink_score"][layer]);
        assert_eq!(wanted.len(), tokens);
        for (t, (score, wanted)) in
            mean_of_heads(scores, tokens).into_iter().zip(wanted).enumerate()
        {
            score_error.take((score - wanted).abs(), || format!("layer {layer}, token {t}"));
        }
    }
    norm_error.check("norm of resid_post, relative", 1e-4);
    score_error.check("sink score, absolute", 1e-5);

    // The ids are those of the text, and prompts are formatted with the model's chat template.
    let story = expected["story"].as_str().unwrap();
    let (prompt, _) = real.generate(story, 1, &["--no-chat-template"]);
    assert_eq!(prompt, ids(&expected["ids"]));
    for greedy in expected["greedy"].as_array().unwrap() {
        let text = greedy["prompt"].as_str().unwrap();
        let (prompt, written) = real.generate(text, 200, &[]);
        assert_eq!(prompt, ids(&greedy["prompt_ids"]), "{text}");
        assert_eq!(written, ids(&greedy["output_ids"]), "{text}");
    }

    // By the norms and scores of transformers, the first token is a sink from layer 11 on.
    let (traces, run) = (real.path("traces.jsonl"), real.path("run"));
    fs::write(&traces, json!({ "input_ids": expected["ids"] }).to_string() + "\n").unwrap();
    succeed(&["scan", "--model", &real.model, "--traces", &traces, "--out", &run, "--quiet"]);
    let found = fs::read_to_string(Path::new(&run).join("detections.jsonl")).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let layers = ids(&found["candidate_sinks"]["0"]["layer"]);
    assert!((11..=27).all(|layer| layers.contains(&layer)), "{layers:?}");
}

/// Its first token is large twice, and tokens are aligned with it both times.
#[test]
#[ignore = "needs target/real/smollm2: tests/real/prepare.sh"]
fn smollm2_has_two_phases() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let expected = fs::read_to_string(root.join("tests/real/smollm2.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let real = Real::new(&root.join("target/real/smollm2"));
    let (traces, run) = (real.path("traces.jsonl"), real.path("run"));
    fs::write(&traces, json!({ "input_ids": expected["ids"] }).to_string() + "\n").unwrap();
    let scan = ["scan", "--model", &real.model, "--traces", &traces, "--attention"];
    let said = succeed(&[&scan[..], &["--out", &run, "--quiet"]].concat());
    assert!(
        said.contains("At layers 2 to 8, the norm of the token at position 0 is large"),
        "{said}"
    );

    let line = fs::read_to_string(Path::new(&run).join("detections.jsonl")).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["fathom"]["clip"], json!({ "start": 11, "end": 28 }));
    let [early] = &line["phases"].as_array().unwrap()[..] else { panic!("{}", line["phases"]) };
    assert_eq!((&early["start"], &early["end"]), (&json!(2), &json!(9)));
    // Its " the" at position 19 receives more attention than the first token, as in transformers.
    let the = &early["sinks"]["19"];
    assert_eq!((&the["l_start"], &the["lifetime"]), (&json!(2), &json!(7)), "{early}");
    assert_eq!(the["token_text"], " the");
    let scores = floats(&the["sink_score"]);
    for (layer, score) in (3..11).zip([0.287, 0.378, 0.323, 0.312, 0.357, 0.309, 0.222, 0.235]) {
        assert!((scores[layer] - score).abs() < 1e-3, "layer {layer}: {}", scores[layer]);
    }

    // At layers 9 and 10 it still draws attention, although it is not aligned any more.
    let measured = ["table", &run, "--json", "--measure", "unaligned,tokens,layers"];
    let measured: Value = serde_json::from_str(&succeed(&measured)).unwrap();
    let at_19 = |table: &str| -> Vec<Value> {
        let rows = measured[table].as_array().unwrap().iter();
        rows.filter(|row| row["position"] == 19).cloned().collect()
    };
    let [unaligned] = &at_19("unaligned")[..] else { panic!("{measured}") };
    assert_eq!(unaligned["layers"], json!([9, 10]));
    assert_eq!(unaligned["aligned"], json!([2, 3, 4, 5, 6, 7, 8]));
    let [token] = &at_19("tokens")[..] else { panic!("{measured}") };
    assert_eq!(token["attention"], json!([3, 4, 5, 6, 7, 8, 9, 10]));
    let layers = at_19("layers");
    for (layer, score) in (9..11).zip([0.222, 0.235]) {
        let row = layers.iter().find(|row| row["layer"] == layer).unwrap();
        assert_eq!((&row["alignment"], &row["attention"]), (&json!(false), &json!(true)));
        assert_eq!((&row["massive"], &row["norm"]), (&json!(false), &json!(false)));
        assert!((row["mean_score"].as_f64().unwrap() - score).abs() < 1e-3, "{row}");
    }

    // Counted, it is in the tables; the lines of the run are the same.
    let all = real.path("all");
    succeed(&[&scan[..], &["--out", &all, "--phases", "all", "--quiet"]].concat());
    let same = fs::read_to_string(Path::new(&all).join("detections.jsonl")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&same).unwrap(), line);
    let table = |args: &[&str]| -> Value {
        serde_json::from_str(&succeed(&[&["table", "--json"], args].concat())).unwrap()
    };
    assert_eq!(table(&[&run, "--phases", "all"]), table(&[&all]));
    assert_eq!(table(&[&run]), table(&[&all, "--phases", "largest"]));
    assert_ne!(table(&[&run]), table(&[&all]));
}

/// `$FATHOM_REAL_MODELS/stories260k`, or `../shared/real/stories260k` next to the checkout.
fn stories() -> Option<PathBuf> {
    let beside = || fixture("../../../shared/real");
    let models = std::env::var_os("FATHOM_REAL_MODELS").map_or_else(beside, PathBuf::from);
    let dir = models.join("stories260k");
    if dir.join("model.safetensors").exists() {
        return Some(dir);
    }
    println!("SKIPPED: no stories260k in {}: set FATHOM_REAL_MODELS", models.display());
    None
}

#[test]
#[ignore = "needs stories260k, which is not part of this repository: FATHOM_REAL_MODELS"]
fn stories260k_is_what_it_is_in_transformers() {
    let Some(dir) = stories() else { return };
    let json = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(dir.join(name)).unwrap()).unwrap()
    };
    let real = Real::new(&dir);
    let captured = real.capture(&json("s260.ids.json"), "embed,resid_post,logits,sink_score");
    let mut compared = 0;
    let (mut error, mut score_error) = (Worst::default(), Worst::default());
    for (name, (shape, wanted)) in tensors(&dir.join("ref.safetensors")) {
        if name == "sink_incl" {
            // [layers, heads, T]
            let layers = wanted.chunks_exact(wanted.len() / shape[0]);
            for (layer, wanted) in layers.enumerate() {
                let (ours, scores) = &captured[&format!("sink_score.{layer}")];
                assert_eq!(ours[..], shape[1..]);
                for (i, (score, wanted)) in scores.iter().zip(wanted).enumerate() {
                    let at =
                        || format!("layer {layer}, head {}, token {}", i / shape[2], i % shape[2]);
                    score_error.take(f64::from((score - wanted).abs()), at);
                }
            }
            compared += 1;
        } else if let Some((ours, values)) = captured.get(&name) {
            assert_eq!(*ours, shape, "{name}");
            let largest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (value, wanted) in values.iter().zip(&wanted) {
                error.take(f64::from((value - wanted).abs() / largest), || name.clone());
            }
            compared += 1;
        } else {
            assert_eq!(name, "sink_strict", "which leaves out each token's attention to itself");
        }
    }
    assert_eq!(compared, 8, "embed, five layers, logits, sink scores");
    error.check("embed, resid_post and logits, relative to the largest", 1e-4);
    score_error.check("sink score, absolute", 1e-5);

    for greedy in json("s260.gen.json").as_array().unwrap() {
        let text = greedy["prompt"].as_str().unwrap();
        let wanted = ids(&greedy["gen"]);
        let (prompt, written) = real.generate(text, wanted.len(), &[]);
        assert_eq!(prompt, ids(&greedy["ids"]), "{text}");
        assert_eq!(written, wanted, "{text}");
    }
}
