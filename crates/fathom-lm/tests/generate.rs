//! `fathom generate` on the trained pair of the fixtures: the same bytes in every mode, interrupted
//! or not, and errors of one sentence.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Checkpoint, assert_refused, fathom, fixture, succeed};
use serde_json::{Value, json};
use tempfile::TempDir;

fn target() -> PathBuf {
    fixture("models/draft")
}

fn draft() -> PathBuf {
    fixture("models/draft-weak")
}

/// `fathom generate` with the pair.
fn generate(args: &[&str]) -> Command {
    let mut command = fathom();
    command.arg("generate").arg("--target").arg(target()).arg("--draft").arg(draft()).args(args);
    command
}

fn stdout(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A file of prompts in every format.
fn prompts(dir: &TempDir) -> PathBuf {
    let lines = [
        json!({ "prompt": "def add(a, b):" }),
        json!({ "problem": "What is 2 + 2?" }),
        json!({ "question": "Who wrote this?", "answer": "ignored" }),
        json!({ "question_id": 1, "turns": ["Summarize: é 你好 🙂", "second turn"] }),
        json!({ "messages": [{ "role": "system", "content": "Be short." },
                             { "role": "user", "content": "Hello" }] }),
    ];
    let path = dir.path().join("prompts.jsonl");
    fs::write(&path, lines.map(|line| line.to_string() + "\n").concat()).unwrap();
    path
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_file_has_the_same_bytes_in_every_mode_batch_and_split() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(&dir);
    let run = |name: &str, args: &[&str]| {
        let out = dir.path().join(name);
        let mut command = generate(&["--max-tokens", "40", "-n", "2", "--quiet"]);
        command.args(args).arg("--prompts").arg(&prompts).arg("--out").arg(&out);
        stdout(command);
        fs::read(out).unwrap()
    };
    let expected = run("ar", &["--mode", "ar", "--batch-size", "1"]);
    for (name, args) in [
        ("sd", &["--mode", "sd"][..]),
        ("pearl", &["--mode", "pearl", "--gamma", "3", "--batch-size", "3"]),
        ("auto", &["--mode", "auto", "--target-threads", "2", "--draft-threads", "2"]),
        ("tight", &["--kv-pages", "3"]),
    ] {
        assert!(run(name, args) == expected, "{name}");
    }

    let lines = lines(std::str::from_utf8(&expected).unwrap());
    assert_eq!(lines.len(), 10);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!((&line["index"], &line["prompt_index"]), (&json!(i), &json!(i / 2)));
        let (ids, prompt_len) =
            (line["input_ids"].as_array().unwrap(), line["prompt_len"].as_u64().unwrap() as usize);
        match line["finish_reason"].as_str().unwrap() {
            "length" => assert_eq!(ids.len(), prompt_len + 40),
            "eos" => assert_eq!(ids.last(), Some(&json!(2))),
            other => panic!("{other}"),
        }
        assert!(!line["output"].as_str().unwrap().contains("<|im_end|>"));
    }
    assert_eq!(lines[8]["messages"][1]["content"], "Hello");
}

#[test]
fn scan_reads_what_generate_writes_with_the_exact_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (traces, run) = (dir.path().join("traces.jsonl"), dir.path().join("run"));
    let mut command = generate(&["--max-tokens", "24", "--temperature", "1"]);
    command.arg("--prompts").arg(prompts(&dir)).arg("--out").arg(&traces);
    stdout(command);
    let mut scan = fathom();
    scan.arg("scan").arg("--model").arg(target()).arg("--traces").arg(&traces);
    stdout({
        scan.arg("--out").arg(&run);
        scan
    });
    let detections = lines(&fs::read_to_string(run.join("detections.jsonl")).unwrap());
    let traces = lines(&fs::read_to_string(traces).unwrap());
    assert_eq!(detections.len(), traces.len());
    for (detection, trace) in detections.iter().zip(&traces) {
        assert_eq!(detection["sample_index"], trace["index"]);
        assert_eq!(detection["prompt_len"], trace["prompt_len"]);
        assert_eq!(detection["full_text_len"], trace["input_ids"].as_array().unwrap().len());
    }
}

#[test]
fn one_text_is_streamed_and_is_that_of_the_file() {
    let args = ["--prompt", "Summarize: é 你好 🙂", "--max-tokens", "50"];
    let streamed = stdout(generate(&args));
    let whole: Value =
        serde_json::from_str(&stdout(generate(&[&args[..], &["--json"]].concat()))).unwrap();
    assert_eq!(streamed, whole["texts"][0]["output"].as_str().unwrap().to_owned() + "\n");
    let metrics = &whole["metrics"];
    assert!(metrics["tokens"].as_u64().unwrap() > 0);
    assert!(metrics["steps"]["pearl"].as_u64().unwrap() > 0, "{metrics}");
    assert!(metrics["acceptance"].as_f64().unwrap() <= 1.0);
}

#[test]
fn many_texts_without_a_file_are_lines_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = generate(&["--max-tokens", "16", "--batch-size", "2"]);
    command.arg("--prompts").arg(prompts(&dir));
    let indices: Vec<u64> =
        lines(&stdout(command)).iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4]);
}

#[test]
fn a_text_ends_before_its_stop_string() {
    let args = ["--prompt", "def add(a, b):", "--max-tokens", "60", "--json"];
    let text = |args: &[&str]| -> Value {
        let whole: Value = serde_json::from_str(&stdout(generate(args))).unwrap();
        whole["texts"][0].clone()
    };
    let free = text(&args);
    let output = free["output"].as_str().unwrap();
    // Two characters from the middle of the text; they may first appear earlier.
    let middle: Vec<char> = output.chars().skip(output.chars().count() / 2).take(2).collect();
    let stop: String = middle.into_iter().collect();
    for mode in ["ar", "sd", "pearl"] {
        let stopped = text(&[&args[..], &["--mode", mode, "--stop", &stop]].concat());
        assert_eq!(
            stopped["output"].as_str().unwrap(),
            output.split(&stop).next().unwrap(),
            "{mode}"
        );
        assert_eq!(stopped["finish_reason"], "stop");
    }
}

#[test]
fn samples_differ_and_are_reproducible() {
    let outputs = |seed: &str, extra: &[&str]| -> Vec<String> {
        let mut command = generate(&["--prompt", "Tell me", "-n", "6", "--max-tokens", "12"]);
        command.args(["--temperature", "1.2", "--top-p", "0.95", "--seed", seed]).args(extra);
        lines(&stdout(command)).iter().map(|line| line["output"].to_string()).collect()
    };
    let first = outputs("7", &[]);
    assert_eq!(first, outputs("7", &["--batch-size", "1", "--gamma", "2"]));
    let distinct: std::collections::BTreeSet<&String> = first.iter().collect();
    assert!(distinct.len() > 3, "{first:?}");
    assert_ne!(first, outputs("8", &[]));
}

#[test]
fn identical_samples_are_reported() {
    let prompt = ["--prompt", "def add(a, b):", "--max-tokens", "2"];
    let told = |args: &[&str]| {
        let output = generate(&[&prompt, args].concat()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap().matches("will be the same").count()
    };
    assert_eq!(told(&["-n", "2"]), 1);
    assert_eq!(told(&["-n", "2", "--temperature", "1"]), 0);
    assert_eq!(told(&[]), 0);
}

#[test]
fn all_tokens_as_vllm_and_hugging_face_write_it() {
    let args = ["--prompt", "def add(a, b):", "--max-tokens", "8", "--temperature", "1"];
    let with = |k: &str| stdout(generate(&[&args[..], &["--top-k", k]].concat()));
    assert_eq!(with("-1"), with("0"));
    let refused = generate(&[&args[..], &["--top-k", "-2"]].concat()).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("0 or -1 for all"));
}

/// A run that is killed at any moment and resumed has the same bytes as an uninterrupted one.
#[test]
fn killed_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(&dir);
    let out = dir.path().join("out.jsonl");
    let command = |resume: bool| {
        let mut command = generate(&[
            "--max-tokens",
            "120",
            "-n",
            "6",
            "--batch-size",
            "4",
            "--temperature",
            "1",
            "--quiet",
        ]);
        command.arg("--prompts").arg(&prompts).arg("--out").arg(&out).stdout(Stdio::null());
        if resume {
            command.arg("--resume");
        }
        command
    };
    let start = Instant::now();
    assert!(command(false).status().unwrap().success());
    let (expected, duration) = (fs::read(&out).unwrap(), start.elapsed());
    let mut cut_short = 0;
    for point in 1..=5 {
        fs::remove_file(&out).unwrap();
        let mut child = command(false).spawn().unwrap();
        std::thread::sleep(duration * point / 6);
        cut_short += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(command(true).status().unwrap().success());
        assert!(fs::read(&out).unwrap() == expected, "killed after {point} sixths");
    }
    assert!(cut_short >= 2, "only {cut_short} kills came in time");
    // Within a line, and when nothing is left to do.
    for cut in [expected.len() / 2, expected.len()] {
        fs::write(&out, &expected[..cut]).unwrap();
        assert!(command(true).status().unwrap().success());
        assert!(fs::read(&out).unwrap() == expected, "cut at {cut}");
    }
    let other = command(true).args(["--seed", "3"]).output().unwrap();
    assert_refused(&other, &["out.jsonl", "line 1", "`seed`"]);
    let again = command(false).output().unwrap();
    assert_refused(&again, &["out.jsonl", "exists already", "--resume"]);
    assert!(fs::read(&out).unwrap() == expected);
}

/// A reader that closes the pipe is not an error.
#[test]
fn a_closed_pipe_ends_quietly() {
    let mut child = generate(&["--prompt", "a", "--max-tokens", "2000", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn invalid_parameters() {
    for (args, parts) in [
        (&["--gamma", "0"][..], &["gamma is 0", "at least 1"][..]),
        (&["--temperature", "-0.5"], &["temperature is -0.5", "≥ 0"]),
        (&["--temperature", "NaN"], &["temperature is NaN"]),
        (&["--top-p", "0"], &["top-p is 0", "at most 1"]),
        (&["--top-p", "1.5"], &["top-p is 1.5"]),
        (&["--top-p", "-1"], &["top-p is -1"]),
        (&["--max-tokens", "0"], &["max-tokens is 0"]),
        (&["--stop", ""], &["stop string", "empty"]),
        (&["--batch-size", "0"], &["batch-size is 0"]),
        (&["--kv-pages", "0"], &["kv-pages is 0", "at least 1"]),
    ] {
        let output = generate(&["--prompt", "Hello"]).args(args).output().unwrap();
        assert_refused(&output, parts);
    }
    assert_refused(&generate(&["--prompt", ""]).output().unwrap(), &["--prompt is empty"]);
    let mut alone = fathom();
    alone.arg("generate").arg("--target").arg(target()).args(["--prompt", "a", "--mode", "pearl"]);
    assert_refused(&alone.output().unwrap(), &["needs a draft model"]);
    for args in [["--mode", "sd"], ["--draft-adapter", "lora"]] {
        let mut alone = fathom();
        alone.arg("generate").arg("--target").arg(target()).args(["--draft", "suffix"]);
        alone.args(["--prompt", "a"]).args(args);
        assert_refused(&alone.output().unwrap(), &["needs a draft model"]);
    }
}

/// `--draft suffix` needs no draft model, and writes the same bytes as plain decoding, greedy or
/// sampled.
#[test]
fn guesses_from_the_text_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(&dir);
    for temperature in ["0", "0.7"] {
        let text = |args: &[&str]| {
            let mut command = fathom();
            command.arg("generate").arg("--target").arg(target()).arg("--prompts").arg(&prompts);
            command.args(["--max-tokens", "60", "--ignore-eos", "--temperature", temperature]);
            stdout({
                command.args(args);
                command
            })
        };
        let plain = text(&[]);
        for args in [
            &["--draft", "suffix"][..],
            &["--mode", "suffix", "--batch-size", "3", "--gamma", "4"],
            &["--draft", "suffix", "--mode", "auto"],
        ] {
            assert_eq!(text(args), plain, "{args:?}");
        }
    }
    let mut json = generate(&["--prompt", "a a a a a a a a", "--max-tokens", "60", "--json"]);
    json.args(["--mode", "suffix", "--ignore-eos"]);
    let report: Value = serde_json::from_str(&stdout(json)).unwrap();
    let steps = report["metrics"]["steps"]["suffix"].as_u64().unwrap();
    assert!((1..=60).contains(&steps), "{report}");
}

/// Guesses from a corpus: the texts of an earlier run make the same run shorter, and change no
/// byte.
#[test]
fn guesses_from_a_corpus_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, corpus) = (prompts(&dir), dir.path().join("earlier.jsonl"));
    let run = |args: &[&str]| {
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(target()).arg("--prompts").arg(&prompts);
        command.args(["--max-tokens", "60", "--ignore-eos", "--draft", "suffix", "--gamma", "8"]);
        command.args(args);
        command
    };
    let plain = stdout(run(&[]));
    std::fs::write(&corpus, &plain).unwrap();
    let corpus = corpus.to_str().unwrap();
    assert_eq!(stdout(run(&["--corpus", corpus])), plain);
    let steps = |args: &[&str]| {
        let report: Value =
            serde_json::from_str(&stdout(run(&[args, &["--json"]].concat()))).unwrap();
        report["metrics"]["steps"]["suffix"].as_u64().unwrap()
    };
    let (alone, with_corpus) = (steps(&[]), steps(&["--corpus", corpus]));
    assert!(2 * with_corpus < alone, "{with_corpus} {alone}");

    let output = run(&["--mode", "ar", "--corpus", corpus]).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("--corpus has no effect"));
    let missing = run(&["--corpus", "nowhere.jsonl"]).output().unwrap();
    assert_refused(&missing, &["nowhere.jsonl"]);
}

/// Block verification changes sampled texts and no greedy ones.
#[test]
fn blocks_are_verified_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(&dir);
    let text = |temperature: &str, verification: &str| {
        let mut command = generate(&["--prompts"]);
        command.arg(&prompts).args(["--max-tokens", "40", "--ignore-eos", "--gamma", "4"]);
        command.args(["--temperature", temperature, "--verification", verification]);
        stdout(command)
    };
    assert_eq!(text("0", "block"), text("0", "token"));
    assert_eq!(text("0.8", "block"), text("0.8", "block"));
    assert_ne!(text("0.8", "block"), text("0.8", "token"));
}

#[test]
fn prompts_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.jsonl");
    for (text, parts) in [
        (
            json!({ "prompt": "x ".repeat(20_000) }).to_string(),
            &["line 2", "tokens", "context"][..],
        ),
        (json!({ "prompt": "" }).to_string(), &["line 2", "`prompt` is empty"]),
        ("{}".to_owned(), &["line 2", "none of"]),
    ] {
        fs::write(&path, format!("{{\"prompt\": \"a\"}}\n{text}\n")).unwrap();
        let out = dir.path().join("out.jsonl");
        let output =
            generate(&[]).arg("--prompts").arg(&path).arg("--out").arg(&out).output().unwrap();
        assert_refused(&output, parts);
        assert!(!out.exists());
    }
}

#[test]
fn a_draft_with_another_vocabulary() {
    let other = Checkpoint::copy_of_dir(&draft());
    other.edit_json("tokenizer.json", |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let swap: Vec<String> = vocab
            .iter()
            .filter(|(_, id)| matches!(id.as_u64(), Some(3000 | 3001)))
            .map(|(token, _)| token.clone())
            .collect();
        let [a, b] = swap.try_into().unwrap();
        let (id_a, id_b) = (vocab[&a].clone(), vocab[&b].clone());
        vocab.insert(a, id_b);
        vocab.insert(b, id_a);
    });
    refuse_draft(other.path(), &["draft's tokenizer is not the target's", "id 3000 is"]);
}

/// A draft with a shorter context than the target's is used up to its context. The text is that of
/// the target, and one remark says that speculation ends.
#[test]
fn a_draft_with_a_shorter_context() {
    let dir = tempfile::tempdir().unwrap();
    let short = Checkpoint::copy_of_dir(&draft());
    short.edit_config(|config| drop(config.insert("max_position_embeddings".into(), 64.into())));
    let path = dir.path().join("prompts.jsonl");
    // Within the draft's context, and beyond it.
    let long = "one two three ".repeat(40);
    let asked = ["What is 6 times 7?", long.as_str()];
    fs::write(&path, asked.map(|text| json!({ "prompt": text }).to_string() + "\n").concat())
        .unwrap();
    let run = |name: &str, args: &[&str]| -> (Vec<u8>, String) {
        let out = dir.path().join(name);
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(target()).args(args);
        command.args(["--max-tokens", "150", "--ignore-eos"]).arg("--prompts").arg(&path);
        let output = command.arg("--out").arg(&out).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        (fs::read(out).unwrap(), stderr)
    };
    let (expected, stderr) = run("ar", &[]);
    assert!(!stderr.contains("context"), "{stderr}");
    let texts = lines(std::str::from_utf8(&expected).unwrap());
    let prompt_len = |i: usize| texts[i]["prompt_len"].as_u64().unwrap() as usize;
    assert!(prompt_len(0) < 64 && prompt_len(1) > 64);
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(text["input_ids"].as_array().unwrap().len(), prompt_len(i) + 150);
        assert_eq!(text["finish_reason"], "length");
    }
    let short = short.path().to_str().unwrap();
    let remark = format!(
        "the draft `{short}` has a context of 64 tokens, the target 4096: beyond it, decoding \
         continues without speculation"
    );
    for mode in ["sd", "pearl", "auto", "ar"] {
        for batch in ["1", "2"] {
            let args = ["--draft", short, "--mode", mode, "--batch-size", batch];
            let (texts, stderr) = run(&format!("{mode}{batch}"), &args);
            assert!(texts == expected, "{mode}, batch {batch}");
            let said = stderr.matches(&remark).count();
            assert_eq!(said, usize::from(mode != "ar"), "{mode}: {stderr}");
        }
    }
    // No remark if no text reaches the draft's context.
    let mut command = fathom();
    command.arg("generate").arg("--target").arg(target()).args(["--draft", short]);
    command.args(["--prompt", "a", "--max-tokens", "5", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(whole["metrics"]["steps"]["pearl"].as_u64().unwrap() > 0, "{whole}");
}

/// Missing or additional rows of the draft's embedding do not change the text.
#[test]
fn a_draft_with_other_rows() {
    const HIDDEN_BYTES: usize = 256;
    let prompt = ["--prompt", "def add(a, b):", "--max-tokens", "60", "--ignore-eos", "--json"];
    let ids = |text: &str| serde_json::from_str::<Value>(text).unwrap()["texts"].clone();
    let expected = ids(&stdout(generate(&[&prompt[..], &["--mode", "ar"]].concat())));
    for rows in [4200, 3000, 300] {
        let other = Checkpoint::copy_of_dir(&draft());
        other.edit_config(|config| drop(config.insert("vocab_size".into(), rows.into())));
        other.edit_weights("model.safetensors", |header, data| {
            let mut all = Vec::new();
            for (name, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
                let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
                let mut values = data[offset(0)..offset(1)].to_vec();
                if name == "model.embed_tokens.weight" {
                    values.resize(rows * HIDDEN_BYTES, 0x3f);
                    entry["shape"][0] = rows.into();
                }
                entry["data_offsets"] = json!([all.len(), all.len() + values.len()]);
                all.extend(values);
            }
            *data = all;
        });
        for mode in ["sd", "pearl", "auto"] {
            let mut command = fathom();
            command.arg("generate").arg("--target").arg(target()).arg("--draft").arg(other.path());
            command.args(prompt).args(["--mode", mode]);
            assert_eq!(ids(&stdout(command)), expected, "{rows} rows, {mode}");
        }
    }
}

#[test]
fn a_draft_with_bad_files() {
    let cut = Checkpoint::copy_of_dir(&draft());
    let weights = fs::read(cut.file("model.safetensors")).unwrap();
    cut.write("model.safetensors", &weights[..weights.len() / 2]);
    refuse_draft(cut.path(), &["model.safetensors"]);

    let without = Checkpoint::copy_of_dir(&draft());
    fs::remove_file(without.file("tokenizer.json")).unwrap();
    refuse_draft(without.path(), &["tokenizer.json", "does not exist"]);

    refuse_draft(Path::new("no/such/draft"), &["no/such/draft"]);
}

#[track_caller]
fn refuse_draft(draft: &Path, parts: &[&str]) {
    let mut command = fathom();
    command.arg("generate").arg("--target").arg(target()).arg("--draft").arg(draft);
    assert_refused(&command.args(["--prompt", "Hello"]).output().unwrap(), parts);
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |out: &Path, parts: &[&str]| {
        let output = generate(&["--prompt", "a"]).arg("--out").arg(out).output().unwrap();
        assert_refused(&output, parts);
    };
    refused(&dir.path().join("none/out.jsonl"), &["none", "not a directory"]);
    refused(dir.path(), &["exists already"]);
    refused(Path::new("/proc/out.jsonl"), &["/proc/out.jsonl", "cannot be created"]);
}

/// The second half of the demo, in both precisions.
#[test]
fn the_demo_generates_and_compares() {
    for precision in ["f32", "bf16"] {
        let report = succeed(&["demo", "--json", "--precision", precision]);
        let report: Value = serde_json::from_str(&report).unwrap();
        let generation = &report["generation"];
        assert_eq!(generation["same_as_plain"], true);
        assert_eq!(generation["metrics"]["texts"], 4);
        assert!(generation["metrics"]["steps"]["pearl"].as_u64().unwrap() > 0);
        assert_eq!(report["generation_counts"]["traces"], 4, "{report}");
    }
}

#[test]
fn help_shows_an_example() {
    let help = succeed(&["generate", "--help"]);
    assert!(help.contains("fathom generate --target ./target --draft ./draft"), "{help}");
}

/// The recommended sampling parameters are reported once, unless the user chose parameters.
#[test]
fn recommended_sampling_is_reported_if_none_is_chosen() {
    let checkpoint = Checkpoint::copy_of("models/draft");
    let stderr = |args: &[&str]| {
        let mut command = fathom();
        command.arg("generate").arg("--target").arg(checkpoint.path());
        let output =
            command.args(["--prompt", "A", "--max-tokens", "2"]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!stderr(&[]).contains("remark"));
    checkpoint.edit_json("generation_config.json", |config| {
        config.insert("do_sample".into(), json!(true));
        config.insert("temperature".into(), json!(0.6));
        config.insert("top_k".into(), json!(20));
    });
    let said = "fathom: remark: generation_config.json recommends temperature 0.6, top-k 20; \
                greedy decoding is used";
    assert!(stderr(&[]).contains(said), "{}", stderr(&[]));
    for asked in [&["--temperature", "0"][..], &["--top-p", "0.9"], &["--top-k", "5"], &["--quiet"]]
    {
        assert!(!stderr(asked).contains("remark"), "{asked:?}");
    }
}
