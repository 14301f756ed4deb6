//! Prompts as token ids, checked against the target's context.

use std::path::Path;

use fathom_decode::generation::Task;
use fathom_kernels::Cpu;
use fathom_model::{
    Encoded, Error, Prompt, PromptContent, Remark, Remarks, Result, RowFields, read_prompts_with,
};

use super::{GenerateOptions, Pair};
use crate::Input;

/// Which prompts of a data set are read.
#[derive(Clone, Debug, Default)]
pub struct PromptFile {
    /// The field that holds a row's prompt. Default: the fields of published data sets.
    pub fields: RowFields,
    /// Read the first `limit` prompts only.
    pub limit: Option<usize>,
}

/// Prompts as token ids. Each leaves room for at least one token in the target's context.
#[derive(Clone, Debug, Default)]
pub struct Prompts {
    prompts: Vec<(PromptContent, Vec<u32>)>,
    remarks: Vec<Remark>,
}

impl Prompts {
    /// Encodes prompts given in memory.
    ///
    /// # Errors
    /// A prompt that is empty, cannot be encoded, or leaves no room for an answer.
    pub fn new<I: Into<Input>>(
        prompts: impl IntoIterator<Item = I>,
        pair: &Pair,
        options: &GenerateOptions,
    ) -> Result<Prompts> {
        let limit = PromptLimit::of(pair, options);
        let mut remarks = Remarks::new();
        let prompts = prompts.into_iter().enumerate().map(|(index, input)| {
            let refuse = |problem: String| Error::Request(format!("prompt {index} {problem}"));
            let (content, encoded) = encode(input.into(), pair)?;
            remarks.extend(encoded.remarks);
            match limit.problem(&encoded.ids) {
                Some(problem) => Err(refuse(problem)),
                None => Ok((content, encoded.ids)),
            }
        });
        let prompts = prompts.collect::<Result<_>>()?;
        Ok(Prompts { prompts, remarks: remarks.into_vec() })
    }

    /// Reads the prompts of a data set, or of a file named `*.txt` with one prompt per line.
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
    /// A file that cannot be read or has no prompts; a line that is not a prompt, or a prompt that
    /// leaves no room for an answer.
    pub fn read(
        path: &Path,
        file: &PromptFile,
        pair: &Pair,
        options: &GenerateOptions,
    ) -> Result<Prompts> {
        let (encoder, limit) = (pair.encoder(), PromptLimit::of(pair, options));
        let mut remarks = Remarks::new();
        let read = read_prompts_with(path, &file.fields, &mut remarks)?;
        let mut prompts = Vec::new();
        for mut prompt in read.into_iter().take(file.limit.unwrap_or(usize::MAX)) {
            prompt.content = pair.target().text().with_system(prompt.content);
            let Encoded { ids, remarks: more, .. } = prompt.encode(&encoder)?;
            remarks.extend(more);
            if let Some(problem) = limit.problem(&ids) {
                return Err(Error::line(path, prompt.line, format!("the prompt {problem}")));
            }
            let Prompt { content, .. } = prompt;
            prompts.push((content, ids));
        }
        Ok(Prompts { prompts, remarks: remarks.into_vec() })
    }

    /// Remarks about the prompts.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The length of the longest prompt in tokens.
    pub fn longest(&self) -> usize {
        self.prompts.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0)
    }

    /// One generation task for each prompt and sample.
    pub fn tasks(self, samples: usize) -> Vec<Task> {
        Task::list(self.prompts, samples)
    }
}

/// The prompt as a generated trace records it, and its token ids.
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

/// The largest number of tokens of a prompt and its text together.
struct PromptLimit {
    tokens: usize,
    /// What sets the limit, for messages.
    reason: &'static str,
}

impl PromptLimit {
    fn of(pair: &Pair, options: &GenerateOptions) -> PromptLimit {
        let pages = pair.engine_options(options).kv_pages;
        let tokens = pair.context().min(pages.saturating_mul(Cpu::KV_PAGE));
        let reason = match tokens < pair.context() {
            true => "the size of the key/value cache",
            false => "the target's context",
        };
        PromptLimit { tokens, reason }
    }

    /// What is wrong with a prompt that leaves no room for a token.
    fn problem(&self, ids: &[u32]) -> Option<String> {
        let PromptLimit { tokens, reason } = self;
        (ids.len() >= *tokens)
            .then(|| format!("has {} tokens; expected fewer than {tokens}, {reason}", ids.len()))
    }
}
