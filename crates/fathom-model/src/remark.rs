//! Remarks: warnings about input that was accepted.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Maximum number of different remarks of one kind about one file; [`Remarks`] drops further ones.
const MAX_TEXTS: usize = 8;

/// One sentence about something that was ignored, repaired or looks wrong.
///
/// Displayed, it names the file and, for a JSONL file, the first line it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Machine-readable kind: lower case with hyphens, such as `unused-tensors`.
    pub kind: Cow<'static, str>,
    /// What it is about; `--strict` refuses remarks about input.
    pub about: About,
    /// The file, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<PathBuf>,
    /// 1-based line of a JSONL file; the first one if it is about several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<usize>,
    /// What was found and how it was handled; one line.
    pub text: String,
    /// Number of lines it is about; 1 for a remark about a whole file.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub count: usize,
}

/// What a remark is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// Input that was interpreted differently from what it states, or that may be a mistake.
    Input,
    /// A setting that the user may want to change.
    Advice,
}

impl Remark {
    /// Kind of the remark about a text that an edited model wrote.
    pub const SUPPRESSED_TEXT: &str = "suppressed-text";

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

    /// About input whose file and line are not known yet.
    pub fn input(kind: &'static str, text: impl Into<String>) -> Remark {
        Remark::new(kind, About::Input, text)
    }

    fn new(kind: &'static str, about: About, text: impl Into<String>) -> Remark {
        let (kind, text) = (Cow::Borrowed(kind), text.into());
        Remark { kind, about, file: None, line: None, text, count: 1 }
    }
}

/// Turns a remark about input into an error, for callers that accept none. `because` names the
/// reason, such as `--strict`.
///
/// # Errors
/// There is a remark about input. The message contains the first one.
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

/// The remarks of one run. Remarks of one kind about several lines of a file are merged into one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks(Vec<CountedRemark>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct CountedRemark {
    remark: Remark,
    /// The last line counted, so that each line is counted once.
    last_line: Option<usize>,
}

impl Remarks {
    /// An empty collection.
    pub fn new() -> Remarks {
        Remarks::default()
    }

    /// Adds a remark. If there is one of the same kind about another line of the same file, only
    /// the count of that one increases. Duplicates are dropped.
    pub fn add(&mut self, remark: Remark) {
        let line = remark.line;
        let mut of_kind = 0;
        for CountedRemark { remark: other, last_line } in &mut self.0 {
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
            self.0.push(CountedRemark { remark, last_line: line });
        }
    }

    /// Adds several.
    pub fn extend(&mut self, remarks: impl IntoIterator<Item = Remark>) {
        remarks.into_iter().for_each(|remark| self.add(remark));
    }

    /// All remarks, in the order in which they were first added.
    pub fn iter(&self) -> impl Iterator<Item = &Remark> {
        self.0.iter().map(|entry| &entry.remark)
    }

    /// All remarks, in the order in which they were first added.
    pub fn into_vec(self) -> Vec<Remark> {
        self.0.into_iter().map(|entry| entry.remark).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_files_reported_once() {
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
    fn a_remark_round_trips_through_json_without_empty_fields() {
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
