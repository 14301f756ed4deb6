//! Resolves a path to data files: the file itself, those of a directory, or those that match a
//! pattern.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::STDIN;
use crate::sanitize::sanitize;
use crate::{Error, Result};

/// Maximum number of files of one data set.
const MAX_FILES: usize = 100_000;

/// File name endings of data files, and their kinds.
const KINDS: [(&str, &str); 8] = [
    (".jsonl", "JSONL"),
    (".jsonl.gz", "JSONL"),
    (".jsonl.zst", "JSONL"),
    (".ndjson", "JSONL"),
    (".json", "JSON"),
    (".json.gz", "JSON"),
    (".json.zst", "JSON"),
    (".parquet", "Parquet"),
];

/// The files of a data set, in the order of their names.
pub(super) fn of(path: &Path) -> Result<Vec<PathBuf>> {
    if path.as_os_str() == STDIN || !path.is_dir() {
        return match path.to_str().filter(|pattern| is_pattern(pattern) && !path.exists()) {
            Some(pattern) => matching(path, pattern),
            None => Ok(vec![path.to_owned()]),
        };
    }
    let entries = std::fs::read_dir(path).map_err(Error::io(path, "cannot be read"))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::io(path, "cannot be read"))?.path();
        files.extend(kind(&file).map(|kind| (file, kind)));
        check_count(path, files.len())?;
    }
    let kinds: BTreeSet<&str> = files.iter().map(|(_, kind)| *kind).collect();
    match kinds.len() {
        0 => Err(Error::file(path, "is a directory without .jsonl, .json or .parquet files")),
        1 => {
            let mut files: Vec<PathBuf> = files.into_iter().map(|(file, _)| file).collect();
            files.sort();
            Ok(files)
        }
        _ => {
            let kinds = kinds.into_iter().collect::<Vec<_>>().join(" and ");
            let problem = format!(
                "is a directory with {kinds} files; name the file, or a pattern such as \
                 `DIR/*.parquet`"
            );
            Err(Error::file(path, problem))
        }
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn matching(path: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).map_err(|error| {
        Error::file(path, format!("is not a valid pattern: {}", sanitize(&error.to_string())))
    })?;
    let mut files = Vec::new();
    for file in paths.flatten().filter(|file| file.is_file()) {
        files.push(file);
        check_count(path, files.len())?;
    }
    match files.is_empty() {
        true => Err(Error::file(path, "is a pattern that matches no files")),
        false => Ok(files),
    }
}

fn kind(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_str()?.to_ascii_lowercase();
    KINDS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, kind)| *kind)
}

fn check_count(path: &Path, files: usize) -> Result<()> {
    match files > MAX_FILES {
        true => Err(Error::file(path, format!("names more than {MAX_FILES} files"))),
        false => Ok(()),
    }
}
