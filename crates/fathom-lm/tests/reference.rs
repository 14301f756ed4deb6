//! The command line reference, man pages and shell completions, which the binary writes itself.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{assert_refused, run, succeed};
use serde_json::Value;

/// The commands that users see, from the reference.
fn commands() -> Vec<String> {
    let reference = succeed(&["reference"]);
    let headings = reference.lines().filter_map(|line| line.strip_prefix("## fathom "));
    headings.map(str::to_owned).collect()
}

#[test]
fn docs_cli_md_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == succeed(&["reference"]),
        "docs/cli.md is not current; regenerate it with\n\n    \
         cargo run -p fathom-lm -- reference > docs/cli.md\n"
    );
}

#[test]
fn the_reference_has_every_option_that_help_shows() {
    let reference = succeed(&["reference"]);
    assert!(commands().len() >= 14, "{:?}", commands());
    for command in commands() {
        let heading = format!("\n## fathom {command}\n");
        let section = reference.split(&heading).nth(1).unwrap().split("\n## ").next().unwrap();
        let shared = reference.split("\n## Options of every command\n").nth(1).unwrap();
        let help = succeed(&[&command, "--help"]);
        let mut checked = 0;
        for line in help.lines() {
            // Options are indented by 2 or 6 columns, descriptions by 10, notes by none.
            let is_option = line.starts_with("  -") || line.starts_with("      --");
            let option = line.split_whitespace().find(|word| is_option && word.starts_with("--"));
            let Some(option) = option else { continue };
            let documented = |text: &str| {
                text.contains(&format!("`{option}`")) || text.contains(&format!("`{option} "))
            };
            assert!(documented(section) || documented(shared), "{command}: {option}");
            checked += 1;
        }
        assert!(checked >= 4, "{command}: {help}");
        assert!(help.contains("Example") == section.contains("```sh"), "{command}");
    }
    // Tables: every row has two columns.
    for row in reference.lines().filter(|line| line.starts_with('|')) {
        assert_eq!(row.replace("\\|", "").matches('|').count(), 3, "{row}");
    }
}

#[test]
fn completions_name_every_command_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&["completions", shell]);
        for name in commands().iter().map(String::as_str).chain(["all-heads"]) {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
    let json: Value = serde_json::from_str(&succeed(&["completions", "fish", "--json"])).unwrap();
    assert_eq!(json["shell"], "fish");
    assert_eq!(json["script"].as_str().unwrap(), succeed(&["completions", "fish"]));

    let refused = run(&["completions", "tcsh"]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    assert!(refused.stdout.is_empty() && stderr.contains("bash"), "{stderr}");
}

#[test]
fn there_is_a_man_page_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("share/man1");
    let printed = succeed(&["man".as_ref(), "--out".as_ref(), out.as_os_str()]);
    let mut expected = vec!["fathom.1".to_owned()];
    expected.extend(commands().iter().map(|command| format!("fathom-{command}.1")));
    let names: Vec<String> = printed
        .lines()
        .map(|line| Path::new(line).file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, expected);
    for name in &names {
        let page = fs::read_to_string(out.join(name)).unwrap();
        assert!(page.contains(".TH fathom") && page.contains(".SH NAME"), "{name}: {page}");
    }
    let page = fs::read_to_string(out.join("fathom.1")).unwrap();
    assert_eq!(page, succeed(&["man"]));
    // Pages of an older version are replaced.
    fs::write(out.join("fathom.1"), "old").unwrap();
    let json = succeed(&["man".as_ref(), "--json".as_ref(), "--out".as_ref(), out.as_os_str()]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), expected.len());
    assert_eq!(fs::read_to_string(out.join("fathom.1")).unwrap(), page);

    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let refused = run(&["man".as_ref(), "--out".as_ref(), file.as_os_str()]);
    assert_refused(&refused, &["file", "cannot be created"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}
