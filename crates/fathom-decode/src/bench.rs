//! The benchmark: every mode on the same prompts, with throughput and times.

mod held_out;
mod loops;
mod measured;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{Error, Result};

use crate::engine::{Engine, ModeChoice, Request, Ticket};
use crate::simulate::SpeculationRecord;
use crate::{Mode, SamplingParams};
pub use held_out::HeldOut;
use loops::first_repetition;
pub use measured::{BenchResult, first_difference};

/// Length of the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchProtocol {
    /// The published benchmark's protocol: end-of-text tokens are ignored, so that no sequence
    /// leaves its batch early.
    Fixed {
        /// Decoding steps of a batch in the speculative modes.
        steps: usize,
        /// Tokens of each text in `ar`.
        ar_tokens: usize,
    },
    /// To the end-of-text token, or `max_tokens`.
    Natural {
        /// Maximum number of tokens of a text.
        max_tokens: usize,
        /// Whether a text that ends in a loop ends where it repeats for the first time. Loops are
        /// easy to draft.
        cut_loops: bool,
    },
}

impl BenchProtocol {
    /// Upper bound of the tokens of a text with chunks of at most `max_gamma`.
    pub fn reach(self, max_gamma: usize) -> usize {
        match self {
            BenchProtocol::Fixed { steps, ar_tokens } => {
                steps.saturating_mul(max_gamma + 1).max(ar_tokens)
            }
            BenchProtocol::Natural { max_tokens, .. } => max_tokens,
        }
    }

    /// Maximum number of steps of a batch.
    fn steps(self, mode: ModeChoice) -> usize {
        match self {
            BenchProtocol::Fixed { ar_tokens, .. } if mode == ModeChoice::Always(Mode::Ar) => {
                ar_tokens
            }
            BenchProtocol::Fixed { steps, .. } => steps,
            BenchProtocol::Natural { .. } => usize::MAX,
        }
    }

    fn params(self) -> SamplingParams {
        let (max_tokens, ignore_eos) = match self {
            BenchProtocol::Fixed { .. } => (usize::MAX, true),
            BenchProtocol::Natural { max_tokens, .. } => (max_tokens, false),
        };
        SamplingParams { max_tokens, ignore_eos, ..SamplingParams::default() }
    }
}

/// The prompts of a measurement: complete batches of token ids.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'p> {
    prompts: &'p [Vec<u32>],
    size: usize,
}

impl<'p> Batches<'p> {
    /// The complete batches of `size` in `prompts`. `None` if there is none.
    pub fn complete(prompts: &'p [Vec<u32>], size: usize) -> Option<Batches<'p>> {
        let full = prompts.len().checked_div(size)? * size;
        (full > 0).then(|| Batches { prompts: &prompts[..full], size })
    }

    /// Prompts in all batches.
    pub fn prompts(self) -> usize {
        self.prompts.len()
    }
}

/// A benchmark on one set of prompts.
#[derive(Clone, Debug)]
pub struct Plan<'p> {
    /// The prompts.
    pub batches: Batches<'p>,
    /// The modes.
    pub modes: &'p [ModeChoice],
    /// Length of the texts.
    pub protocol: BenchProtocol,
    /// Number of measurements of each mode.
    pub repeats: usize,
    /// Tokens that end texts of the natural protocol.
    pub eos: Arc<[u32]>,
    /// Whether `sd`, `pearl` and `forked` may verify free guesses besides the drafts of the model.
    /// The published benchmark, whose protocol is the fixed one, is without.
    pub free_guesses: bool,
}

/// Unmeasured steps of every mode before the first batch. They fault in memory, and the planner
/// measures costs and acceptance.
const WARM_UP: BenchProtocol = BenchProtocol::Fixed { steps: 20, ar_tokens: 8 };

impl Plan<'_> {
    /// Decodes the batches greedily, each with every engine and mode. Engines and modes alternate,
    /// so that disturbances of the machine affect all of them. Returns the results as
    /// `[engine][mode][repeat]`.
    ///
    /// Each engine prefills a batch once and resets it to its prompts for the next mode.
    ///
    /// # Errors
    /// A prompt that an engine rejects, or a failure of a model.
    pub fn measure<B: Backend>(
        &self,
        engines: &mut [&mut Engine<B>],
    ) -> Result<Vec<Vec<Vec<BenchResult>>>> {
        let of_mode = |mode: &ModeChoice| {
            vec![BenchResult { mode: *mode, ..BenchResult::default() }; self.repeats]
        };
        let of_engine: Vec<Vec<BenchResult>> = self.modes.iter().map(of_mode).collect();
        let mut all = vec![of_engine; engines.len()];
        engines.iter_mut().for_each(|engine| engine.set_guesses_beside_drafts(self.free_guesses));
        for (index, batch) in self.batches.prompts.chunks_exact(self.batches.size).enumerate() {
            let unlimited = vec![usize::MAX; batch.len()];
            let longest = match (self.protocol, engines.first_mut()) {
                (BenchProtocol::Natural { cut_loops: true, .. }, Some(engine)) => {
                    self.first_repetitions(engine, batch, &unlimited)?
                }
                _ => unlimited.clone(),
            };
            for (engine, runs) in engines.iter_mut().zip(&mut all) {
                let seconds = self.prefill(engine, batch, WARM_UP, &unlimited)?;
                runs.iter_mut().flatten().for_each(|run| run.metrics.prefill_seconds += seconds);
                for mode in self.modes.iter().filter(|_| index == 0) {
                    let mut run = BenchResult { mode: *mode, ..BenchResult::default() };
                    decode(engine, batch, WARM_UP, &mut run)?;
                    engine.rewind()?;
                }
            }
            for repeat in 0..self.repeats {
                for (engine, runs) in engines.iter_mut().zip(&mut all) {
                    let turn = runs.iter_mut().filter_map(|runs| runs.get_mut(repeat));
                    let mut turn: Vec<_> = turn.collect();
                    // Alternate the order of the modes, so that effects of one mode on the next
                    // one average out.
                    if repeat % 2 == 1 {
                        turn.reverse();
                    }
                    for run in turn {
                        self.once(engine, batch, &longest, run)?;
                    }
                }
            }
            engines.iter_mut().for_each(|engine| engine.cancel_all());
        }
        for run in all.iter_mut().flatten().flatten() {
            run.gamma /= run.steps.max(1) as f64;
            run.mat /= self.batches.prompts() as f64;
        }
        Ok(all)
    }

    fn once<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        batch: &[Vec<u32>],
        longest: &[usize],
        run: &mut BenchResult,
    ) -> Result<()> {
        if let BenchProtocol::Natural { .. } = self.protocol {
            // Finished texts have left the batch, so the batch is submitted again.
            engine.cancel_all();
            self.prefill(engine, batch, self.protocol, longest)?;
            return decode(engine, batch, self.protocol, run);
        }
        decode(engine, batch, self.protocol, run)?;
        engine.rewind()
    }

    /// Where the plain texts of a batch that end in loops repeat for the first time, in tokens;
    /// the lengths of the others.
    fn first_repetitions<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        batch: &[Vec<u32>],
        unlimited: &[usize],
    ) -> Result<Vec<usize>> {
        let mut plain = BenchResult::default();
        self.once(engine, batch, unlimited, &mut plain)?;
        engine.cancel_all();
        Ok(plain.texts.iter().map(|text| first_repetition(text).max(1)).collect())
    }

    /// Submits a batch, with texts of at most `longest` tokens, and prefills it. Returns the
    /// seconds of the prefill.
    fn prefill<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        batch: &[Vec<u32>],
        protocol: BenchProtocol,
        longest: &[usize],
    ) -> Result<f64> {
        if engine.options().batch_size < batch.len() {
            return Err(Error::Request(format!(
                "a batch of {} exceeds the engine's batch-size of {}",
                batch.len(),
                engine.options().batch_size
            )));
        }
        for (id, (prompt, longest)) in (0..).zip(batch.iter().zip(longest)) {
            let (prompt, eos) = (prompt.clone(), Arc::clone(&self.eos));
            let mut params = protocol.params();
            params.max_tokens = params.max_tokens.min(*longest);
            engine.submit(Request::new(id, prompt, params, eos))?;
        }
        let start = Instant::now();
        engine.prefill()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// A text during a measurement.
struct Generated {
    ticket: Ticket,
    tokens: Vec<u32>,
    record: SpeculationRecord,
}

impl Generated {
    fn new(ticket: Ticket) -> Generated {
        Generated { ticket, tokens: Vec::new(), record: SpeculationRecord::default() }
    }
}

/// Decodes a prefilled batch and adds the results to `run`.
fn decode<B: Backend>(
    engine: &mut Engine<B>,
    batch: &[Vec<u32>],
    protocol: BenchProtocol,
    run: &mut BenchResult,
) -> Result<()> {
    engine.set_mode(run.mode)?;
    let others = engine.replace_metrics(std::mem::take(&mut run.metrics));
    let mut texts: HashMap<u64, Generated> = HashMap::new();
    let mut steps = 0;
    while engine.pending() > 0 && steps < protocol.steps(run.mode) {
        let start = Instant::now();
        let updates = engine.step()?;
        run.seconds += start.elapsed().as_secs_f64();
        steps += 1;
        let gamma = engine.metrics().gamma;
        run.gamma += gamma as f64;
        run.sequence_steps += updates.len();
        for update in updates {
            let new = || Generated::new(update.ticket);
            let text = texts.entry(update.request).or_insert_with(new);
            text.tokens.extend(update.tokens);
            text.record.record(&update.outcome, gamma);
            run.mat += update.done.map_or(0.0, |done| done.mat);
        }
    }
    run.steps += steps;
    for id in 0..batch.len() as u64 {
        let text = texts.remove(&id);
        let open = text.as_ref().and_then(|text| engine.mat(text.ticket));
        run.mat += open.unwrap_or(0.0); // texts that have not ended
        let (tokens, record) = text.map(|text| (text.tokens, text.record)).unwrap_or_default();
        run.texts.push(tokens);
        run.records.push(record);
    }
    run.metrics = engine.replace_metrics(others);
    Ok(())
}
