//! The benchmark: every way of decoding on the same prompts, and what it did with its time.

mod measured;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{Error, Result};

use crate::engine::{Engine, ModeChoice, Request, Ticket};
use crate::{Mode, SamplingParams};
pub use measured::{Measured, first_difference};

/// How long a text gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The published benchmark's: end-of-text tokens are ignored, so that no sequence leaves its
    /// batch early.
    Fixed {
        /// Steps of every speculative way of decoding.
        steps: usize,
        /// Tokens of plain decoding.
        ar_tokens: usize,
    },
    /// To the end-of-text token, or so many tokens.
    Natural {
        /// Most tokens of a text.
        max_tokens: usize,
    },
}

impl Protocol {
    /// Most tokens a text may get when chunks are at most `max_gamma` long.
    pub fn reach(self, max_gamma: usize) -> usize {
        match self {
            Protocol::Fixed { steps, ar_tokens } => {
                steps.saturating_mul(max_gamma + 1).max(ar_tokens)
            }
            Protocol::Natural { max_tokens } => max_tokens,
        }
    }

    /// Most steps of a batch.
    fn steps(self, mode: ModeChoice) -> usize {
        match self {
            Protocol::Fixed { ar_tokens, .. } if mode == ModeChoice::Always(Mode::Ar) => ar_tokens,
            Protocol::Fixed { steps, .. } => steps,
            Protocol::Natural { .. } => usize::MAX,
        }
    }

    fn params(self) -> SamplingParams {
        let (max_tokens, ignore_eos) = match self {
            Protocol::Fixed { .. } => (usize::MAX, true),
            Protocol::Natural { max_tokens } => (max_tokens, false),
        };
        SamplingParams { max_tokens, ignore_eos, ..SamplingParams::default() }
    }
}

/// The prompts of one measurement: complete batches of token ids.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'p> {
    prompts: &'p [Vec<u32>],
    size: usize,
}

impl<'p> Batches<'p> {
    /// As many complete batches of `size` as `prompts` fill; `None` where they do not fill one.
    pub fn complete(prompts: &'p [Vec<u32>], size: usize) -> Option<Batches<'p>> {
        let full = prompts.len().checked_div(size)? * size;
        (full > 0).then(|| Batches { prompts: &prompts[..full], size })
    }

    /// Prompts in all batches.
    pub fn prompts(self) -> usize {
        self.prompts.len()
    }
}

/// What is measured on the same prompts.
#[derive(Clone, Debug)]
pub struct Plan<'p> {
    /// The prompts.
    pub batches: Batches<'p>,
    /// The ways of decoding.
    pub modes: &'p [ModeChoice],
    /// How long texts get.
    pub protocol: Protocol,
    /// How often everything is measured.
    pub repeats: usize,
    /// Tokens that end texts of the natural protocol.
    pub eos: Arc<[u32]>,
}

/// Steps of every way of decoding before the first batch is measured: memory is touched, and costs
/// and acceptance are known to what adapts to them.
const WARM_UP: Protocol = Protocol::Fixed { steps: 20, ar_tokens: 8 };

impl Plan<'_> {
    /// Decodes the batches greedily, one after the other, each in every way by every engine; all
    /// take turns, so that what disturbs the machine disturbs all alike. What came of it, by
    /// engine, way of decoding and repeat.
    ///
    /// A batch is prefilled once by each engine, and taken back to its prompts for the next way of
    /// decoding.
    ///
    /// # Errors
    /// A prompt an engine cannot take, or a failure of a model.
    pub fn measure<B: Backend>(
        &self,
        engines: &mut [&mut Engine<B>],
    ) -> Result<Vec<Vec<Vec<Measured>>>> {
        let of_mode =
            |mode: &ModeChoice| vec![Measured { mode: *mode, ..Measured::default() }; self.repeats];
        let of_engine: Vec<Vec<Measured>> = self.modes.iter().map(of_mode).collect();
        let mut all = vec![of_engine; engines.len()];
        for (index, batch) in self.batches.prompts.chunks_exact(self.batches.size).enumerate() {
            for (engine, runs) in engines.iter_mut().zip(&mut all) {
                let seconds = self.prefill(engine, batch, WARM_UP)?;
                runs.iter_mut().flatten().for_each(|run| run.metrics.prefill_seconds += seconds);
                for mode in self.modes.iter().filter(|_| index == 0) {
                    let mut run = Measured { mode: *mode, ..Measured::default() };
                    decode(engine, batch, WARM_UP, &mut run)?;
                    engine.rewind()?;
                }
            }
            for repeat in 0..self.repeats {
                for (engine, runs) in engines.iter_mut().zip(&mut all) {
                    let turn = runs.iter_mut().filter_map(|runs| runs.get_mut(repeat));
                    let mut turn: Vec<_> = turn.collect();
                    // There and back: what one way leaves behind does not always meet the same
                    // other.
                    if repeat % 2 == 1 {
                        turn.reverse();
                    }
                    for run in turn {
                        self.once(engine, batch, run)?;
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
        run: &mut Measured,
    ) -> Result<()> {
        if let Protocol::Natural { .. } = self.protocol {
            // Texts that end leave the batch: it is filled anew.
            engine.cancel_all();
            self.prefill(engine, batch, self.protocol)?;
            return decode(engine, batch, self.protocol, run);
        }
        decode(engine, batch, self.protocol, run)?;
        engine.rewind()
    }

    /// Submits a batch and prefills it; the seconds that takes.
    fn prefill<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        batch: &[Vec<u32>],
        protocol: Protocol,
    ) -> Result<f64> {
        if engine.options().batch_size < batch.len() {
            return Err(Error::Request(format!(
                "a batch of {} does not fit an engine for {}",
                batch.len(),
                engine.options().batch_size
            )));
        }
        for (id, prompt) in (0..).zip(batch) {
            let (prompt, params, eos) = (prompt.clone(), protocol.params(), Arc::clone(&self.eos));
            engine.submit(Request { id, prompt, params, eos, stop: None, watcher: None })?;
        }
        let start = Instant::now();
        engine.prefill()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Decodes a prefilled batch, and counts it in `run`.
fn decode<B: Backend>(
    engine: &mut Engine<B>,
    batch: &[Vec<u32>],
    protocol: Protocol,
    run: &mut Measured,
) -> Result<()> {
    engine.set_mode(run.mode)?;
    let others = engine.replace_metrics(std::mem::take(&mut run.metrics));
    let mut texts: HashMap<u64, (Ticket, Vec<u32>)> = HashMap::new();
    let mut steps = 0;
    while engine.pending() > 0 && steps < protocol.steps(run.mode) {
        let start = Instant::now();
        let updates = engine.step()?;
        run.seconds += start.elapsed().as_secs_f64();
        steps += 1;
        run.gamma += engine.metrics().gamma as f64;
        run.sequence_steps += updates.len();
        for update in updates {
            let text = texts.entry(update.request).or_insert((update.ticket, Vec::new()));
            text.1.extend(update.tokens);
            run.mat += update.done.map_or(0.0, |done| done.mat);
        }
    }
    run.steps += steps;
    for id in 0..batch.len() as u64 {
        let text = texts.remove(&id);
        let open = text.as_ref().and_then(|(ticket, _)| engine.mat(*ticket));
        run.mat += open.unwrap_or(0.0); // those that have not ended
        run.texts.push(text.map(|(_, tokens)| tokens).unwrap_or_default());
    }
    run.metrics = engine.replace_metrics(others);
    Ok(())
}
