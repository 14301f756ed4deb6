//! Generation of texts from prompts: the work of `fathom generate` after its arguments are read.

mod in_order;
mod text_updates;
mod trace_file;
mod trace_line;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{PromptContent, Result, Tokenizer};
use serde_json::{Map, Value};

use crate::engine::{Engine, Request, Ticket, Update, Watcher};
use crate::{Finish, SamplingParams, TextStream};
pub use in_order::InOrder;
pub use text_updates::{TextUpdate, TextUpdates, UpdateDecoder};
pub use trace_file::TraceFile;
pub use trace_line::{Origin, TraceLine};

/// One text to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Index among all texts of a run: the line in the output, and part of the key of the random
    /// numbers.
    pub index: u64,
    /// Index of the prompt.
    pub prompt_index: usize,
    /// Index among the texts of the prompt.
    pub sample: usize,
    /// The prompt.
    pub prompt: Arc<PromptContent>,
    /// The prompt's token ids, with the chat template applied.
    pub ids: Arc<[u32]>,
}

impl Task {
    /// `samples` tasks for every prompt, in the order of the prompts.
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

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The task.
    pub task: Task,
    /// The text without the end-of-text token or stop string.
    pub output: String,
    /// The tokens, with the one that ended the text.
    pub tokens: Vec<u32>,
    /// Why the text ended.
    pub finish: Finish,
    /// Mean accepted tokens.
    pub mat: f64,
    /// More fields for its line in a trace file; empty unless the caller adds some.
    pub fields: Map<String, Value>,
}

/// Result of one step for one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// [`Task::index`].
    pub index: u64,
    /// New text that is final: complete characters, and no part of a stop string.
    pub text: String,
    /// Number of new tokens.
    pub tokens: usize,
    /// Set in the last piece.
    pub done: Option<Generation>,
}

/// Generates the texts of tasks with one engine and the same parameters.
///
/// ```
/// use fathom_decode::SamplingParams;
/// use fathom_decode::generation::{Generator, Task};
/// use fathom_model::{PromptContent, Tokenizer};
/// # use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
/// # use fathom_decode::Mode;
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::Transformer;
/// # use std::path::Path;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Transformer::load(&dir, cpu)?;
/// let tokenizer = Tokenizer::from_dir(&dir)?;
/// # let options = EngineOptions {
/// #     mode: ModeChoice::Always(Mode::Ar),
/// #     gamma: Gamma::Fixed(1),
/// #     batch_size: 4,
/// #     kv_pages: 100,
/// #     vocab: tokenizer.vocab_size(),
/// #     prefix_cache: true,
/// # };
/// let engine = Engine::new(target, None, options)?;
/// let prompts = ["Q: What is 6 times 7?", "def is_prime(n):"].map(|prompt| {
///     let ids = tokenizer.encode(prompt, false)?;
///     Ok((PromptContent::Text(prompt.to_owned()), ids))
/// });
/// let tasks = Task::list(prompts.into_iter().collect::<fathom_model::Result<_>>()?, 1);
/// let params = SamplingParams { max_tokens: 20, ..SamplingParams::default() };
/// let mut generator = Generator::new(engine, &tokenizer, params, &[2], tasks);
/// let mut ended = 0;
/// while generator.pending() > 0 {
///     for piece in generator.step()? {
///         ended += usize::from(piece.done.is_some());
///     }
/// }
/// assert_eq!(ended, 2);
/// # Ok(())
/// # }
/// ```
pub struct Generator<B: Backend> {
    engine: Engine<B>,
    tokenizer: Tokenizer,
    params: SamplingParams,
    eos: Arc<[u32]>,
    waiting: VecDeque<Task>,
    in_progress: HashMap<Ticket, InProgress>,
    watch: Option<Watch>,
}

/// Makes the watcher of a text.
type Watch = Box<dyn FnMut(&Task) -> Box<dyn Watcher> + Send>;

/// A text in progress.
struct InProgress {
    task: Task,
    decoder: UpdateDecoder,
    output: String,
    tokens: Vec<u32>,
}

impl<B: Backend> Generator<B> {
    /// A generator of the texts of `tasks`. Tokens in `eos` end a text.
    pub fn new(
        engine: Engine<B>,
        tokenizer: &Tokenizer,
        params: SamplingParams,
        eos: &[u32],
        tasks: Vec<Task>,
    ) -> Generator<B> {
        let (eos, waiting) = (Arc::from(eos), VecDeque::from(tasks));
        Generator {
            engine,
            tokenizer: tokenizer.clone(),
            params,
            eos,
            waiting,
            in_progress: HashMap::new(),
            watch: None,
        }
    }

    /// Adds a watcher to every text that has not started. `watch` creates it from the text's task.
    pub fn watched_by(
        mut self,
        watch: impl FnMut(&Task) -> Box<dyn Watcher> + Send + 'static,
    ) -> Generator<B> {
        self.watch = Some(Box::new(watch));
        self
    }

    /// The engine, for its metrics.
    pub fn engine(&self) -> &Engine<B> {
        &self.engine
    }

    /// Number of unfinished texts.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.in_progress.len()
    }

    /// Runs one step of the engine.
    ///
    /// # Errors
    /// A prompt that the engine rejects, or a failure of either model.
    pub fn step(&mut self) -> Result<Vec<Piece>> {
        // Submit only as many tasks as fit in the batch. The others wait here.
        while self.engine.pending() < self.engine.options().batch_size {
            let Some(task) = self.waiting.pop_front() else { break };
            self.submit(task)?;
        }
        let updates = self.engine.step()?;
        updates.into_iter().filter_map(|update| self.piece(update).transpose()).collect()
    }

    fn submit(&mut self, task: Task) -> Result<()> {
        let (params, eos) = (self.params.clone(), Arc::clone(&self.eos));
        let ticket = self.engine.submit(Request {
            stop: TextStream::of_request(&self.tokenizer, &self.params).into_stop_check(),
            watcher: self.watch.as_mut().map(|watch| watch(&task)),
            ..Request::new(task.index, task.ids.to_vec(), params, eos)
        })?;
        let decoder = UpdateDecoder::new(&self.tokenizer, &self.params);
        let text = InProgress { task, decoder, output: String::new(), tokens: Vec::new() };
        self.in_progress.insert(ticket, text);
        Ok(())
    }

    fn piece(&mut self, update: Update) -> Result<Option<Piece>> {
        let ticket = update.ticket;
        let Some(mut generating) = self.in_progress.remove(&ticket) else { return Ok(None) };
        let TextUpdate { text, tokens, done, .. } = generating.decoder.take(update)?;
        let (index, count) = (generating.task.index, tokens.len());
        generating.output += &text;
        generating.tokens.extend(tokens);
        let done = match done {
            None => {
                self.in_progress.insert(ticket, generating);
                None
            }
            Some(done) => {
                let InProgress { task, output, tokens, .. } = generating;
                let (finish, mat) = (done.finish, done.mat);
                Some(Generation { task, output, tokens, finish, mat, fields: Map::new() })
            }
        };
        Ok(Some(Piece { index, text, tokens: count, done }))
    }
}
