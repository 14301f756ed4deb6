//! Resolving a model's name to a directory on this disk.

mod advice;
mod cache;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::file_check::exists;
use crate::sanitize::sanitize;
use crate::{Error, Result};

/// The directory of a model: `spec` itself if it is a directory, or the snapshot of `org/name` or
/// `org/name@revision` in the HuggingFace cache. Nothing is downloaded.
///
/// `env` looks up environment variables; pass `|name| std::env::var_os(name)`. The cache is the
/// first of `$HF_HUB_CACHE`, `$HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`,
/// `$XDG_CACHE_HOME/huggingface/hub` and `~/.cache/huggingface/hub` whose variable is set. `~` and
/// variables in the values are expanded, as in `huggingface_hub`.
///
/// # Errors
/// `spec` is neither a directory nor a well-formed hub id; the model or revision is not in the
/// cache; `spec` is a folder of the cache, a URL or something similar to a hub id (the message
/// suggests what to type).
pub fn resolve_model_dir(spec: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let path = Path::new(spec);
    if path.is_dir() {
        return match advice::snapshots(path, cache::dir(&env).as_deref()) {
            None => Ok(path.to_owned()),
            Some(problem) => Err(Error::file(path, problem)),
        };
    }
    if path.is_file() {
        return Err(Error::file(path, "is a file; a model is a directory with a config.json"));
    }
    if path.is_symlink() {
        exists(path)?; // an error: the link is dangling
    }
    let (id, instead) = (HubId::parse(spec), advice::hub_id(spec));
    let Some(id) = id.filter(|_| instead.is_none()) else {
        let instead = instead.map(|id| format!("; give `{id}`")).unwrap_or_default();
        return Err(Error::Request(format!(
            "model `{}` is neither an existing directory nor a hub id (`org/name` or \
             `org/name@revision`){instead}",
            sanitize(spec)
        )));
    };
    let Some(cache) = cache::dir(&env) else {
        return Err(Error::Request(format!(
            "model `{spec}` is not a directory, and there is no HuggingFace cache to look in: none \
             of HF_HUB_CACHE, HF_HOME and HOME is set"
        )));
    };
    id.snapshot(&cache).ok_or_else(|| {
        Error::Request(format!(
            "model `{spec}` is neither a directory nor in the HuggingFace cache {}; download it \
             with `{}`",
            cache.display(),
            id.download_command()
        ))
    })
}

/// `org/name` or a bare `name`, with an optional revision.
struct HubId<'a> {
    repo: &'a str,
    revision: Option<&'a str>,
}

impl HubId<'_> {
    fn parse(spec: &str) -> Option<HubId<'_>> {
        let (repo, revision) = match spec.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (spec, None),
        };
        let mut parts = repo.split('/');
        let well_formed = parts.clone().count() <= 2 && parts.all(is_name);
        // A revision may be a branch such as `refs/pr/3`.
        let revision_fits = revision.is_none_or(|revision| revision.split('/').all(is_name));
        (well_formed && revision_fits).then_some(HubId { repo, revision })
    }

    /// The snapshot directory of this model, if it is in the cache.
    fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let root = cache.join(format!("models--{}", self.repo.replace('/', "--")));
        let revision = self.revision.unwrap_or("main");
        let commit = fs::read_to_string(root.join("refs").join(revision));
        let commit = commit.as_deref().map_or(revision, str::trim);
        let snapshot = root.join("snapshots").join(commit);
        (is_name(commit) && snapshot.is_dir()).then_some(snapshot)
    }

    fn download_command(&self) -> String {
        match self.revision {
            Some(revision) => format!("hf download {} --revision {revision}", self.repo),
            None => format!("hf download {}", self.repo),
        }
    }
}

/// Whether this is one part of a hub id: letters, digits, `-`, `_` and `.`, without `..`.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.') && !part.contains("..")
}
