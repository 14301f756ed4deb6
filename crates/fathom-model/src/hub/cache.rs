//! The location of the HuggingFace cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The cache directory that `huggingface_hub` uses with these environment variables.
pub(super) fn dir(env: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty());
    let expanded = |name| set(name).map(|value| expand(value, env));
    expanded("HF_HUB_CACHE")
        .or_else(|| expanded("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| expanded("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| expanded("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/huggingface/hub")))
}

/// Python's `os.path.expandvars(os.path.expanduser(value))`: a leading `~` is the home directory,
/// `$NAME` and `${NAME}` are variables. Unset variables, another user's home (`~name`) and values
/// that are not UTF-8 stay unchanged.
fn expand(value: OsString, env: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = value.to_str() else { return value.into() };
    let variable = |name: &str| env(name).and_then(|value| value.into_string().ok());
    let mut expanded = String::new();
    let mut rest = text;
    if let Some(below) =
        text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'))
        && let Some(home) = variable("HOME")
    {
        expanded.push_str(home.trim_end_matches('/'));
        rest = below;
    }
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, behind) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').unwrap_or_default(),
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                after.split_at(end.unwrap_or(after.len()))
            }
        };
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => {
                expanded.push_str(&value);
                rest = behind;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    expanded.into()
}
