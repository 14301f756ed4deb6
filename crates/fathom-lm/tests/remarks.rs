//! Remarks about input that was used nevertheless: one line on stderr, the same in `run.json` and
//! `--json`, and exit code 2 with `--strict`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{Checkpoint, Planted, assert_refused, fathom, succeed};
use serde_json::Value;

impl Planted {
    /// Scans these lines to the directory `run`.
    fn scan(&self, traces: impl AsRef<[u8]>, args: &[&str]) -> Output {
        let run = self.path("run");
        if run.exists() {
            fs::remove_dir_all(&run).unwrap();
        }
        let traces = self.write("traces.jsonl", traces);
        self.scan_command(&traces, "run").args(args).output().unwrap()
    }

    fn run_json(&self) -> Value {
        self.manifest("run")
    }

    /// The number of tokens in the run.
    fn tokens(&self) -> i64 {
        self.run_json()["counts"]["tokens"].as_i64().unwrap()
    }
}

/// The remarks on stderr, without the prefix of each.
#[track_caller]
fn told(output: &Output) -> Vec<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let lines = stderr.lines().filter_map(|line| line.strip_prefix("fathom: remark: "));
    lines.map(str::to_owned).collect()
}

/// Checks that a scan makes one remark of a kind, on stderr and in run.json, and refuses with
/// --strict.
#[track_caller]
fn remarks(planted: &Planted, lines: &str, kind: &str, parts: &[&str]) {
    let output = planted.scan(lines, &[]);
    let told = told(&output);
    assert_eq!(told.len(), 1, "{told:?}");
    for part in parts {
        assert!(told[0].contains(part), "`{part}` is not in: {told:?}");
    }
    let manifest = planted.run_json();
    let list = manifest["remarks"].as_array().unwrap();
    assert_eq!((list.len(), &list[0]["kind"]), (1, &Value::from(kind)), "{list:?}");
    let output = planted.scan(lines, &["--strict"]);
    assert_refused(&output, parts);
    assert!(!planted.path("run").exists(), "a refused scan left a run directory");
}

const CLEAN: &str = "{\"prompt\": \"What is 6 times 7?\", \"output\": \"The answer is 42.\"}\n";

#[test]
fn a_clean_scan_is_quiet() {
    let planted = Planted::new();
    let output = planted.scan(CLEAN, &["--strict"]);
    assert_eq!(told(&output), [""; 0]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(planted.run_json().get("remarks"), None);
    // A run without remarks can be resumed too.
    let traces = planted.path("traces.jsonl");
    let run = planted.path("run");
    let output = fathom()
        .arg("scan")
        .arg("--model")
        .arg(planted.model())
        .arg("--traces")
        .arg(traces)
        .arg("--out")
        .arg(run)
        .args(["--threads", "1", "--resume"])
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn padding_is_told_once_however_many_rows_have_it() {
    let planted = Planted::new();
    let row = "{\"input_ids\": [331, 331, 331, 329, 5, 6, 7, 8], \
               \"attention_mask\": [0, 0, 0, 1, 1, 1, 1, 1]}\n";
    let parts = ["traces.jsonl: line 1: `attention_mask` is 0 for 3 tokens at the start"];
    remarks(&planted, row, "padding", &parts);
    remarks(&planted, &row.repeat(3), "padding", &[parts[0], "the same on 2 more lines"]);
    // Padding is removed: the result is that of the row without it.
    planted.scan(row, &[]);
    let padded = fs::read(planted.path("run/detections.jsonl")).unwrap();
    planted.scan("{\"input_ids\": [329, 5, 6, 7, 8]}\n", &[]);
    assert_eq!(fs::read(planted.path("run/detections.jsonl")).unwrap(), padded);
}

#[test]
fn a_tag_that_the_template_has_written_already() {
    let planted = Planted::new();
    let template = "{{bos_token}}{%- for m in messages -%}{{ m.role + ': ' + m.content }}\
                    {%- endfor -%}{%- if add_generation_prompt -%}\
                    {{ 'assistant: <think>\\n' }}{%- endif -%}";
    planted.write("planted/chat_template.jinja", template);
    let line = |output: &str| format!("{{\"prompt\": \"Six?\", \"output\": \"{output}\"}}\n");
    remarks(
        &planted,
        &line("<think>\\nSix."),
        "written-twice",
        &["traces.jsonl: line 1: ", "`<think>`", "written once"],
    );
    planted.scan(line("<think>\\nSix."), &[]);
    let with = planted.tokens();
    planted.scan(line("Six."), &[]);
    assert_eq!(planted.tokens(), with, "as many tokens as if it was written once");
}

#[test]
fn a_lone_surrogate() {
    let planted = Planted::new();
    let line =
        "{\"prompt\": \"What is 6 times 7?\", \"output\": \"ok \\ud83d end\", \"score\": NaN}\n";
    remarks(&planted, line, "lone-surrogates", &["traces.jsonl: line 1: ", "U+FFFD"]);
}

#[test]
fn a_field_that_the_template_leaves_out() {
    let planted = Planted::new();
    let line = r#"{"messages": [{"role": "user", "content": "a", "weight": 1},
        {"role": "assistant", "content": "b"}]}"#
        .replace('\n', " ");
    remarks(&planted, &line, "field-without-effect", &["`messages[0].weight` has no effect"]);
    let line = line.replace("\"weight\": 1", "\"reasoning_content\": \"r\"");
    let output = planted.scan(&line, &[]);
    assert_refused(&output, &["traces.jsonl: line 1: `messages[0].reasoning_content`"]);
}

#[test]
fn ids_that_another_model_wrote() {
    let planted = Planted::new();
    let texts = planted.path("texts.jsonl");
    let generate = |model: &Path| {
        let output = fathom()
            .args(["generate", "--prompt", "What is 6 times 7?", "--max-tokens", "4", "--target"])
            .arg(model)
            .arg("--out")
            .arg(&texts)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = fs::read_to_string(&texts).unwrap();
        fs::remove_file(&texts).unwrap();
        text
    };
    let own = generate(&planted.model());
    assert_eq!(told(&planted.scan(own.repeat(2), &[])), [""; 0]);
    // Ids in the planted model's vocabulary, generated by another model.
    let other = own.replace("\"weights\":\"sampled-sha256:", "\"weights\":\"sampled-sha256:0");
    remarks(
        &planted,
        &other,
        "ids-of-another-model",
        &["traces.jsonl: line 1: the ids were written by ", "another model"],
    );
}

#[test]
fn remarks_are_one_line_and_can_be_switched_off() {
    let planted = Planted::new();
    let line = "{\"prompt\": \"a\", \"output\": \"\\ud83d\"}\n";
    let output = planted.scan(line, &["--quiet"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let output = planted.scan(line, &["--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["remarks"][0]["kind"], "lone-surrogates");
    assert_eq!(json["remarks"][0]["line"], 1);
    // --quiet still prints the error.
    assert_refused(&planted.scan(line, &["--quiet", "--strict"]), &["U+FFFD", "--strict"]);
}

#[test]
fn the_templates_refusal_names_file_and_line() {
    let planted = Planted::new();
    let template = "{% for m in messages %}{% if '<bad>' in m.content %}\
                    {{ raise_exception('no bad content') }}{% endif %}{{ m.content }}{% endfor %}";
    planted.write("planted/chat_template.jinja", template);
    let lines = format!("{CLEAN}{{\"prompt\": \"x <bad>\", \"output\": \"y\"}}\n{CLEAN}");
    let output = planted.scan(&lines, &[]);
    let parts = [
        "traces.jsonl: line 2: the chat template refuses",
        "no bad content",
        "chat_template.jinja",
    ];
    assert_refused(&output, &parts);
    let prompts = planted.write("prompts.jsonl", &lines);
    let output = fathom()
        .args(["generate", "--max-tokens", "1", "--target"])
        .arg(planted.model())
        .arg("--prompts")
        .arg(prompts)
        .output()
        .unwrap();
    assert_refused(
        &output,
        &["prompts.jsonl: line 2: the chat template refuses", "no bad content"],
    );
}

#[test]
fn files_of_other_kinds_say_what_to_do() {
    let planted = Planted::new();
    for (bytes, part) in [
        (&b"BZh91AY\0"[..], "is bzip2-compressed; decompress it first"),
        (b"PK\x03\x04\0", "is a zip archive"),
        (b"PAR1\x15\x04", "cannot be read as Parquet"),
        (b"\x1f\x8b\x08\0\0", "cannot be read"),
    ] {
        assert_refused(&planted.scan(bytes, &[]), &["traces.jsonl: ", part]);
    }
    let utf16: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain(CLEAN.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    assert_eq!(told(&planted.scan(utf16, &[])), [""; 0]);
}

#[test]
fn choices_about_prompts() {
    let planted = Planted::new();
    let scan = |args: &[&str]| {
        let output = planted.scan(CLEAN, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        planted.run_json()
    };
    let plain = scan(&[]);
    assert_eq!(plain["options"].get("prompts"), None);
    let with = scan(&["--system", "Be brief."]);
    assert_eq!(with["options"]["prompts"]["system"], "Be brief.");
    assert!(with["counts"]["tokens"].as_i64() > plain["counts"]["tokens"].as_i64());
    // An explanation reads the traces as the scan did.
    let run = planted.path("run");
    succeed(&["explain", run.to_str().unwrap(), "--entropy", "--threads", "1"]);
    for (args, part) in [
        (
            &["--template-kwargs", "{\"enable_thinking\": false}"][..],
            "no use for `enable_thinking`",
        ),
        (&["--template-kwargs", "[]"], "is not a JSON object"),
        (&["--date", "2025-01-31"], "does not ask for the date"),
        (&["--date", "yesterday"], "expected a day such as 2025-01-31"),
        (&["--system", "S", "--no-chat-template"], "--system needs a chat template"),
    ] {
        let output = planted.scan(CLEAN, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

/// Conversations are read by the same code in both commands.
#[test]
fn scan_and_generate_read_one_conversation_alike() {
    let planted = Planted::new();
    let line = "{\"messages\": [{\"role\": \"user\", \"content\": \"What is 6 times 7?\"}, \
                {\"role\": \"assistant\", \"content\": \"42\"}]}\n";
    let output = planted.scan(line, &[]);
    assert_eq!(told(&output), [""; 0]);
    let prompts = planted.write("prompts.jsonl", line);
    let output = fathom()
        .args(["generate", "--max-tokens", "2", "--json", "--target"])
        .arg(planted.model())
        .arg("--prompts")
        .arg(&prompts)
        .output()
        .unwrap();
    let told = told(&output);
    assert!(told.len() == 1 && told[0].contains("`messages` ends with an answer"), "{told:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["remarks"][0]["kind"], "answer-left-out");
    let detections = fs::read_to_string(planted.path("run/detections.jsonl")).unwrap();
    let scanned: Value = serde_json::from_str(&detections).unwrap();
    assert_eq!(json["texts"][0]["prompt_len"], scanned["prompt_len"]);
}

/// Prompt options need a tokenizer.
#[test]
fn bos_needs_a_tokenizer() {
    let checkpoint = Checkpoint::planted();
    let output = checkpoint.scan().args(["--bos", "yes"]).output().unwrap();
    assert_refused(&output, &["--bos", "tokenizer"]);
}
