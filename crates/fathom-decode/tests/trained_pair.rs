//! Greedy texts of a trained pair are the same in every mode, token for token: prompts of four
//! benchmarks, several batch sizes, γ and thread splits, and both precisions.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_backend::Precision;
use fathom_decode::bench::{Batches, BenchProtocol, Plan};
use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::simulate::SpeculationRecord;
use fathom_decode::{GammaLimits, Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    ChatTemplate, RenderOptions, TextEncoder, Tokenizer, Transformer, read_prompts,
};

const TOKENS: usize = 32;
const MODES: [ModeChoice; 5] = [
    ModeChoice::Always(Mode::Sd),
    ModeChoice::Always(Mode::Pearl),
    ModeChoice::Always(Mode::Forked),
    ModeChoice::Always(Mode::Suffix),
    ModeChoice::Auto,
];
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn load(name: &str, precision: Precision, threads: usize) -> Transformer<Cpu> {
    let options = CpuOptions { threads: Some(threads), precision, isa: None };
    // Co-running models use one thread each.
    let cpu = Cpu::new(options).unwrap().with_co_running_threads(1).unwrap();
    Transformer::load(&fixture("models").join(name), cpu).unwrap()
}

/// Token ids of short prompts of all benchmarks, alternating, and of two long ones.
fn prompts() -> Vec<Vec<u32>> {
    let dir = fixture("models/draft");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let template = ChatTemplate::from_dir(&dir).unwrap();
    let encoder = TextEncoder {
        tokenizer: Some(&tokenizer),
        template: template.as_ref(),
        render: RenderOptions::default(),
        vocab_size: tokenizer.vocab_size(),
    };
    let of = |name: &str, count: usize| -> Vec<Vec<u32>> {
        let prompts = read_prompts(&fixture("prompts").join(name)).unwrap();
        prompts.iter().take(count).map(|prompt| prompt.token_ids(&encoder).unwrap()).collect()
    };
    let [aime, code, news, math] =
        [of("AIME.jsonl", 6), of("HumanEval.jsonl", 6), of("CNNDM.jsonl", 3), of("GSM8K.jsonl", 1)];
    let mut prompts = Vec::new();
    for i in 0..6 {
        let each = [&aime, &code, &news, &math].into_iter().filter_map(|list| list.get(i));
        prompts.extend(each.cloned());
    }
    prompts
}

struct Pair {
    precision: Precision,
    target_threads: usize,
    draft_threads: usize,
    vocab: usize,
}

impl Pair {
    fn engine(&self, draft: &str, mode: ModeChoice, gamma: Gamma, batch: usize) -> Engine<Cpu> {
        let target = load("draft", self.precision, self.target_threads);
        let draft = load(draft, self.precision, self.draft_threads);
        let options = EngineOptions {
            mode,
            gamma,
            batch_size: batch,
            kv_pages: 1_000,
            vocab: self.vocab,
            prefix_cache: true,
        };
        Engine::new(target, Some(draft), options).unwrap()
    }
}

/// The texts of all prompts.
fn texts(engine: &mut Engine<Cpu>, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    texts_with(engine, prompts, |_| SamplingParams {
        max_tokens: TOKENS,
        ..SamplingParams::default()
    })
}

/// The texts of all prompts, each with its own parameters.
fn texts_with(
    engine: &mut Engine<Cpu>,
    prompts: &[Vec<u32>],
    params: impl Fn(usize) -> SamplingParams,
) -> Vec<Vec<u32>> {
    let eos: Arc<[u32]> = vec![2].into();
    for (id, prompt) in (0..).zip(prompts) {
        let params = params(id as usize);
        let (prompt, eos) = (prompt.clone(), Arc::clone(&eos));
        engine.submit(Request::new(id, prompt, params, eos)).unwrap();
    }
    let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            texts.entry(update.request).or_default().extend(update.tokens);
        }
    }
    (0..prompts.len() as u64).map(|id| texts.remove(&id).unwrap()).collect()
}

#[test]
fn every_mode_gives_the_text_of_plain_decoding() {
    let prompts = prompts();
    assert_eq!(prompts.len(), 16);
    let vocab = Tokenizer::from_dir(&fixture("models/draft")).unwrap().vocab_size();
    for precision in PRECISIONS {
        let alone = Pair { precision, target_threads: 1, draft_threads: 1, vocab };
        let ar = ModeChoice::Always(Mode::Ar);
        let mut plain = alone.engine("draft-weak", ar, Gamma::Fixed(1), 1);
        let expected = texts(&mut plain, &prompts);
        assert!(expected.iter().filter(|text| text.len() == TOKENS).count() > 8);

        let adaptive = Gamma::Adaptive(GammaLimits::default());
        let gammas = [1, 2, 5, 9].map(Gamma::Fixed).into_iter().chain([adaptive]);
        let mut round = 0;
        for gamma in gammas {
            for mode in MODES {
                // All prompts in one batch; different subsets in smaller batches.
                for (batch, count) in [(1, 2), (4, 6), (16, 16)] {
                    let (target_threads, draft_threads) = [(1, 1), (2, 1), (1, 2)][round % 3];
                    let pair = Pair { precision, target_threads, draft_threads, vocab };
                    let first = (round * 5) % (prompts.len() - count + 1);
                    round += 1;
                    let mut engine = pair.engine("draft-weak", mode, gamma, batch);
                    let chosen = first..first + count;
                    assert_eq!(
                        texts(&mut engine, &prompts[chosen.clone()]),
                        expected[chosen],
                        "{mode:?} {gamma:?} batch {batch} {precision:?} \
                         threads {target_threads}+{draft_threads}"
                    );
                }
            }
        }
    }
}

/// Measured acceptance is 1 if the draft is the target, and lower for another draft.
#[test]
fn a_draft_that_is_the_target_is_always_accepted() {
    let prompts = &prompts()[..4];
    let vocab = Tokenizer::from_dir(&fixture("models/draft")).unwrap().vocab_size();
    for precision in PRECISIONS {
        let pair = Pair { precision, target_threads: 1, draft_threads: 1, vocab };
        for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
            let mode = ModeChoice::Always(mode);
            let rate = |draft| {
                let mut engine = pair.engine(draft, mode, Gamma::Fixed(4), 4);
                texts(&mut engine, prompts);
                engine.metrics().acceptance.rate().unwrap()
            };
            assert_eq!(rate("draft"), 1.0);
            let weak = rate("draft-weak");
            assert!((0.1..0.95).contains(&weak), "{weak}");
        }
    }
}

/// Different penalties for every prompt. Every fifth prompt has none and is decoded in the same
/// batch.
fn penalties(prompt: usize) -> SamplingParams {
    let random =
        |what: u32, below: u32| philox4x32([prompt as u32, what, 0, 0], [6, 28])[0] % below;
    let choose = |what: u32, values: &[f32]| values[random(what, values.len() as u32) as usize];
    let plain = SamplingParams { max_tokens: 24, ..SamplingParams::default() };
    if prompt % 5 == 4 {
        return plain;
    }
    let bias =
        (0..random(0, 4)).map(|i| (random(10 + i, 200), choose(20 + i, &[-100.0, -2.0, 3.0])));
    SamplingParams {
        repetition_penalty: choose(1, &[1.0, 1.1, 1.5, 0.9]),
        presence_penalty: choose(2, &[0.0, 0.6, 2.0, -0.5]),
        frequency_penalty: choose(3, &[0.0, 0.3, 1.5]),
        logit_bias: bias.collect(),
        min_tokens: random(4, 3) as usize * 8,
        stop_token_ids: (0..random(5, 3)).map(|i| random(30 + i, 200)).collect(),
        ..plain
    }
}

/// Greedy texts with penalties, bias, stop tokens and min-tokens, different for every text of a
/// batch, are those of plain decoding.
#[test]
fn penalised_texts_are_those_of_plain_decoding() {
    let prompts: Vec<_> = prompts().into_iter().filter(|prompt| prompt.len() < 200).collect();
    assert!(prompts.len() >= 10);
    let vocab = Tokenizer::from_dir(&fixture("models/draft")).unwrap().vocab_size();
    let precision = Precision::F32;
    let pair = Pair { precision, target_threads: 1, draft_threads: 1, vocab };
    let mut plain = pair.engine("draft-weak", ModeChoice::Always(Mode::Ar), Gamma::Fixed(1), 1);
    let expected = texts_with(&mut plain, &prompts, penalties);
    let unpenalised = texts(&mut plain, &prompts);
    let changed = expected.iter().zip(&unpenalised).filter(|(own, usual)| !usual.starts_with(own));
    assert!(changed.count() >= 6);
    for (round, gamma) in (1..=8).enumerate() {
        for (turn, mode) in MODES.into_iter().enumerate() {
            let batch = 1 + (round + 2 * turn) % 5;
            let first = (round * 3 + turn) % (prompts.len() - 5);
            let mut engine = pair.engine("draft-weak", mode, Gamma::Fixed(gamma), batch);
            let own = texts_with(&mut engine, &prompts[first..first + 6], |i| penalties(first + i));
            assert_eq!(own, expected[first..first + 6], "{mode:?} γ={gamma} batch {batch}");
        }
    }
}

/// Draft and target count the same tokens: a draft that is the target is always accepted, in every
/// mode, greedy or sampled.
#[test]
fn a_penalised_draft_that_is_the_target_is_always_accepted() {
    let prompts = &prompts()[..6];
    let vocab = Tokenizer::from_dir(&fixture("models/draft")).unwrap().vocab_size();
    let precision = Precision::F32;
    let pair = Pair { precision, target_threads: 1, draft_threads: 1, vocab };
    for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
        for temperature in [0.0, 0.8] {
            let mut engine = pair.engine("draft", ModeChoice::Always(mode), Gamma::Fixed(4), 3);
            let params = |prompt| SamplingParams { temperature, min_p: 0.02, ..penalties(prompt) };
            texts_with(&mut engine, prompts, params);
            let acceptance = &engine.metrics().acceptance;
            assert_eq!(acceptance.rate(), Some(1.0), "{mode} {temperature}");
        }
    }
}

/// A run's own verdicts give its tokens per step, and those of the other modes and of another γ:
/// whether a greedy draft is accepted depends on the text before it alone.
#[test]
fn recorded_verdicts_give_the_steps_of_other_modes() {
    let prompts = prompts();
    let vocab = Tokenizer::from_dir(&fixture("models/draft")).unwrap().vocab_size();
    let pair = Pair { precision: Precision::F32, target_threads: 1, draft_threads: 1, vocab };
    let measure = |mode: Mode, gamma: usize| {
        let choice = ModeChoice::Always(mode);
        let mut engine = pair.engine("draft-weak", choice, Gamma::Fixed(gamma), 1);
        let plan = Plan {
            batches: Batches::complete(&prompts, 1).unwrap(),
            modes: &[choice],
            protocol: BenchProtocol::Natural { max_tokens: 60, cut_loops: false },
            repeats: 1,
            eos: vec![2].into(),
            free_guesses: false,
        };
        plan.measure(&mut [&mut engine]).unwrap().remove(0).remove(0).remove(0)
    };
    let (pearl, other) = (measure(Mode::Pearl, 3), measure(Mode::Pearl, 6));
    let records: Vec<_> = pearl.records.iter().collect();
    let predicted = |mode, gamma| {
        let gamma = [gamma as f64; 2];
        let predicted = SpeculationRecord::replayed_tokens_per_step(&records, mode, gamma);
        predicted.unwrap().unwrap()
    };
    for (run, gamma) in [(&pearl, 3), (&other, 6)] {
        let error = run.tokens_per_step() / predicted(Mode::Pearl, gamma) - 1.0;
        assert!(error.abs() < 0.01, "γ {gamma}: {error}");
    }
    let error = measure(Mode::Sd, 3).tokens_per_step() / predicted(Mode::Sd, 3) - 1.0;
    // A token of the target's own, after a whole chunk, is judged in `pearl` alone.
    assert!(error.abs() < 0.08, "sd: {error}");
}
