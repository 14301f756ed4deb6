//! The second half of the demo: text of a small trained pair, with PEARL and with plain decoding.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fathom_decode::engine::EngineMetrics;
use fathom_decode::generation::{Origin, TraceFile, TraceLine};
use fathom_report::Decoding;
use serde_json::{Value, json};

use crate::cli::model_args::ComputeArgs;
use crate::cli::output::Output;
use crate::cli::progress::LoadingBar;
use crate::demo::trained_pair;
use crate::{
    GenerateOptions, Generation, ModelOptions, Pair, Prompts, Result, SamplingParams,
    available_cores, placement,
};

const PROMPTS: [&str; 4] = [
    "Q: Mia has 3 boxes with 12 pencils each. She gives 7 pencils away. How many pencils are left?",
    "def is_prime(n):\n    \"\"\"Whether n is a prime number.\"\"\"",
    "Find the sum of all positive integers less than 50 that are divisible by 7.",
    "Summarize: The city council met on Monday to decide about the new bridge.",
];

/// The result of generating with both modes.
pub struct Generated {
    /// The directory of the target, to scan the texts with.
    pub model_dir: PathBuf,
    /// The file of the generated traces.
    pub traces: PathBuf,
    /// Whether PEARL generated the same tokens as plain decoding.
    pub same: bool,
    /// The summary to print.
    pub summary: String,
    /// The summary as JSON.
    pub json: Value,
}

/// Writes the pair into `dir` and generates with it.
pub fn run(dir: &Path, compute: ComputeArgs, output: Output) -> Result<Generated> {
    let models = trained_pair(dir)?;
    let options = |dir: &Path| ModelOptions::new(dir.display().to_string()).cpu(compute.options());
    let plain = Pair::open(options(&models.target), None)?;
    let pearl = Pair::open(options(&models.target), Some(options(&models.draft)))?;
    let plain = decode(&plain, compute, output)?;
    let pearl = decode(&pearl, compute, output)?;

    let tokens = |decoded: &DecodedTexts| {
        decoded.texts.iter().map(|text| text.tokens.clone()).collect::<Vec<_>>()
    };
    let same = tokens(&plain) == tokens(&pearl);
    let origin = Origin { model: "the built-in target".to_owned(), ..pearl.origin.clone() };
    let traces = dir.join("traces.jsonl");
    let mut file = TraceFile::create(
        &traces,
        TraceLine { origin, params: params(), watch: None, suppress: None },
    )?;
    pearl.texts.iter().try_for_each(|text| file.push(text))?;

    let decoding = pearl.decoding();
    let agreement = match same {
        true => "exactly the tokens of plain decoding",
        false => "OTHER tokens than plain decoding",
    };
    let summary = format!(
        "A small trained model wrote {} with PEARL and a draft model: {agreement}.\n{}\n",
        fathom_report::plural(pearl.texts.len(), "text"),
        decoding.summary(),
    );
    let json = json!({ "same_as_plain": same, "metrics": decoding.to_json() });
    Ok(Generated { model_dir: models.target, traces, same, summary, json })
}

fn params() -> SamplingParams {
    SamplingParams { max_tokens: 96, ..SamplingParams::default() }
}

/// The texts of one decoding mode, in the order of the prompts.
struct DecodedTexts {
    origin: Origin,
    texts: Vec<Generation>,
    metrics: EngineMetrics,
    seconds: f64,
}

impl DecodedTexts {
    fn decoding(&self) -> Decoding<'_> {
        let mat = self.texts.iter().map(|text| text.mat).sum::<f64>() / self.texts.len() as f64;
        Decoding {
            metrics: &self.metrics,
            texts: self.texts.len(),
            mat: Some(mat),
            seconds: self.seconds,
            placement: None,
        }
    }
}

/// Generates the texts: plain decoding without a draft, PEARL with one.
fn decode(pair: &Pair, compute: ComputeArgs, output: Output) -> Result<DecodedTexts> {
    let cores = compute.threads.map_or_else(available_cores, usize::from);
    let options = GenerateOptions {
        batch_size: PROMPTS.len(),
        placement: placement(cores, None, None, false),
        ..GenerateOptions::default()
    };
    let tasks = Prompts::new(PROMPTS, pair, &options)?.tasks(1);
    let mut bar = LoadingBar::new(output);
    let engine = pair.start(&options, &mut |done, layers| bar.show(done, layers))?;
    drop(bar);
    let origin = engine.origin().clone();
    let mut generator = engine.run(tasks, params());
    let start = Instant::now();
    let mut texts = Vec::new();
    while generator.pending() > 0 {
        texts.extend(generator.step()?.into_iter().filter_map(|piece| piece.done));
    }
    let seconds = start.elapsed().as_secs_f64();
    texts.sort_by_key(|text: &Generation| text.task.index);
    Ok(DecodedTexts { origin, texts, metrics: generator.engine().metrics().clone(), seconds })
}
