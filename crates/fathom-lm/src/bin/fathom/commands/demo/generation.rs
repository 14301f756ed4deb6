//! The other half of the demo: text of a small trained pair, by PEARL and plainly.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fathom_decode::engine::{Engine, EngineMetrics, EngineOptions, Gamma, ModeChoice};
use fathom_decode::generation::{Generation, Generator, Origin, Task, TraceFile, TraceLine};
use fathom_decode::{GammaLimits, Mode, SamplingParams, ThreadSplit, shared_vocabulary};
use fathom_kernels::{Backend, Cpu, CpuError};
use fathom_model::{
    ChatTemplate, Error, Model, PromptContent, RenderOptions, Result, TextEncoder, Tokenizer,
};
use fathom_report::Decoding;
use serde_json::{Value, json};

use crate::cli::Output;
use crate::model_args::{self, ComputeArgs};

/// The files of the pair; the tokenizer and its template are the same in both.
macro_rules! pair_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../../../../../tests/fixtures/models/", $name)).as_slice())
    };
}
const FILES: [(&str, &[u8]); 9] = [
    pair_file!("draft/config.json"),
    pair_file!("draft/generation_config.json"),
    pair_file!("draft/model.safetensors"),
    pair_file!("draft/tokenizer.json"),
    pair_file!("draft/tokenizer_config.json"),
    pair_file!("draft/chat_template.jinja"),
    pair_file!("draft-weak/config.json"),
    pair_file!("draft-weak/generation_config.json"),
    pair_file!("draft-weak/model.safetensors"),
];

const PROMPTS: [&str; 4] = [
    "Q: Mia has 3 boxes with 12 pencils each. She gives 7 pencils away. How many pencils are left?",
    "def is_prime(n):\n    \"\"\"Whether n is a prime number.\"\"\"",
    "Find the sum of all positive integers less than 50 that are divisible by 7.",
    "Summarize: The city council met on Monday to decide about the new bridge.",
];

/// What was generated.
pub struct Generated {
    /// The target, for a scan of the texts.
    pub model_dir: PathBuf,
    /// The texts.
    pub traces: PathBuf,
    /// Whether PEARL gave the tokens that plain decoding gave.
    pub same: bool,
    /// What people are told.
    pub summary: String,
    /// The same for programs.
    pub json: Value,
}

/// Writes the pair into `dir` and generates from it.
pub fn run(dir: &Path, compute: ComputeArgs, output: Output) -> Result<Generated> {
    for (name, bytes) in FILES {
        let path = dir.join(name);
        let parent = path.parent().unwrap_or(dir);
        fs::create_dir_all(parent).map_err(Error::io(parent, "cannot be created"))?;
        fs::write(&path, bytes).map_err(Error::io(&path, "cannot be written"))?;
    }
    let (target, draft) = (dir.join("draft"), dir.join("draft-weak"));
    let tokenizer = Tokenizer::from_dir(&target)?;
    let template = ChatTemplate::from_dir(&target)?;
    let target_model = || load(&target, compute, |split| split.target, output);
    let draft_model = load(&draft, compute, |split| split.draft, output)?;
    let template = template.as_ref();
    let plain = decode(target_model()?, None, Mode::Ar, &tokenizer, template)?;
    let pearl = decode(target_model()?, Some(draft_model), Mode::Pearl, &tokenizer, template)?;

    let tokens = |run: &Run| run.texts.iter().map(|text| text.tokens.clone()).collect::<Vec<_>>();
    let same = tokens(&plain) == tokens(&pearl);
    let origin = Origin {
        model: "the built-in target".to_owned(),
        weights: pearl.weights.clone(),
        precision: compute.precision.name().to_owned(),
    };
    let traces = dir.join("traces.jsonl");
    let mut file = TraceFile::create(&traces, TraceLine { origin, params: params() })?;
    pearl.texts.iter().try_for_each(|text| file.push(text))?;

    let decoding = pearl.decoding();
    let agreement = match same {
        true => "the same tokens as plain decoding, every one",
        false => "OTHER tokens than plain decoding",
    };
    let summary = format!(
        "A small trained model wrote {} with PEARL, a smaller one drafting: {agreement}.\n{}\n",
        fathom_report::plural(pearl.texts.len(), "text"),
        decoding.summary(),
    );
    let json = json!({ "same_as_plain": same, "metrics": decoding.to_json() });
    Ok(Generated { model_dir: target, traces, same, summary, json })
}

/// Loads one of the two on all threads, and on its `share` of them while the other works too.
fn load(
    dir: &Path,
    compute: ComputeArgs,
    share: impl Fn(ThreadSplit) -> usize,
    output: Output,
) -> Result<Model<Cpu>> {
    let cpu = compute.backend()?;
    let beside = share(ThreadSplit::new(cpu.threads(), None, None));
    let refuse = |error: CpuError| Error::Request(error.to_string());
    model_args::load_on(dir, cpu.with_threads_beside(beside).map_err(refuse)?, output)
}

fn params() -> SamplingParams {
    SamplingParams { max_tokens: 96, ..SamplingParams::default() }
}

/// Texts of one way of decoding, in the order of the prompts.
struct Run {
    weights: String,
    texts: Vec<Generation>,
    metrics: EngineMetrics,
    seconds: f64,
}

impl Run {
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

fn decode(
    target: Model<Cpu>,
    draft: Option<Model<Cpu>>,
    mode: Mode,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Run> {
    let weights = target.weights_fingerprint().to_owned();
    let eos = target.config().eos_token_ids.clone();
    let name = |id| tokenizer.id_to_token(id);
    let vocab = shared_vocabulary(name, name, u32::try_from(target.config().vocab).unwrap_or(0))?;
    let encoder = TextEncoder {
        tokenizer: Some(tokenizer),
        template,
        render: RenderOptions::default(),
        vocab_size: vocab,
    };
    let prompts = PROMPTS
        .iter()
        .map(|prompt| Ok((PromptContent::Text((*prompt).to_owned()), encoder.prompt_ids(prompt)?)));
    let tasks = Task::list(prompts.collect::<Result<_>>()?, 1);
    let options = EngineOptions {
        mode: ModeChoice::Always(mode),
        gamma: Gamma::Adaptive(GammaLimits::default()),
        batch_size: PROMPTS.len(),
        kv_pages: target.config().max_position_embeddings.div_ceil(Cpu::KV_PAGE),
        vocab,
    };
    let engine = Engine::new(target, draft, options)?;
    let mut generator = Generator::new(engine, tokenizer, params(), &eos, tasks);
    let start = Instant::now();
    let mut texts = Vec::new();
    while generator.pending() > 0 {
        texts.extend(generator.step()?.into_iter().filter_map(|piece| piece.done));
    }
    let seconds = start.elapsed().as_secs_f64();
    texts.sort_by_key(|text| text.task.index);
    Ok(Run { weights, texts, metrics: generator.engine().metrics().clone(), seconds })
}
