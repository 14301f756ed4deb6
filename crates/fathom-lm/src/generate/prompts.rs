//! Prompts as token ids, each known to fit.

use std::path::Path;

use fathom_decode::generation::Task;
use fathom_kernels::Cpu;
use fathom_model::{
    Encoded, Error, Prompt, PromptContent, Remark, Remarks, Result, RowFields, read_prompts_with,
};

use super::{GenerateOptions, Pair};
use crate::Input;

/// Which prompts of a data set are taken.
#[derive(Clone, Debug, Default)]
pub struct PromptFile {
    /// Where in a row the prompt is; otherwise in the fields of published data sets.
    pub fields: RowFields,
    /// Take so many.
    pub limit: Option<usize>,
}

/// Prompts as token ids, each known to fit the target.
#[derive(Clone, Debug, Default)]
pub struct Prompts {
    prompts: Vec<(PromptContent, Vec<u32>)>,
    remarks: Vec<Remark>,
}

impl Prompts {
    /// Prompts in memory.
    ///
    /// # Errors
    /// One that is empty, cannot become ids, or leaves no room for an answer.
    pub fn new<I: Into<Input>>(
        prompts: impl IntoIterator<Item = I>,
        pair: &Pair,
        options: &GenerateOptions,
    ) -> Result<Prompts> {
        let room = Room::of(pair, options);
        let mut remarks = Remarks::new();
        let prompts = prompts.into_iter().enumerate().map(|(index, input)| {
            let refuse = |problem: String| Error::Request(format!("prompt {index} {problem}"));
            let (content, encoded) = encode(input.into(), pair)?;
            remarks.extend(encoded.remarks);
            match room.problem(&encoded.ids) {
                Some(problem) => Err(refuse(problem)),
                None => Ok((content, encoded.ids)),
            }
        });
        let prompts = prompts.collect::<Result<_>>()?;
        Ok(Prompts { prompts, remarks: remarks.into_vec() })
    }

    /// Those of a data set, or of a file named `*.txt`, a line each.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, PromptFile, Prompts};
    /// # let models = fathom_lm::demo::trained_pair(dir.path())?;
    /// # let target = ModelOptions::new(models.target.display().to_string());
    /// # let pair = Pair::open(target, None)?;
    /// let file = dir.path().join("prompts.jsonl");
    /// let rows = ["{\"question\": \"a\"}", "{\"prompt\": \"b\"}", "{\"prompt\": \"c\"}"];
    /// std::fs::write(&file, rows.join("\n")).unwrap();
    /// let first_two = PromptFile { limit: Some(2), ..PromptFile::default() };
    /// let prompts = Prompts::read(&file, &first_two, &pair, &GenerateOptions::default())?;
    /// assert_eq!(prompts.tasks(3).len(), 6);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// A file that cannot be read or holds no prompts; a line that is none, or leaves no room for
    /// an answer.
    pub fn read(
        path: &Path,
        file: &PromptFile,
        pair: &Pair,
        options: &GenerateOptions,
    ) -> Result<Prompts> {
        let (encoder, room) = (pair.encoder(), Room::of(pair, options));
        let mut remarks = Remarks::new();
        let limit = file.limit.unwrap_or(usize::MAX);
        let read = read_prompts_with(path, &file.fields, &mut remarks)?;
        let mut prompts = Vec::new();
        for mut prompt in read.into_iter().take(limit) {
            prompt.content = pair.target().text().with_system(prompt.content);
            let Encoded { ids, remarks: more, .. } = prompt.encode(&encoder)?;
            remarks.extend(more);
            if let Some(problem) = room.problem(&ids) {
                return Err(Error::line(path, prompt.line, format!("the prompt {problem}")));
            }
            let Prompt { content, .. } = prompt;
            prompts.push((content, ids));
        }
        Ok(Prompts { prompts, remarks: remarks.into_vec() })
    }

    /// What was remarkable about them.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// Tokens of the longest.
    pub fn longest(&self) -> usize {
        self.prompts.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0)
    }

    /// `samples` texts of each, to be generated.
    pub fn tasks(self, samples: usize) -> Vec<Task> {
        Task::list(self.prompts, samples)
    }
}

/// What is asked, as a generated trace tells it, and its ids.
fn encode(input: Input, pair: &Pair) -> Result<(PromptContent, Encoded)> {
    let text = pair.target().text();
    let content = match &input {
        Input::Prompt(PromptContent::Text(text)) if text.is_empty() => {
            return Err(Error::Request("a prompt is empty; expected a text".to_owned()));
        }
        Input::Prompt(content) => text.with_system(content.clone()),
        Input::Bare(text) => PromptContent::Text(text.clone()),
        Input::Ids(ids) => PromptContent::Text(text.decode(ids)?),
    };
    Ok((content, pair.encode(input)?))
}

/// How long a prompt may be.
struct Room {
    longest: usize,
    limit: &'static str,
}

impl Room {
    fn of(pair: &Pair, options: &GenerateOptions) -> Room {
        let pages = pair.engine_options(options).kv_pages;
        let longest = pair.context().min(pages.saturating_mul(Cpu::KV_PAGE));
        let limit = match longest < pair.context() {
            true => "what --kv-pages allows",
            false => "the target's context",
        };
        Room { longest, limit }
    }

    /// What is wrong with a prompt that leaves no room for a token.
    fn problem(&self, ids: &[u32]) -> Option<String> {
        let Room { longest, limit } = self;
        (ids.len() >= *longest)
            .then(|| format!("has {} tokens; expected fewer than {longest}, {limit}", ids.len()))
    }
}
