//! The engine on the golden checkpoints: every mode returns the continuations that HuggingFace
//! computed.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_backend::Precision;
use fathom_decode::engine::{Done, Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{Finish, GammaLimits, Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{SyntheticShape, Transformer, write_synthetic};
use serde::Deserialize;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name)
}

fn load(dir: &Path, precision: Precision, threads: usize) -> Transformer<Cpu> {
    let options = CpuOptions { threads: Some(threads), precision, isa: None };
    Transformer::load(dir, Cpu::new(options).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    input_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
}

fn prompts(name: &str) -> Vec<Prompt> {
    let json = std::fs::read_to_string(golden(name).join("reference.json")).unwrap();
    serde_json::from_str::<Reference>(&json).unwrap().prompts
}

fn options(mode: Mode, gamma: usize, vocab: usize) -> EngineOptions {
    EngineOptions {
        mode: ModeChoice::Always(mode),
        gamma: Gamma::Fixed(gamma),
        batch_size: 4,
        kv_pages: 100,
        vocab,
        prefix_cache: true,
    }
}

fn request(id: u64, prompt: &[u32], params: SamplingParams) -> Request {
    Request::new(id, prompt.to_vec(), params, Arc::default())
}

fn length(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens, ..SamplingParams::default() }
}

/// Runs an engine until no request is pending. Returns the texts by request, and how each ended.
fn run(engine: &mut Engine<Cpu>) -> HashMap<u64, (Vec<u32>, Done)> {
    let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut done = HashMap::new();
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            assert!(!update.tokens.is_empty(), "every step adds a token to every running text");
            texts.entry(update.request).or_default().extend(update.tokens);
            if let Some(end) = update.done {
                done.insert(update.request, (texts.remove(&update.request).unwrap(), end));
            }
        }
    }
    assert!(texts.is_empty());
    done
}

/// A draft with other random weights and the same vocabulary: hardly any draft is accepted.
fn unrelated(vocab: usize) -> (tempfile::TempDir, Transformer<Cpu>) {
    let dir = tempfile::tempdir().unwrap();
    let shape = SyntheticShape {
        layers: 1,
        hidden: 32,
        intermediate: 64,
        heads: 2,
        kv_heads: 1,
        vocab,
        tied: true,
    };
    write_synthetic(dir.path(), &shape, 1).unwrap();
    let model = load(dir.path(), Precision::F32, 1);
    (dir, model)
}

/// HuggingFace's greedy continuation, token for token: every prompt of every family in one batch,
/// all modes, and drafts that are accepted always, mostly and hardly ever. `phi4-mini` crosses a
/// change of rotary factors while drafting, `mistral` its sliding window.
#[test]
fn every_mode_continues_as_huggingface_does() {
    for name in ["llama2", "llama3.2", "mistral", "phi4-mini", "qwen3", "qwen2-yarn"] {
        let prompts = prompts(name);
        let vocab = load(&golden(name), Precision::F32, 1).config().vocab;
        for (mode, gamma) in [
            (Mode::Ar, 1),
            (Mode::Sd, 1),
            (Mode::Sd, 4),
            (Mode::Pearl, 1),
            (Mode::Pearl, 2),
            (Mode::Pearl, 5),
            (Mode::Forked, 1),
            (Mode::Forked, 4),
            (Mode::Suffix, 4),
        ] {
            for draft in ["itself", "rounded", "unrelated"] {
                let target = load(&golden(name), Precision::F32, 1);
                let mut keep = None;
                let draft_model = match draft {
                    "itself" => load(&golden(name), Precision::F32, 1),
                    "rounded" => load(&golden(name), Precision::Bf16, 1),
                    _ => {
                        let (dir, model) = unrelated(vocab);
                        keep = Some(dir);
                        model
                    }
                };
                let mut engine =
                    Engine::new(target, Some(draft_model), options(mode, gamma, vocab)).unwrap();
                for (id, prompt) in (0..).zip(&prompts) {
                    engine.submit(request(id, &prompt.input_ids, length(24))).unwrap();
                }
                let texts = run(&mut engine);
                for (id, prompt) in (0..).zip(&prompts) {
                    let (text, done) = &texts[&id];
                    assert_eq!(text, &prompt.greedy_ids, "{name} {id} {mode} γ={gamma} {draft}");
                    assert_eq!(done.finish, Finish::Length);
                }
                let acceptance = engine.metrics().acceptance.rate();
                match (mode, draft) {
                    (Mode::Ar, _) => assert_eq!(acceptance, None),
                    (Mode::Suffix, _) => {}
                    (_, "itself") => assert_eq!(acceptance, Some(1.0), "{name} {mode} γ={gamma}"),
                    (_, "unrelated") => assert!(acceptance < Some(0.5)),
                    _ => {}
                }
                drop(keep);
            }
        }
    }
}

/// A request's text does not depend on the batch: random prompts, lengths, sampling parameters and
/// cancellations, in a small batch with caches so small that requests are preempted, compared with
/// each request alone.
#[test]
fn a_request_in_a_batch_has_the_text_it_has_alone() {
    compare_batched_with_alone(200, |_, params| params);
}

/// With penalties, bias, stop tokens and min-tokens for every second request: token counts are per
/// request and survive preemption.
#[test]
fn a_penalised_request_in_a_batch_has_the_text_it_has_alone() {
    compare_batched_with_alone(100, |id, params| {
        if id % 2 == 0 {
            return params;
        }
        let choose = |what, values: &[f32]| values[random(id, what, values.len() as u32) as usize];
        SamplingParams {
            min_p: choose(6, &[0.0, 0.02]),
            repetition_penalty: choose(7, &[1.0, 1.2, 2.0]),
            presence_penalty: choose(8, &[0.0, 1.0]),
            frequency_penalty: choose(9, &[0.0, 0.5, -0.2]),
            logit_bias: [(random(id, 10, 128), 2.0), (random(id, 11, 128), -9.0)].into(),
            min_tokens: random(id, 12, 2) as usize * params.max_tokens / 2,
            stop_token_ids: vec![random(id, 13, 128), random(id, 14, 128)],
            ..params
        }
    });
}

/// A number below `below`, keyed by the request.
fn random(id: u64, what: u32, below: u32) -> u32 {
    philox4x32([id as u32, what, 0, 0], [9, 9])[0] % below
}

fn compare_batched_with_alone(requests: u64, more: impl Fn(u64, SamplingParams) -> SamplingParams) {
    let name = "qwen2";
    let vocab = load(&golden(name), Precision::Bf16, 1).config().vocab;
    let make = |id: u64| {
        let prompt: Vec<u32> =
            (0..1 + random(id, 0, 140)).map(|i| random(id, 100 + i, vocab as u32)).collect();
        let params = SamplingParams {
            temperature: [0.0, 0.0, 0.7, 1.5][random(id, 1, 4) as usize],
            top_k: [0, 0, 10][random(id, 2, 3) as usize],
            top_p: [1.0, 1.0, 0.9][random(id, 3, 3) as usize],
            seed: 5,
            max_tokens: 1 + random(id, 4, 60) as usize,
            ..SamplingParams::default()
        };
        let eos: Arc<[u32]> = (0..vocab as u32).filter(|token| token % 40 == 7).collect();
        Request::new(id, prompt, more(id, params), eos)
    };
    let cancelled = |id: u64| random(id, 5, 8) == 0;
    let engine = |mode, batch_size, kv_pages| {
        let target = load(&golden(name), Precision::Bf16, 1);
        let draft = load(&golden(name), Precision::F32, 1);
        let options = EngineOptions { batch_size, kv_pages, ..options(mode, 3, vocab) };
        Engine::new(target, Some(draft), options).unwrap()
    };
    for mode in Mode::ALL {
        let mut alone = engine(mode, 1, 100);
        (0..requests).for_each(|id| _ = alone.submit(make(id)).unwrap());
        let alone = run(&mut alone);

        let mut batched = engine(mode, 5, 6);
        let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut tickets = Vec::new();
        let mut finished = 0;
        for step in 0.. {
            if step < requests {
                tickets.push(batched.submit(make(step)).unwrap());
            }
            if let Some(id) = u64::checked_sub(step, 7).filter(|&id| id < requests && cancelled(id))
            {
                batched.cancel(tickets[id as usize]);
            }
            for update in batched.step().unwrap() {
                texts.entry(update.request).or_default().extend(update.tokens);
                if let Some(done) = update.done {
                    let (text, alone) = &alone[&update.request];
                    assert_eq!(&texts[&update.request], text, "{mode} {}", update.request);
                    assert_eq!(done.finish, alone.finish);
                    finished += 1;
                }
            }
            if step >= requests && batched.pending() == 0 {
                break;
            }
        }
        let kept = (0..requests).filter(|&id| !cancelled(id)).count();
        assert!(finished >= kept && finished < requests as usize, "{finished}");
        assert!(batched.metrics().preemptions > 0, "the caches should be too small");
    }
}

/// Adaptive γ and `auto` give the greedy text, independent of their measurements.
#[test]
fn adaptive_planning_does_not_change_the_text() {
    let name = "llama3.2";
    let prompts = prompts(name);
    let vocab = load(&golden(name), Precision::F32, 1).config().vocab;
    let modes = [Mode::Pearl, Mode::Forked, Mode::Sd, Mode::Suffix].map(ModeChoice::Always);
    for mode in modes.into_iter().chain([ModeChoice::Auto]) {
        let options = EngineOptions {
            mode,
            gamma: Gamma::Adaptive(GammaLimits::default()),
            ..options(Mode::Ar, 1, vocab)
        };
        let target = load(&golden(name), Precision::F32, 1);
        let draft = load(&golden(name), Precision::Bf16, 1);
        let mut engine = Engine::new(target, Some(draft), options).unwrap();
        for (id, prompt) in (0..).zip(&prompts) {
            engine.submit(request(id, &prompt.input_ids, length(24))).unwrap();
        }
        let texts = run(&mut engine);
        for (id, prompt) in (0..).zip(&prompts) {
            assert_eq!(texts[&id].0, prompt.greedy_ids, "{mode:?} {id}");
        }
    }
}

/// What a benchmark does: some steps in one mode, a rewind to the prompts, then another mode.
#[test]
fn rewound_texts_are_decoded_as_if_for_the_first_time() {
    for name in ["llama3.2", "phi4-mini"] {
        let prompts = prompts(name);
        let target = load(&golden(name), Precision::F32, 1);
        let draft = load(&golden(name), Precision::Bf16, 1);
        let vocab = target.config().vocab;
        let mut engine = Engine::new(target, Some(draft), options(Mode::Pearl, 3, vocab)).unwrap();
        for (id, prompt) in (0..).zip(&prompts) {
            engine.submit(request(id, &prompt.input_ids, length(24))).unwrap();
        }
        engine.prefill().unwrap();
        for mode in [Mode::Pearl, Mode::Ar, Mode::Sd, Mode::Pearl] {
            engine.set_mode(ModeChoice::Always(mode)).unwrap();
            for _ in 0..4 {
                assert!(engine.step().unwrap().iter().all(|update| update.done.is_none()));
            }
            engine.rewind().unwrap();
        }
        let texts = run(&mut engine);
        for (id, prompt) in (0..).zip(&prompts) {
            assert_eq!(texts[&id].0, prompt.greedy_ids, "{name} {id}");
        }
    }
}

#[test]
fn invalid_requests_and_options_are_refused_in_a_sentence() {
    let name = "phi4-mini";
    let model = || load(&golden(name), Precision::F32, 1);
    let (vocab, context) = {
        let model = model();
        (model.config().vocab, model.config().max_position_embeddings)
    };
    let refused = |options, draft: bool| {
        Engine::<Cpu>::new(model(), draft.then(model), options).err().unwrap().to_string()
    };
    let good = options(Mode::Pearl, 4, vocab);
    assert!(refused(EngineOptions { gamma: Gamma::Fixed(0), ..good }, true).contains("gamma is 0"));
    assert!(refused(EngineOptions { batch_size: 0, ..good }, true).contains("batch-size is 0"));
    assert!(refused(EngineOptions { vocab: vocab + 1, ..good }, true).contains("expected at most"));
    assert!(refused(good, false).contains("needs a draft model"));

    let mut engine = Engine::new(model(), None, options(Mode::Ar, 1, vocab)).unwrap();
    let mut refused =
        |prompt: &[u32], params| engine.submit(request(7, prompt, params)).unwrap_err().to_string();
    assert!(refused(&[], length(5)).contains("prompt of request 7 is empty"));
    assert!(refused(&vec![1; context], length(5)).contains("tokens; expected fewer than"));
    assert!(refused(&[vocab as u32], length(5)).contains("ids below"));
    assert!(refused(&[1], length(0)).contains("max-tokens is 0"));
    let params = SamplingParams { stop: vec!["x".to_owned()], ..length(5) };
    assert!(refused(&[1], params).contains("stop strings"));
    assert_eq!(engine.pending(), 0);
}

/// Neither texts nor drafts exceed the models' context.
#[test]
fn a_text_ends_at_the_context() {
    let name = "phi4-mini";
    let target = load(&golden(name), Precision::F32, 1);
    let (vocab, context) = (target.config().vocab, target.config().max_position_embeddings);
    let draft = load(&golden(name), Precision::F32, 1);
    let mut engine = Engine::new(target, Some(draft), options(Mode::Pearl, 6, vocab)).unwrap();
    engine.submit(request(0, &vec![3; context - 9], length(500))).unwrap();
    let texts = run(&mut engine);
    assert_eq!((texts[&0].0.len(), texts[&0].1.finish), (9, Finish::Length));
}
