//! The files, links, commands and options named in the documents exist.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::succeed;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Expands `a/{b,c}.rs` to `a/b.rs` and `a/c.rs`.
fn expand(path: &str) -> Vec<String> {
    match (path.find('{'), path.find('}')) {
        (Some(open), Some(close)) => path[open + 1..close]
            .split(',')
            .map(|part| format!("{}{part}{}", &path[..open], &path[close + 1..]))
            .collect(),
        _ => vec![path.to_owned()],
    }
}

#[test]
fn every_path_the_documents_name_is_there() {
    let mut checked = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        for quoted in read(document).split('`').skip(1).step_by(2) {
            if ["crates/", "tests/", "fuzz/"].iter().any(|start| quoted.starts_with(start)) {
                for path in expand(quoted) {
                    assert!(root().join(&path).exists(), "{document} names {path}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 20, "{checked}");
}

#[test]
fn every_link_leads_somewhere() {
    for document in ["README.md", "GUIDE.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
    {
        for target in read(document).split("](").skip(1) {
            let target = target.split([')', '#']).next().unwrap();
            let elsewhere = target.is_empty() || target.starts_with("http");
            assert!(elsewhere || root().join(target).exists(), "{document} links to {target}");
        }
    }
}

#[test]
fn every_command_the_documents_show_is_understood() {
    let mut checked = 0;
    for document in ["README.md", "GUIDE.md"] {
        // A backslash at the end continues a line; `a && b` are two commands.
        let text = read(document).replace("\\\n", " ").replace("&&", "\n");
        for line in text.lines() {
            let line = line.trim().trim_start_matches("$ ");
            let Some(command) = line.strip_prefix("fathom ") else { continue };
            let words: Vec<&str> = command.split_whitespace().collect();
            let help = succeed(&[words[0], "--help"]);
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                    "{document}: `fathom {command}`: there is no {option}"
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "{checked}");
}
