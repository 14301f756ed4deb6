//! Checks that greedy texts equal those of plain decoding, token for token, for every mode, several
//! batch sizes, γ and thread splits, and both precisions, on the prompts of four benchmarks.
//!
//! ```text
//! cargo run --release -p fathom-decode --example lossless -- \
//!     TARGET DRAFT DATA [PROMPTS_PER_BENCHMARK] [TOKENS] [TAIL]
//! ```
//!
//! DATA holds AIME.jsonl, CNNDM.jsonl, GSM8K.jsonl and HumanEval.jsonl. The last TAIL tokens of
//! each prompt are continued (whole prompts at batch 16 with adaptive γ), so that hundreds of
//! prompts in 120 combinations take minutes. At the end the target is its own draft, and every
//! draft must be accepted. Exit code 1 at the first difference.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Precision;
use fathom_decode::engine::{Engine, EngineMetrics, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{GammaLimits, Mode, SamplingParams, shared_vocabulary};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    ChatTemplate, Error, RenderOptions, Result, TextEncoder, Tokenizer, Transformer, read_prompts,
};

const BENCHMARKS: [&str; 4] = ["AIME", "CNNDM", "GSM8K", "HumanEval"];
const MODES: [ModeChoice; 5] = [
    ModeChoice::Always(Mode::Sd),
    ModeChoice::Always(Mode::Pearl),
    ModeChoice::Always(Mode::Forked),
    ModeChoice::Always(Mode::Suffix),
    ModeChoice::Auto,
];
const BATCHES: [usize; 3] = [1, 4, 16];
const GAMMAS: [Option<usize>; 5] = [Some(1), Some(2), Some(5), Some(9), None];
/// (target, draft) threads of a model that runs alone.
const SPLITS: [(usize, usize); 3] = [(1, 1), (2, 1), (1, 2)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match Sweep::new(&arguments).and_then(|sweep| sweep.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Sweep {
    target: PathBuf,
    draft: PathBuf,
    /// Token ids.
    prompts: Vec<Vec<u32>>,
    vocab: usize,
    eos: Arc<[u32]>,
    tokens: usize,
    tail: usize,
}

impl Sweep {
    fn new(arguments: &[String]) -> Result<Sweep> {
        let [target, draft, data, numbers @ ..] = arguments else {
            return Err(Error::Request("expected TARGET DRAFT DATA".to_owned()));
        };
        let number = |i: usize, otherwise: usize| match numbers.get(i) {
            None => Ok(otherwise),
            Some(text) => text.parse().map_err(|_| {
                Error::Request(format!("`{text}` is not a number of prompts or tokens"))
            }),
        };
        let (per_benchmark, tokens, tail) = (number(0, 50)?, number(1, 32)?, number(2, 64)?);
        let (target, draft) = (PathBuf::from(target), PathBuf::from(draft));
        let tokenizer = Tokenizer::from_dir(&target)?;
        let other = Tokenizer::from_dir(&draft)?;
        let ids = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let vocab =
            shared_vocabulary(|id| tokenizer.id_to_token(id), |id| other.id_to_token(id), ids)?;
        let template = ChatTemplate::from_dir(&target)?;
        let encoder = TextEncoder {
            tokenizer: Some(&tokenizer),
            template: template.as_ref(),
            render: RenderOptions::default(),
            vocab_size: vocab,
        };
        let mut prompts = Vec::new();
        for name in BENCHMARKS {
            let path = Path::new(data).join(format!("{name}.jsonl"));
            for prompt in read_prompts(&path)?.into_iter().take(per_benchmark) {
                prompts.push(prompt.token_ids(&encoder)?);
            }
        }
        let config = fathom_model::ModelConfig::from_dir(&target)?;
        let eos = config.eos_token_ids.into();
        Ok(Sweep { target, draft, prompts, vocab, eos, tokens, tail })
    }

    fn run(&self) -> Result<()> {
        let start = Instant::now();
        let mut runs = 0;
        for precision in [Precision::F32, Precision::Bf16] {
            let mut engines = Vec::new();
            for split in SPLITS {
                engines.push(self.engine(&self.draft, precision, split)?);
            }
            let tails: Vec<&[u32]> =
                self.prompts.iter().map(|p| &p[p.len().saturating_sub(self.tail)..]).collect();
            let whole: Vec<&[u32]> = self.prompts.iter().map(Vec::as_slice).collect();
            let plain = self.options(ModeChoice::Always(Mode::Ar), 16, Some(1));
            let plain_of_tails = self.texts(&mut engines[0], plain, &tails)?;
            let plain_of_whole = self.texts(&mut engines[0], plain, &whole)?;
            for mode in MODES {
                for batch in BATCHES {
                    for gamma in GAMMAS {
                        let split = runs % SPLITS.len();
                        let (prompts, expected) = match (batch, gamma) {
                            (16, None) => (&whole, &plain_of_whole),
                            _ => (&tails, &plain_of_tails),
                        };
                        let options = self.options(mode, batch, gamma);
                        let texts = self.texts(&mut engines[split], options, prompts)?;
                        let (target, draft) = SPLITS[split];
                        let what = format!(
                            "{mode:?} batch {batch} γ {} {:?} threads {target}+{draft}",
                            gamma.map_or("auto".to_owned(), |gamma| gamma.to_string()),
                            precision,
                        );
                        if let Some(prompt) =
                            expected.iter().zip(&texts).position(|(plain, text)| plain != text)
                        {
                            return Err(Error::Request(format!(
                                "{what}: prompt {prompt} differs from plain decoding"
                            )));
                        }
                        runs += 1;
                        println!("{:7.1} s  {what}", start.elapsed().as_secs_f64());
                    }
                }
            }
            drop(engines);
            let mut itself = self.engine(&self.target, precision, (1, 1))?;
            for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
                let options = self.options(ModeChoice::Always(mode), 4, Some(5));
                itself.replace_metrics(EngineMetrics::default());
                let texts = self.texts(&mut itself, options, &tails)?;
                if itself.metrics().acceptance.rate() != Some(1.0) || texts != plain_of_tails {
                    let message = format!("{mode}: the target does not accept its own drafts");
                    return Err(Error::Request(message));
                }
            }
        }
        println!(
            "{runs} runs over {} prompts, at most {} tokens each: all texts equal those of plain \
             decoding; the target accepted all of its own drafts",
            self.prompts.len(),
            self.tokens
        );
        Ok(())
    }

    fn engine(
        &self,
        draft: &Path,
        precision: Precision,
        (target_threads, draft_threads): (usize, usize),
    ) -> Result<Engine<Cpu>> {
        let load = |dir: &Path, threads: usize| {
            let refuse = |error: fathom_kernels::CpuError| Error::Request(error.to_string());
            let options = CpuOptions { threads: Some(threads), precision, ..CpuOptions::default() };
            // Co-running models use one thread each.
            let cpu = Cpu::new(options).and_then(|cpu| cpu.with_co_running_threads(1));
            Transformer::load(dir, cpu.map_err(refuse)?)
        };
        let draft = load(draft, draft_threads)?;
        let options = self.options(ModeChoice::Auto, 16, None);
        Engine::new(load(&self.target, target_threads)?, Some(draft), options)
    }

    fn options(&self, mode: ModeChoice, batch_size: usize, gamma: Option<usize>) -> EngineOptions {
        let gamma = gamma.map_or(Gamma::Adaptive(GammaLimits::default()), Gamma::Fixed);
        EngineOptions {
            mode,
            gamma,
            batch_size,
            kv_pages: 10_000,
            vocab: self.vocab,
            prefix_cache: true,
        }
    }

    /// The texts of all prompts.
    fn texts(
        &self,
        engine: &mut Engine<Cpu>,
        options: EngineOptions,
        prompts: &[&[u32]],
    ) -> Result<Vec<Vec<u32>>> {
        engine.configure(options)?;
        let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
        for (id, prompt) in (0..).zip(prompts) {
            let params = SamplingParams { max_tokens: self.tokens, ..SamplingParams::default() };
            let (prompt, eos) = (prompt.to_vec(), Arc::clone(&self.eos));
            engine.submit(Request::new(id, prompt, params, eos))?;
        }
        while engine.pending() > 0 {
            for update in engine.step()? {
                texts.entry(update.request).or_default().extend(update.tokens);
            }
        }
        Ok((0..prompts.len() as u64).map(|id| texts.remove(&id).unwrap_or_default()).collect())
    }
}
