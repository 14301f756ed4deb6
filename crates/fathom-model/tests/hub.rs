//! Finding models on this disk.

#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use fathom_model::resolve_model_dir;

/// A cache directory in HuggingFace's layout with one model in two revisions.
fn cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let root = cache.path().join("models--org--name.v1");
    for commit in ["0123abc", "4567def"] {
        fs::create_dir_all(root.join("snapshots").join(commit)).unwrap();
    }
    fs::create_dir_all(root.join("refs/refs/pr")).unwrap();
    fs::write(root.join("refs/main"), "0123abc\n").unwrap();
    fs::write(root.join("refs/refs/pr/3"), "4567def").unwrap();
    fs::create_dir_all(cache.path().join("secret")).unwrap();
    cache
}

fn resolve(spec: &str, vars: &[(&str, &Path)]) -> Result<String, String> {
    let env = |name: &str| {
        let (_, value) = vars.iter().find(|(var, _)| *var == name)?;
        Some(OsString::from(value))
    };
    resolve_model_dir(spec, env)
        .map(|dir| dir.file_name().unwrap().to_str().unwrap().to_owned())
        .map_err(|error| error.to_string())
}

#[test]
fn a_directory_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().to_str().unwrap();
    assert_eq!(resolve_model_dir(spec, |_| None).unwrap(), dir.path());
    let file = dir.path().join("model.safetensors");
    fs::write(&file, "").unwrap();
    assert!(resolve(file.to_str().unwrap(), &[]).unwrap_err().contains("is a file"));
}

#[test]
fn revisions() {
    let cache = cache();
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", cache.path())];
    assert_eq!(resolve("org/name.v1", vars).unwrap(), "0123abc");
    assert_eq!(resolve("org/name.v1@main", vars).unwrap(), "0123abc");
    assert_eq!(resolve("org/name.v1@refs/pr/3", vars).unwrap(), "4567def");
    assert_eq!(
        resolve("org/name.v1@4567def", vars).unwrap(),
        "4567def",
        "a commit is its own name"
    );
}

#[test]
fn the_cache_is_where_hugging_face_puts_it() {
    let home = tempfile::tempdir().unwrap();
    let hub = home.path().join(".cache/huggingface/hub");
    fs::create_dir_all(hub.parent().unwrap()).unwrap();
    fs::rename(cache().keep(), &hub).unwrap();
    assert_eq!(resolve("org/name.v1", &[("HOME", home.path())]).unwrap(), "0123abc");
    let hf_home = home.path().join(".cache/huggingface");
    assert_eq!(resolve("org/name.v1", &[("HF_HOME", &hf_home)]).unwrap(), "0123abc");
    let xdg = home.path().join(".cache");
    assert_eq!(resolve("org/name.v1", &[("XDG_CACHE_HOME", &xdg)]).unwrap(), "0123abc");
    // The more particular variable wins, and an empty one counts as not set.
    let elsewhere = tempfile::tempdir().unwrap();
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", elsewhere.path()), ("HOME", home.path())];
    assert!(resolve("org/name.v1", vars).is_err());
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", Path::new("")), ("HOME", home.path())];
    assert_eq!(resolve("org/name.v1", vars).unwrap(), "0123abc");
}

#[test]
fn a_model_that_is_not_there_says_how_to_get_it() {
    let cache = cache();
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", cache.path())];
    let message = resolve("org/other", vars).unwrap_err();
    assert!(message.contains("`hf download org/other`"), "{message}");
    assert!(message.contains(cache.path().to_str().unwrap()), "{message}");
    let message = resolve("org/name.v1@dev", vars).unwrap_err();
    assert!(message.contains("`hf download org/name.v1 --revision dev`"), "{message}");
    assert!(resolve("org/other", &[]).unwrap_err().contains("no HuggingFace cache"));
}

#[test]
fn names_cannot_leave_the_cache() {
    let cache = cache();
    let refs = cache.path().join("models--org--name.v1/refs");
    fs::write(refs.join("up"), "../../secret").unwrap();
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", cache.path())];
    for spec in [
        "",
        "../secret",
        "org/..",
        "org/../secret",
        "a/b/c",
        "/etc/nothing",
        "org/",
        "/name",
        "org/name@",
        "org/name@../x",
        "org/name@/x",
        "org/na me",
        "org\\name",
        "org/name\0",
        "~/x",
        "@main",
    ] {
        let message = resolve(spec, vars).unwrap_err();
        assert!(
            message.contains("neither an existing directory nor a hub id"),
            "{spec}: {message}"
        );
    }
    assert!(resolve("org/name.v1@up", vars).is_err(), "what a ref holds is checked too");
}
