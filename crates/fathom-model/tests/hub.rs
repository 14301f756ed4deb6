//! Resolving names of models to directories.

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
fn a_directory_is_returned_unchanged() {
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
    // The more specific variable wins, and an empty one counts as unset.
    let elsewhere = tempfile::tempdir().unwrap();
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", elsewhere.path()), ("HOME", home.path())];
    assert!(resolve("org/name.v1", vars).is_err());
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", Path::new("")), ("HOME", home.path())];
    assert_eq!(resolve("org/name.v1", vars).unwrap(), "0123abc");
}

#[test]
fn the_error_for_a_missing_model_names_the_download_command() {
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

/// `HF_HUB_CACHE`, then its older name, then `HF_HOME`; `~` and variables inside them are expanded
/// as in `huggingface_hub`.
#[test]
fn variables_of_the_cache_are_expanded_in_their_order() {
    let home = tempfile::tempdir().unwrap();
    let hub = home.path().join("x/hub");
    fs::create_dir_all(hub.parent().unwrap()).unwrap();
    fs::rename(cache().keep(), &hub).unwrap();
    let with = |name: &str, value: &str| {
        let vars = [(name, Path::new(value)), ("HOME", home.path()), ("PART", Path::new("x"))];
        resolve("org/name.v1", &vars)
    };
    let found = Ok("0123abc".to_owned());
    assert_eq!(with("HUGGINGFACE_HUB_CACHE", hub.to_str().unwrap()), found);
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        for value in ["~/x/hub", "$HOME/x/hub", "${HOME}/x/hub", "~/$PART/hub", "$HOME/${PART}/hub"]
        {
            assert_eq!(with(name, value), found, "{name}={value}");
        }
    }
    assert_eq!(with("HF_HOME", "~/x"), found);
    assert_eq!(with("HF_HOME", "$HOME/$PART"), found);
    // Unset variables, another user's home and an unclosed brace stay unchanged.
    for value in ["$NONE/x", "~other/x", "${HOME/x", "$", "${}", "x~/hub"] {
        let message = with("HF_HUB_CACHE", value).unwrap_err();
        assert!(message.contains(&format!("cache {value};")), "{message}");
    }
    let elsewhere = Path::new("/nowhere");
    let order = [("HF_HUB_CACHE", &*hub), ("HUGGINGFACE_HUB_CACHE", elsewhere)];
    assert_eq!(resolve("org/name.v1", &order), found);
    let order = [("HUGGINGFACE_HUB_CACHE", &*hub), ("HF_HOME", elsewhere)];
    assert_eq!(resolve("org/name.v1", &order), found);
}

/// A repository's folder in the cache is not the checkpoint: the error names the right one.
#[test]
fn the_error_for_a_folder_of_the_cache_suggests_what_to_type() {
    let cache = cache();
    let root = cache.path().join("models--org--name.v1");
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", cache.path())];
    for path in [root.clone(), root.join("snapshots"), root.join("snapshots/.")] {
        let message = resolve(path.to_str().unwrap(), vars).unwrap_err();
        assert!(message.ends_with("holds a model's snapshots; give `org/name.v1`"), "{message}");
        // For a cache that is not the current one, the snapshot itself.
        let message = resolve(path.to_str().unwrap(), &[]).unwrap_err();
        let snapshot = fs::canonicalize(root.join("snapshots/0123abc")).unwrap();
        assert!(message.ends_with(&format!("give `{}`", snapshot.display())), "{message}");
    }
    let snapshot = root.join("snapshots/4567def");
    assert_eq!(resolve(snapshot.to_str().unwrap(), vars).unwrap(), "4567def");
    fs::write(root.join("config.json"), "{}").unwrap();
    assert_eq!(resolve(root.to_str().unwrap(), vars).unwrap(), "models--org--name.v1");

    let empty = cache.path().join("models--org--other");
    fs::create_dir_all(empty.join("snapshots")).unwrap();
    let message = resolve(empty.to_str().unwrap(), vars).unwrap_err();
    assert!(message.ends_with("holds none; download it with `hf download org/other`"), "{message}");
}

#[test]
fn the_error_for_a_malformed_hub_id_suggests_what_to_type() {
    let cache = cache();
    let vars: &[(&str, &Path)] = &[("HF_HUB_CACHE", cache.path())];
    for (spec, instead) in [
        ("https://hub.example/org/name", "org/name"),
        ("https://hub.example/org/name/", "org/name"),
        ("https://hub.example/org/name?not-for-all-audiences=true", "org/name"),
        ("https://hub.example/org/name/tree/main", "org/name"),
        ("https://hub.example/org/name/blob/main/config.json", "org/name"),
        ("https://hub.example/org/name/tree/v1.0", "org/name@v1.0"),
        ("https://hub.example/org/name.git", "org/name"),
        ("hub.co/org/name", "org/name"),
        ("hf://org/name", "org/name"),
        ("hf://models/org/name", "org/name"),
        ("org/name/", "org/name"),
        ("models--org--name", "org/name"),
        ("hub/models--org--name--with--more", "org/name--with--more"),
    ] {
        let message = resolve(spec, vars).unwrap_err();
        assert!(message.contains("neither an existing directory nor a hub id"), "{message}");
        assert!(message.ends_with(&format!("; give `{instead}`")), "{spec}: {message}");
    }
    for spec in ["https://hub.example/org", "https://", "hf://", "a/b/c", "org/", "https://h/../x"]
    {
        let message = resolve(spec, vars).unwrap_err();
        assert!(message.ends_with("`org/name@revision`)"), "{spec}: {message}");
    }
}

#[cfg(unix)]
#[test]
fn a_dangling_link_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("model");
    std::os::unix::fs::symlink("gone", &link).unwrap();
    let message = resolve(link.to_str().unwrap(), &[]).unwrap_err();
    assert!(message.contains("model: is a link to gone, which does not exist"), "{message}");
}
