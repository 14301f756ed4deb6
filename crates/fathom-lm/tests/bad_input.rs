//! Unusable traces, templates, output paths and arguments: one sentence each, exit code 2, and no
//! existing file is overwritten.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Checkpoint, assert_refused, contents, fathom, succeed};
use tempfile::TempDir;

/// A planted model with tokenizer and chat template, and a trace of text.
fn with_tokenizer() -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let planted = dir.path().join("planted");
    succeed(&["plant".as_ref(), "--out".as_ref(), planted.as_os_str()]);
    let checkpoint = Checkpoint::copy_of_dir(&planted);
    checkpoint.write("traces.jsonl", r#"{"prompt": "a b c", "output": "d e f"}"#);
    (dir, checkpoint)
}

#[test]
fn a_token_id_beyond_the_vocabulary() {
    let checkpoint = Checkpoint::planted();
    checkpoint.write("traces.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 300, 2]}\n");
    checkpoint.scan_is_refused(&["traces.jsonl", "line 2", "300", "vocabulary"]);
}

#[test]
fn traces_that_are_empty() {
    let checkpoint = Checkpoint::planted();
    for (text, parts) in [
        ("", &["traces.jsonl"][..]),
        ("\n\n", &["traces.jsonl"]),
        (r#"{"input_ids": []}"#, &["traces.jsonl", "line 1", "input_ids"]),
        (r#"{"prompt": "", "output": ""}"#, &["traces.jsonl", "line 1", "prompt"]),
    ] {
        checkpoint.write("traces.jsonl", text);
        checkpoint.scan_is_refused(parts);
    }
}

#[test]
fn trace_lines_that_are_not_what_they_should_be() {
    let checkpoint = Checkpoint::planted();
    let good = "{\"input_ids\": [1, 2]}\n";
    for (bad, parts) in [
        (&b"{\"input_ids\": [1, 2"[..], &["JSON"][..]),
        (b"hello", &["JSON"]),
        (b"[1, 2]", &["object"]),
        (b"{\"input_ids\": \"1 2\"}", &["input_ids"]),
        (b"{\"input_ids\": [1, -2]}", &["input_ids", "-2"]),
        (b"{\"input_ids\": [1, 99999999999]}", &["input_ids", "99999999999"]),
        (b"{\"text\": \"hello\"}", &["input_ids"]),
        (b"{\"prompt\": \"\xff\xfe\", \"output\": \"\"}", &["UTF-8"]),
        (b"{\"prompt\": 3, \"output\": \"\"}", &["prompt"]),
    ] {
        checkpoint.write("traces.jsonl", [good.as_bytes(), b"\n", bad, b"\n"].concat());
        let mut parts = parts.to_vec();
        parts.extend(["traces.jsonl", "line 3"]);
        checkpoint.scan_is_refused(&parts);
    }
}

#[test]
fn traces_that_are_not_a_file() {
    let checkpoint = Checkpoint::planted();
    for traces in [checkpoint.file("nothing.jsonl"), checkpoint.path().to_owned()] {
        let output = checkpoint.scan_traces(&traces).output().unwrap();
        assert_refused(&output, &[traces.to_str().unwrap()]);
        assert!(!checkpoint.run_dir().exists());
    }
}

#[test]
fn text_without_a_tokenizer() {
    let checkpoint = Checkpoint::planted();
    checkpoint.write("traces.jsonl", r#"{"prompt": "What is 2 + 2?", "output": "4"}"#);
    checkpoint.scan_is_refused(&["traces.jsonl", "line 1", "tokenizer.json"]);
}

#[test]
fn a_tokenizer_that_is_none() {
    let (_dir, checkpoint) = with_tokenizer();
    for text in ["", "{}", "[]", "{\"version\": \"1.0\""] {
        checkpoint.write("tokenizer.json", text);
        checkpoint.scan_is_refused(&["tokenizer.json"]);
    }
}

#[test]
fn templates_that_never_end() {
    let (_dir, checkpoint) = with_tokenizer();
    for template in [
        "{% for i in range(10000) %}{% for j in range(10000) %}{% for k in range(10000) %}\
         {% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}\
         {% endfor %}{{ ns.s }}",
    ] {
        checkpoint.write("chat_template.jinja", template);
        checkpoint.scan_is_refused(&["chat_template.jinja"]);
    }
}

#[test]
fn templates_that_are_wrong_or_refuse() {
    let (_dir, checkpoint) = with_tokenizer();
    for (template, part) in [
        ("{% for m in messages %}", "chat template"),
        ("{{ messages[0].no.such }}", "chat template"),
        ("{{ raise_exception('Roles must\nalternate!') }}", "Roles must"),
        ("{% include '/etc/passwd' %}", "chat template"),
    ] {
        checkpoint.write("chat_template.jinja", template);
        checkpoint.scan_is_refused(&["chat_template.jinja", part]);
    }
}

#[test]
fn two_leading_bos() {
    let (_dir, checkpoint) = with_tokenizer();
    checkpoint
        .write("chat_template.jinja", "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}");
    checkpoint.scan_is_refused(&["line 1", "BOS"]);
}

/// A refused scan does not change its output directory.
#[test]
fn an_output_directory_with_something_in_it() {
    let checkpoint = Checkpoint::planted();
    checkpoint.scan_succeeds(&[]);
    let before = contents(&checkpoint.run_dir());
    assert!(!before.is_empty());

    // The same scan, without --resume.
    let output = checkpoint.scan().output().unwrap();
    assert_refused(&output, &["run", "--resume"]);
    // Other options, with --resume.
    let output = checkpoint.scan().args(["--resume", "--threshold", "0.9"]).output().unwrap();
    assert_refused(&output, &["run.json", "threshold"]);
    // Another config, with --resume.
    checkpoint.edit_config(|config| drop(config.insert("comment".to_owned(), "new".into())));
    let output = checkpoint.scan().arg("--resume").output().unwrap();
    assert_refused(&output, &["run.json", "config"]);
    assert_eq!(contents(&checkpoint.run_dir()), before);
}

#[test]
fn an_output_directory_that_is_no_run() {
    let checkpoint = Checkpoint::planted();
    fs::create_dir(checkpoint.run_dir()).unwrap();
    fs::write(checkpoint.run_dir().join("thesis.tex"), "all my work").unwrap();
    let before = contents(&checkpoint.run_dir());
    for resume in [&[][..], &["--resume"]] {
        assert_refused(&checkpoint.scan().args(resume).output().unwrap(), &["run"]);
        assert_eq!(contents(&checkpoint.run_dir()), before);
    }
    fs::remove_dir_all(checkpoint.run_dir()).unwrap();
    fs::write(checkpoint.run_dir(), "a file").unwrap();
    assert_refused(&checkpoint.scan().output().unwrap(), &["run"]);
    assert_eq!(fs::read(checkpoint.run_dir()).unwrap(), b"a file");
}

/// A file size limit simulates a full disk: `write` fails in the same way, without privileges.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full() {
    let checkpoint = Checkpoint::planted();
    let scan = checkpoint.scan();
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"");
    limited.arg(scan.get_program()).args(scan.get_args()).env("RUST_BACKTRACE", "0");
    let output = limited.output().unwrap();
    assert_refused(&output, &["run", "cannot be written"]);
    // The part that was written is valid: the run can be resumed and ends with the same bytes.
    checkpoint.scan_succeeds(&["--resume"]);
    let resumed = contents(&checkpoint.run_dir());
    fs::remove_dir_all(checkpoint.run_dir()).unwrap();
    checkpoint.scan_succeeds(&[]);
    assert_eq!(resumed, contents(&checkpoint.run_dir()));
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_that_is_full_or_closed() {
    let detections = published();
    let table = || {
        let mut table = fathom();
        table.arg("table").arg("--detections").arg(&detections.1).args(["--layers", "48"]);
        table
    };
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = table().stdout(full).output().unwrap();
    assert_refused(&output, &["standard output"]);

    // `fathom table … | true`: the reader closes the pipe.
    let mut child = table().stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

/// A detections file in the published format.
fn published() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("detections.jsonl");
    let layers: Vec<usize> = (4..47).collect();
    let line = format!(
        "{{\"candidate_sinks\": {{\"0\": {{\"layer\": {layers:?}, \"token_id\": 1, \"sink_type\": \
         \"bos_sink\"}}}}, \"sample_index\": 0, \"prompt_len\": 1, \"response_len\": 9, \
         \"full_text_len\": 10}}\n"
    );
    fs::write(&path, line).unwrap();
    (dir, path)
}

#[test]
fn detections_that_are_none() {
    let (dir, path) = published();
    let good = fs::read_to_string(&path).unwrap();
    for (bad, parts) in [
        ("{".to_owned(), &["line 2", "JSON"][..]),
        (good.replace("candidate_sinks", "sinks"), &["line 2", "candidate_sinks"]),
        (good.replace("\"token_id\": 1", "\"token_id\": -1"), &["line 2", "token_id"]),
        (good.replace("bos_sink", "sink of kitchen"), &["line 2", "sink_type"]),
        (good.replace("\"0\"", "\"zero\""), &["line 2", "zero"]),
    ] {
        let bad_path = dir.path().join("bad.jsonl");
        fs::write(&bad_path, format!("{good}{bad}\n")).unwrap();
        let mut table = fathom();
        let output =
            table.args(["table", "--layers", "48", "--detections"]).arg(&bad_path).output();
        let mut parts = parts.to_vec();
        parts.push("bad.jsonl");
        assert_refused(&output.unwrap(), &parts);
    }
    let mut table = fathom();
    let output =
        table.args(["table", "--layers", "10", "--detections"]).arg(&path).output().unwrap();
    assert_refused(&output, &["detections.jsonl", "46", "10"]);
}

#[cfg(unix)]
#[test]
fn files_that_may_not_be_read() {
    for name in ["config.json", "model.safetensors", "traces.jsonl"] {
        let (checkpoint, copies) = (Checkpoint::planted(), tempfile::tempdir().unwrap());
        set_mode(checkpoint.path(), 0o755);
        set_mode(&checkpoint.file(name), 0o000);
        let output = unprivileged(&checkpoint.scan(), copies.path()).output().unwrap();
        assert_refused(&output, &[name, "ermission denied"]);
        assert!(!checkpoint.run_dir().exists());
    }
}

#[cfg(unix)]
#[test]
fn an_output_place_that_may_not_be_written() {
    let (checkpoint, copies) = (Checkpoint::planted(), tempfile::tempdir().unwrap());
    set_mode(checkpoint.path(), 0o555);
    let output = unprivileged(&checkpoint.scan(), copies.path()).output().unwrap();
    set_mode(checkpoint.path(), 0o755);
    assert_refused(&output, &["run", "ermission denied"]);
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The command as a user that file permissions apply to. Root, who may read everything, switches to
/// `nobody` and runs a copy of the binary in `copies`, a new directory.
#[cfg(unix)]
fn unprivileged(command: &Command, copies: &Path) -> Command {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;

    let mut unprivileged = Command::new(command.get_program());
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        set_mode(copies, 0o755);
        let copy = copies.join("fathom");
        // Copied by another process: if this one had the file open for writing while another test
        // thread forks, running it would fail with "text file busy".
        let copied = Command::new("cp").arg(command.get_program()).arg(&copy).status().unwrap();
        assert!(copied.success());
        unprivileged = Command::new(copy);
        unprivileged.uid(65534).gid(65534);
    }
    unprivileged.args(command.get_args());
    unprivileged
}

#[test]
fn arguments_that_make_no_sense() {
    for args in [
        &["scan"][..],
        &["scan", "--model", "m", "--traces", "t", "--out", "o", "--threshold", "2"],
        &["scan", "--model", "m", "--traces", "t", "--out", "o", "--threshold", "nan"],
        &["scan", "--model", "m", "--traces", "t", "--out", "o", "--reference", "x"],
        &["scan", "--model", "m", "--traces", "t", "--out", "o", "--threads", "0"],
        &["scan", "--model", "m", "--traces", "t", "--out", "o", "--max-tokens", "0"],
        &["table"],
        &["table", "run", "--detections", "file"],
        &["capture", "--model", "m", "--sites", "resid_post", "--out", "o"],
        &["capture", "--model", "m", "--ids", "i", "--traces", "t", "--sites", "q", "--out", "o"],
        &["capture", "--model", "m", "--ids", "i", "--sites", "resid_pots", "--out", "o"],
        &[
            "capture", "--model", "m", "--ids", "i", "--sites", "q", "--layers", "3..1", "--out",
            "o",
        ],
        &["no-such-command"],
    ] {
        let output = common::run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.is_empty(), "{args:?}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}
