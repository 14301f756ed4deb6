//! The benchmark: every way of decoding on the same prompts, and what it did with its time.

mod measured;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use fathom_kernels::Backend;
use fathom_model::{Error, Result};

use crate::engine::{Engine, ModeChoice, Request};
use crate::{Mode, SamplingParams};
pub use measured::{Measured, first_difference};

/// How long a text gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The published benchmark's: end-of-text tokens are ignored, so that no sequence leaves its batch early.
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

    /// Most steps of a batch, and most tokens of a text.
    fn limits(self, mode: ModeChoice) -> (usize, usize) {
        match self {
            Protocol::Fixed { ar_tokens, .. } if mode == ModeChoice::Always(Mode::Ar) => {
                (usize::MAX, ar_tokens)
            }
            Protocol::Fixed { steps, .. } => (steps, usize::MAX),
            Protocol::Natural { max_tokens } => (usize::MAX, max_tokens),
        }
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

    /// The first batch alone, to warm up on.
    pub fn first(self) -> Batches<'p> {
        Batches { prompts: &self.prompts[..self.size], ..self }
    }

    /// Prompts in all batches.
    pub fn prompts(self) -> usize {
        self.prompts.len()
    }
}

/// Decodes `batches` greedily, one after the other, and measures it. `eos` ends texts of the natural protocol.
///
/// # Errors
/// A prompt the engine cannot take, or a failure of either model.
pub fn measure<B: Backend>(
    engine: &mut Engine<'_, B>,
    batches: Batches<'_>,
    mode: ModeChoice,
    protocol: Protocol,
    eos: &Arc<[u32]>,
) -> Result<Measured> {
    if engine.options().batch_size < batches.size {
        return Err(Error::Request(format!(
            "a batch of {} does not fit an engine for {}",
            batches.size,
            engine.options().batch_size
        )));
    }
    engine.set_mode(mode)?;
    engine.take_metrics();
    let (max_steps, max_tokens) = protocol.limits(mode);
    let params = SamplingParams {
        max_tokens,
        ignore_eos: matches!(protocol, Protocol::Fixed { .. }),
        ..SamplingParams::default()
    };
    let mut measured = Measured { mode, ..Measured::default() };
    let (mut seconds, mut gammas, mut mats) = (0.0, 0, 0.0);
    for batch in batches.prompts.chunks_exact(batches.size) {
        let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
        for (id, prompt) in (0..).zip(batch) {
            let (prompt, params, eos) = (prompt.clone(), params.clone(), Arc::clone(eos));
            engine.submit(Request { id, prompt, params, eos, stop: None })?;
        }
        engine.prefill()?;
        let mut steps = 0;
        while engine.pending() > 0 && steps < max_steps {
            let start = Instant::now();
            let updates = engine.step()?;
            seconds += start.elapsed().as_secs_f64();
            steps += 1;
            gammas += engine.metrics().gamma;
            measured.sequence_steps += updates.len();
            for update in updates {
                texts.entry(update.request).or_default().extend(update.tokens);
                mats += update.done.map_or(0.0, |done| done.mat);
            }
        }
        for id in 0..batches.size as u64 {
            mats += engine.mat(id).unwrap_or(0.0); // those that have not ended
            engine.cancel(id);
            measured.texts.push(texts.remove(&id).unwrap_or_default());
        }
        measured.steps += steps;
    }
    measured.metrics = engine.take_metrics();
    measured.seconds = seconds;
    measured.gamma = gammas as f64 / measured.steps.max(1) as f64;
    measured.mat = mats / batches.prompts() as f64;
    Ok(measured)
}
