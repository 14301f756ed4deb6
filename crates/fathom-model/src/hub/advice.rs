//! Suggestions for paths and URLs given in place of a model's name.

use std::fs;
use std::path::Path;

use super::HubId;
use crate::sanitize::sanitize;

/// The error text for a folder of the HuggingFace cache that contains a model's snapshots: the
/// repository's folder (`models--org--name`) or its `snapshots`. `None` for any other directory.
pub(super) fn snapshots(dir: &Path, cache: Option<&Path>) -> Option<String> {
    if dir.join("config.json").symlink_metadata().is_ok() {
        return None;
    }
    let dir = fs::canonicalize(dir).ok()?;
    let root = match dir.file_name()?.to_str()? {
        "snapshots" => dir.parent()?,
        _ if dir.join("snapshots").is_dir() => &dir,
        _ => return None,
    };
    let repo = root.file_name().and_then(|name| repo_of_folder(name.to_str()?));
    // A folder called `snapshots` outside the cache is not necessarily a repository's.
    if repo.is_none() && !root.join("refs").is_dir() && !root.join("blobs").is_dir() {
        return None;
    }
    let mut commits: Vec<String> = fs::read_dir(root.join("snapshots"))
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    commits.sort_unstable();
    let main = fs::read_to_string(root.join("refs/main")).unwrap_or_default();
    let main = commits.iter().find(|commit| *commit == main.trim());
    let in_cache = cache.and_then(|cache| fs::canonicalize(cache).ok());
    let in_cache = root.parent().is_some_and(|parent| in_cache.as_deref() == Some(parent));
    let instead = match (main.or(commits.first()), repo) {
        (None, Some(repo)) => format!("holds none; download it with `hf download {repo}`"),
        (None, None) => "holds none".to_owned(),
        (Some(_), Some(repo)) if in_cache && main.is_some() => format!("give `{repo}`"),
        (Some(commit), _) => {
            let snapshot = root.join("snapshots").join(commit);
            format!("give `{}`", sanitize(&snapshot.to_string_lossy()))
        }
    };
    Some(format!("is a folder of the HuggingFace cache that holds a model's snapshots; {instead}"))
}

/// The hub id that a malformed name probably means: a URL, a path with a trailing slash, or a
/// folder's name in the cache.
pub(super) fn hub_id(spec: &str) -> Option<String> {
    let folder = spec.rsplit('/').next().unwrap_or(spec);
    let id = match repo_of_folder(folder) {
        Some(repo) => repo,
        None => of_url(spec).or_else(|| spec.strip_suffix('/').map(str::to_owned))?,
    };
    let parsed = HubId::parse(&id)?;
    parsed.repo.contains('/').then_some(id)
}

/// `org/name` of `models--org--name`.
fn repo_of_folder(folder: &str) -> Option<String> {
    let repo = folder.strip_prefix("models--")?.replacen("--", "/", 1);
    HubId::parse(&repo).filter(|id| id.revision.is_none()).map(|id| id.repo.to_owned())
}

/// `org/name` of a page of the hub, or `org/name@revision` if the URL has a revision:
/// `https://host/org/name`, `host.co/org/name/tree/revision`, `hf://org/name`.
fn of_url(spec: &str) -> Option<String> {
    let path = match spec.split_once("://") {
        Some(("hf", path)) => path,
        Some((_, rest)) => rest.split_once('/')?.1,
        None => spec.split_once('/').filter(|(host, _)| host.ends_with(".co"))?.1,
    };
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    parts.next_if(|part| *part == "models");
    let (org, name) = (parts.next()?, parts.next()?);
    let name = name.strip_suffix(".git").unwrap_or(name);
    match (parts.next(), parts.next()) {
        (Some("tree" | "blob" | "resolve" | "commit"), Some(revision)) if revision != "main" => {
            Some(format!("{org}/{name}@{revision}"))
        }
        _ => Some(format!("{org}/{name}")),
    }
}
