//! From prompts to texts: what `fathom generate` does beside reading arguments.

mod in_order;
mod trace_file;
mod trace_line;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{PromptContent, Result, Tokenizer};

use crate::engine::{Engine, Request, Update};
use crate::{Finish, SamplingParams, TextStream};
pub use in_order::InOrder;
pub use trace_file::TraceFile;
pub use trace_line::{Origin, TraceLine};

/// One text to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its place among all texts of a run: its line in the output, and part of the key of its randomness.
    pub index: u64,
    /// Which prompt it continues.
    pub prompt_index: usize,
    /// Which of the texts of that prompt it is.
    pub sample: usize,
    /// What was asked.
    pub prompt: Arc<PromptContent>,
    /// The same as token ids, template included.
    pub ids: Arc<[u32]>,
}

impl Task {
    /// `samples` texts for every prompt, those of a prompt one after the other.
    pub fn list(prompts: Vec<(PromptContent, Vec<u32>)>, samples: usize) -> Vec<Task> {
        let mut tasks = Vec::with_capacity(prompts.len() * samples);
        for (prompt_index, (prompt, ids)) in prompts.into_iter().enumerate() {
            let (prompt, ids): (_, Arc<[u32]>) = (Arc::new(prompt), ids.into());
            for sample in 0..samples {
                let index = tasks.len() as u64;
                let (prompt, ids) = (Arc::clone(&prompt), Arc::clone(&ids));
                tasks.push(Task { index, prompt_index, sample, prompt, ids });
            }
        }
        tasks
    }
}

/// A text that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// What it continues.
    pub task: Task,
    /// Its text, without the token or the stop string that ended it.
    pub output: String,
    /// Its tokens, with the token that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Mean accepted tokens.
    pub mat: f64,
}

/// What a step added to one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// [`Task::index`].
    pub index: u64,
    /// Text that is certain by now: never half a character, never part of a stop string.
    pub text: String,
    /// How many tokens were added.
    pub tokens: usize,
    /// Set with the last of the text.
    pub done: Option<Generation>,
}

/// Runs tasks through an engine.
pub struct Generator<'a, B: Backend> {
    engine: Engine<'a, B>,
    tokenizer: &'a Tokenizer,
    params: SamplingParams,
    eos: Arc<[u32]>,
    waiting: VecDeque<Task>,
    open: HashMap<u64, Open<'a>>,
}

/// A text under way.
struct Open<'a> {
    task: Task,
    stream: TextStream<'a>,
    output: String,
    tokens: Vec<u32>,
}

impl<'a, B: Backend> Generator<'a, B> {
    /// `tasks` through `engine`, all with the same `params`; `eos` ends a text.
    pub fn new(
        engine: Engine<'a, B>,
        tokenizer: &'a Tokenizer,
        params: SamplingParams,
        eos: &[u32],
        tasks: Vec<Task>,
    ) -> Generator<'a, B> {
        let (eos, waiting) = (Arc::from(eos), VecDeque::from(tasks));
        Generator { engine, tokenizer, params, eos, waiting, open: HashMap::new() }
    }

    /// The engine, for its metrics.
    pub fn engine(&self) -> &Engine<'a, B> {
        &self.engine
    }

    /// Texts that have not ended.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.open.len()
    }

    /// Takes every text in the batch a step further.
    ///
    /// # Errors
    /// A prompt the engine cannot take, or a failure of either model.
    pub fn step(&mut self) -> Result<Vec<Piece>> {
        // The engine admits as many as fit; more than a batch need not wait inside it.
        while self.engine.pending() < self.engine.options().batch_size {
            let Some(task) = self.waiting.pop_front() else { break };
            self.submit(task)?;
        }
        let updates = self.engine.step()?;
        updates.into_iter().filter_map(|update| self.piece(update).transpose()).collect()
    }

    fn submit(&mut self, task: Task) -> Result<()> {
        let SamplingParams { stop, min_tokens, .. } = &self.params;
        let stream = || TextStream::new(self.tokenizer, stop.clone()).with_min_tokens(*min_tokens);
        self.engine.submit(Request {
            id: task.index,
            prompt: task.ids.to_vec(),
            params: self.params.clone(),
            eos: Arc::clone(&self.eos),
            stop: stream().into_stop_check(),
        })?;
        let stream = stream();
        let open = Open { task, stream, output: String::new(), tokens: Vec::new() };
        self.open.insert(open.task.index, open);
        Ok(())
    }

    fn piece(&mut self, update: Update) -> Result<Option<Piece>> {
        let Update { request: index, mut tokens, done } = update;
        let Some(mut open) = self.open.remove(&index) else { return Ok(None) };
        open.tokens.extend(&tokens);
        let count = tokens.len();
        let finish = done.as_ref().map(|done| done.finish);
        if matches!(finish, Some(Finish::Eos | Finish::StopToken)) {
            tokens.pop(); // it ends the text and is no part of it
        }
        let mut text = String::new();
        for token in tokens {
            text += &open.stream.push(token)?;
        }
        let done = match done {
            None => {
                open.output += &text;
                self.open.insert(index, open);
                None
            }
            Some(done) => {
                let Open { task, stream, output, tokens } = open;
                text += &stream.finish()?;
                let output = output + &text;
                Some(Generation { task, output, tokens, finish: done.finish, mat: done.mat })
            }
        };
        Ok(Some(Piece { index, text, tokens: count, done }))
    }
}
