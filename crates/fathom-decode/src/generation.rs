//! From prompts to texts: what `fathom generate` does beside reading arguments.

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
    /// Its place among all texts of a run: its line in the output, and part of the key of its
    /// randomness.
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
    /// More fields for its line in a trace file; empty unless the caller adds some.
    pub fields: Map<String, Value>,
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

/// Runs tasks through an engine, all with the same parameters.
///
/// ```
/// use fathom_decode::SamplingParams;
/// use fathom_decode::generation::{Generator, Task};
/// use fathom_model::{PromptContent, Tokenizer};
/// # use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
/// # use fathom_decode::Mode;
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::Model;
/// # use std::path::Path;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Model::load(&dir, cpu)?;
/// let tokenizer = Tokenizer::from_dir(&dir)?;
/// # let options = EngineOptions {
/// #     mode: ModeChoice::Always(Mode::Ar),
/// #     gamma: Gamma::Fixed(1),
/// #     batch_size: 4,
/// #     kv_pages: 100,
/// #     vocab: tokenizer.vocab_size(),
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
    open: HashMap<Ticket, Open>,
    watch: Option<Watch>,
}

/// Makes the watcher of a text.
type Watch = Box<dyn FnMut(&Task) -> Box<dyn Watcher> + Send>;

/// A text under way.
struct Open {
    task: Task,
    decoder: UpdateDecoder,
    output: String,
    tokens: Vec<u32>,
}

impl<B: Backend> Generator<B> {
    /// `tasks` through `engine`, all with the same `params`; `eos` ends a text.
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
            open: HashMap::new(),
            watch: None,
        }
    }

    /// The same generator, with a watcher for every text that has not started: the one that `watch`
    /// returns for its task.
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
        let ticket = self.engine.submit(Request {
            id: task.index,
            prompt: task.ids.to_vec(),
            params: self.params.clone(),
            eos: Arc::clone(&self.eos),
            stop: TextStream::of_request(&self.tokenizer, &self.params).into_stop_check(),
            watcher: self.watch.as_mut().map(|watch| watch(&task)),
        })?;
        let decoder = UpdateDecoder::new(&self.tokenizer, &self.params);
        let open = Open { task, decoder, output: String::new(), tokens: Vec::new() };
        self.open.insert(ticket, open);
        Ok(())
    }

    fn piece(&mut self, update: Update) -> Result<Option<Piece>> {
        let ticket = update.ticket;
        let Some(mut open) = self.open.remove(&ticket) else { return Ok(None) };
        let TextUpdate { text, tokens, done } = open.decoder.take(update)?;
        let (index, count) = (open.task.index, tokens.len());
        open.output += &text;
        open.tokens.extend(tokens);
        let done = match done {
            None => {
                self.open.insert(ticket, open);
                None
            }
            Some(done) => {
                let Open { task, output, tokens, .. } = open;
                let (finish, mat) = (done.finish, done.mat);
                Some(Generation { task, output, tokens, finish, mat, fields: Map::new() })
            }
        };
        Ok(Some(Piece { index, text, tokens: count, done }))
    }
}
