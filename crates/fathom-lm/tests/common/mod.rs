//! Shared code of the black-box tests: the built binary, checkpoints to corrupt, and the form of
//! errors.

// Each test binary uses only part of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod browser;
pub mod http;
pub mod scripted;
#[cfg(feature = "serve")]
pub mod serving;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};
use tempfile::TempDir;

/// The built binary, without environment variables that affect colours and caches.
pub fn fathom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fathom"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "NO_COLOR", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command
}

/// `tests/fixtures/…` of the repository.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path)
}

pub fn run<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    fathom().args(args).output().unwrap()
}

/// Runs a command that must succeed; returns its standard output.
pub fn succeed<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that bad input was refused: exit code 2, nothing on standard output, and as the last line
/// of standard error one sentence that contains each of `parts`.
#[track_caller]
pub fn assert_refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("fathom: error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert_eq!(stderr.lines().last(), Some(errors[0]), "{stderr}");
    assert!(errors[0].len() < 600, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "`{part}` is not in: {stderr}");
    }
}

/// A copy of a checkpoint that a test may modify.
pub struct Checkpoint {
    dir: TempDir,
}

impl Checkpoint {
    /// A copy of `tests/fixtures/{name}`, without its reference files.
    pub fn copy_of(name: &str) -> Checkpoint {
        Checkpoint::copy_of_dir(&fixture(name))
    }

    pub fn copy_of_dir(from: &Path) -> Checkpoint {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_file() && !name.starts_with("reference") {
                fs::write(dir.path().join(name), fs::read(entry.path()).unwrap()).unwrap();
            }
        }
        Checkpoint { dir }
    }

    /// The planted model of the fixtures, with its `traces.jsonl`.
    pub fn planted() -> Checkpoint {
        Checkpoint::copy_of("planted/basic")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn traces(&self) -> PathBuf {
        self.file("traces.jsonl")
    }

    /// The output directory of scans, which does not exist yet.
    pub fn run_dir(&self) -> PathBuf {
        self.file("run")
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.file(name), bytes).unwrap();
    }

    /// Edits the JSON object in a file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut json: Value = serde_json::from_slice(&fs::read(self.file(name)).unwrap()).unwrap();
        edit(json.as_object_mut().unwrap());
        self.write(name, json.to_string());
    }

    pub fn edit_config(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        self.edit_json("config.json", edit);
    }

    /// Edits the header and the data of a safetensors file.
    pub fn edit_weights(
        &self,
        name: &str,
        edit: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>),
    ) {
        let file = fs::read(self.file(name)).unwrap();
        let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&file[8..8 + header_len]).unwrap();
        let mut data = file[8 + header_len..].to_vec();
        edit(header.as_object_mut().unwrap(), &mut data);
        let header = header.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&data);
        self.write(name, file);
    }

    /// `fathom scan` of this checkpoint and its traces.
    pub fn scan(&self) -> Command {
        self.scan_traces(&self.traces())
    }

    pub fn scan_traces(&self, traces: &Path) -> Command {
        let mut command = fathom();
        command.arg("scan").arg("--model").arg(self.path()).arg("--traces").arg(traces);
        command.arg("--out").arg(self.run_dir()).args(["--threads", "1"]);
        command
    }

    /// Runs a scan that must succeed.
    pub fn scan_succeeds(&self, args: &[&str]) {
        let output = self.scan().args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Checks that a scan is refused and writes nothing.
    #[track_caller]
    pub fn scan_is_refused(&self, parts: &[&str]) {
        let output = self.scan().output().unwrap();
        assert_refused(&output, parts);
        assert!(!self.run_dir().exists(), "a refused scan left a run directory");
    }
}

/// The output of `fathom plant`, with tokenizer and chat template, in a temporary directory.
pub struct Planted {
    dir: TempDir,
}

impl Planted {
    pub fn new() -> Planted {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("planted");
        succeed(&["plant".as_ref(), "--out".as_ref(), out.as_os_str()]);
        Planted { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn model(&self) -> PathBuf {
        self.path("planted")
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// `fathom scan` of the planted model into the directory `run`.
    pub fn scan_command(&self, traces: &Path, run: &str) -> Command {
        let mut command = fathom();
        command.arg("scan").arg("--model").arg(self.model()).arg("--traces").arg(traces);
        command.arg("--out").arg(self.path(run)).args(["--threads", "1"]);
        command
    }

    /// The manifest of a run.
    pub fn manifest(&self, run: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(run).join("run.json")).unwrap()).unwrap()
    }
}

/// Every file under a directory with its bytes.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    files
}
