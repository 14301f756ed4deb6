//! Remarks: what a user should know about input that was used nevertheless.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Different sentences of one kind that [`Remarks`] keeps; beyond, they are only counted.
const MAX_TEXTS: usize = 8;

/// One thing that was ignored, repaired or is doubtful, in one sentence.
///
/// Displayed, it names the file and, for a line of a JSONL file, the first line it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Which kind of remark, for programs: lower case with hyphens, such as `unused-tensors`.
    pub kind: Cow<'static, str>,
    /// What it is about; `--strict` refuses remarks about input.
    pub about: About,
    /// The file, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<PathBuf>,
    /// 1-based line of a JSONL file; the first one, where it is about several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<usize>,
    /// What was found, and what was done about it; one line.
    pub text: String,
    /// Lines of the file it is about; 1 for a remark about a whole file.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub count: usize,
}

/// What a remark is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// A file that was used otherwise than it says, or that may not be what the user thinks.
    Input,
    /// A setting that the user may want to change.
    Advice,
}

impl Remark {
    /// About a file as a whole.
    pub fn file(kind: &'static str, path: &Path, text: impl Into<String>) -> Remark {
        Remark { file: Some(path.to_owned()), ..Remark::input(kind, text) }
    }

    /// About a line of a JSONL file; `line` counts from 1.
    pub fn line(kind: &'static str, path: &Path, line: usize, text: impl Into<String>) -> Remark {
        Remark { line: Some(line), ..Remark::file(kind, path, text) }
    }

    /// About a setting.
    pub fn advice(kind: &'static str, text: impl Into<String>) -> Remark {
        Remark::new(kind, About::Advice, text)
    }

    /// About a text that is not yet known to be a line of a file.
    pub fn input(kind: &'static str, text: impl Into<String>) -> Remark {
        Remark::new(kind, About::Input, text)
    }

    fn new(kind: &'static str, about: About, text: impl Into<String>) -> Remark {
        let (kind, text) = (Cow::Borrowed(kind), text.into());
        Remark { kind, about, file: None, line: None, text, count: 1 }
    }
}

/// Refuses remarks about input, for those who said that they want none (`because`: `--strict`).
///
/// # Errors
/// There is one; the sentence is the first's.
pub fn refuse_remarks(remarks: &[Remark], because: &str) -> Result<()> {
    match remarks.iter().find(|remark| remark.about == About::Input) {
        None => Ok(()),
        Some(first) => Err(Error::Request(format!("{first} (refused because of {because})"))),
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.text)?;
        match self.count {
            0 | 1 => Ok(()),
            2 => f.write_str(" (the same on 1 more line)"),
            count => write!(f, " (the same on {} more lines)", count - 1),
        }
    }
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// The remarks of one run: each kind once per file, however many lines it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    remark: Remark,
    /// The last line counted, so that a line counts once.
    last_line: Option<usize>,
}

impl Remarks {
    /// None yet.
    pub fn new() -> Remarks {
        Remarks::default()
    }

    /// Adds a remark. One about a further line of a file is counted with the first of its kind; one
    /// that has been made before is not made again.
    pub fn add(&mut self, remark: Remark) {
        let line = remark.line;
        let mut of_kind = 0;
        for Entry { remark: other, last_line } in &mut self.0 {
            if other.kind != remark.kind || other.file != remark.file {
                continue;
            }
            of_kind += 1;
            if line.is_some() && other.line.is_some() {
                other.count += usize::from(*last_line != line);
                *last_line = line;
                return;
            }
            if other.text == remark.text {
                return;
            }
        }
        if of_kind < MAX_TEXTS {
            self.0.push(Entry { remark, last_line: line });
        }
    }

    /// Adds several.
    pub fn extend(&mut self, remarks: impl IntoIterator<Item = Remark>) {
        remarks.into_iter().for_each(|remark| self.add(remark));
    }

    /// All of them, in the order in which they were first made.
    pub fn iter(&self) -> impl Iterator<Item = &Remark> {
        self.0.iter().map(|entry| &entry.remark)
    }

    /// All of them, in the order in which they were first made.
    pub fn into_vec(self) -> Vec<Remark> {
        self.0.into_iter().map(|entry| entry.remark).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_files_told_once() {
        let mut remarks = Remarks::new();
        let path = Path::new("t.jsonl");
        for line in [3, 5, 9] {
            remarks.add(Remark::line("padding", path, line, format!("{line} pads were dropped")));
        }
        remarks.add(Remark::line("padding", path, 9, "once more about line 9"));
        for _ in 0..2 {
            remarks.add(Remark::file("unused-tensors", Path::new("m"), "holds 2 more tensors"));
        }
        remarks.add(Remark::advice("sampling", "greedy is used"));
        let shown: Vec<String> = remarks.iter().map(Remark::to_string).collect();
        assert_eq!(
            shown,
            [
                "t.jsonl: line 3: 3 pads were dropped (the same on 2 more lines)",
                "m: holds 2 more tensors",
                "greedy is used"
            ]
        );
    }

    #[test]
    fn one_remark_comes_back_from_json_without_what_says_nothing() {
        let remark = Remark::advice("sampling", "greedy is used");
        let json = serde_json::to_string(&remark).unwrap();
        assert_eq!(json, r#"{"kind":"sampling","about":"advice","text":"greedy is used"}"#);
        assert_eq!(serde_json::from_str::<Remark>(&json).unwrap(), remark);
    }

    #[test]
    fn many_sentences_of_one_kind_stay_few() {
        let mut remarks = Remarks::new();
        for i in 0..1000 {
            remarks.add(Remark::file("unread-key", Path::new("config.json"), format!("key {i}")));
        }
        assert_eq!(remarks.into_vec().len(), MAX_TEXTS);
    }
}
