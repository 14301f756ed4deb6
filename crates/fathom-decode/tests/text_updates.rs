//! Streaming text from an engine on its own thread equals the decoded token ids up to a stop
//! string.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fathom_decode::engine::{
    Done, Engine, EngineHandle, EngineOptions, Gamma, ModeChoice, Request,
};
use fathom_decode::generation::{Generator, Task, TextUpdate, TextUpdates};
use fathom_decode::{Finish, Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{PromptContent, Result, Tokenizer, Transformer};

const PROMPTS: [&str; 4] = [
    "Q: Mia has 3 boxes with 12 pencils each. She gives 7 pencils away.",
    "def is_prime(n):\n    \"\"\"Whether n is a prime number.\"\"\"",
    "Find the sum of all positive integers less than 50 that are divisible by 7.",
    "Ä, é, 世界 and 👩\u{200d}👧:",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(&fixture("draft")).unwrap()
}

fn engine(mode: Mode) -> Engine<Cpu> {
    let load = |name| {
        let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        Transformer::load(&fixture(name), Cpu::new(options).unwrap()).unwrap()
    };
    let (mode, gamma) = (ModeChoice::Always(mode), Gamma::Fixed(4));
    let vocab = tokenizer().vocab_size();
    let options =
        EngineOptions { mode, gamma, batch_size: 4, kv_pages: 100, vocab, prefix_cache: true };
    Engine::new(load("draft"), Some(load("draft-weak")), options).unwrap()
}

fn request(tokenizer: &Tokenizer, prompt: usize, params: &SamplingParams) -> Request {
    let ids = tokenizer.encode(PROMPTS[prompt], false).unwrap();
    Request::new(prompt as u64, ids, params.clone(), vec![2].into())
}

/// A high temperature, so that many characters are spread over several tokens.
fn hot() -> SamplingParams {
    SamplingParams { temperature: 1.5, seed: 3, max_tokens: 120, ..SamplingParams::default() }
}

/// Text, tokens and end of a whole request.
fn all(updates: impl Iterator<Item = Result<TextUpdate>>) -> (String, Vec<u32>, Option<Done>) {
    let (mut text, mut tokens, mut end) = (String::new(), Vec::new(), None);
    for update in updates {
        let update = update.unwrap();
        assert!(end.is_none(), "nothing comes after the end");
        text += &update.text;
        tokens.extend(update.tokens);
        end = update.done;
    }
    (text, tokens, end)
}

/// Concurrent requests, greedy and sampled, have the texts of a [`Generator`], which drives an
/// engine itself.
#[test]
fn texts_are_those_of_a_generator() {
    let tokenizer = tokenizer();
    let greedy = SamplingParams { max_tokens: 60, ..SamplingParams::default() };
    for params in [greedy, hot(), SamplingParams { stop: vec!["e".into(), "\n\n".into()], ..hot() }]
    {
        let prompts = PROMPTS.iter().map(|&prompt| {
            (PromptContent::Text(prompt.to_owned()), tokenizer.encode(prompt, false).unwrap())
        });
        let tasks = Task::list(prompts.collect(), 1);
        let mut generator =
            Generator::new(engine(Mode::Pearl), &tokenizer, params.clone(), &[2], tasks);
        let mut expected = Vec::new();
        while generator.pending() > 0 {
            expected.extend(generator.step().unwrap().into_iter().filter_map(|piece| piece.done));
        }
        expected.sort_by_key(|generation| generation.task.index);

        let engine = engine(Mode::Pearl).spawn().unwrap();
        let submit = |prompt| {
            TextUpdates::submit(&engine, &tokenizer, request(&tokenizer, prompt, &params)).unwrap()
        };
        let open: Vec<_> = (0..PROMPTS.len()).map(submit).collect();
        for (updates, generation) in open.into_iter().zip(&expected) {
            let (text, tokens, end) = all(updates);
            let end = end.unwrap();
            assert_eq!(text, generation.output);
            assert_eq!(tokens, generation.tokens);
            assert_eq!((end.finish, end.mat), (generation.finish, generation.mat));
            if end.finish == Finish::Length {
                assert_eq!(text, tokenizer.decode(&tokens).unwrap());
            }
        }
    }
}

/// The whole text of the first prompt.
fn whole(engine: &EngineHandle, tokenizer: &Tokenizer, params: &SamplingParams) -> String {
    all(TextUpdates::submit(engine, tokenizer, request(tokenizer, 0, params)).unwrap()).0
}

/// The text ends before a stop string that spans tokens, and no prefix of it is returned. Within
/// `min_tokens` it is ignored.
#[test]
fn a_stop_string_ends_the_text_before_it() {
    let tokenizer = tokenizer();
    let engine = engine(Mode::Sd).spawn().unwrap();
    let params = SamplingParams { max_tokens: 60, ..SamplingParams::default() };
    let text = whole(&engine, &tokenizer, &params);
    let words: Vec<&str> = text.split_inclusive(' ').collect();
    let stop = words[4..6].concat();
    let at = text.find(&stop).unwrap();
    let stopped = SamplingParams { stop: vec![stop.clone()], ..params.clone() };
    let updates =
        TextUpdates::submit(&engine, &tokenizer, request(&tokenizer, 0, &stopped)).unwrap();
    let (cut, tokens, end) = all(updates);
    assert_eq!((cut.as_str(), end.unwrap().finish), (&text[..at], Finish::Stop));
    assert!(tokenizer.decode(&tokens).unwrap().contains(&stop));
    let late = SamplingParams { min_tokens: tokens.len(), ..stopped };
    assert!(whole(&engine, &tokenizer, &late).starts_with(&text[..at + stop.len()]));
}

#[test]
fn a_text_can_be_cancelled_and_polled_without_waiting() {
    let tokenizer = tokenizer();
    let engine = engine(Mode::Pearl).spawn().unwrap();
    let params = SamplingParams { max_tokens: 3000, ignore_eos: true, ..SamplingParams::default() };
    let submit =
        || TextUpdates::submit(&engine, &tokenizer, request(&tokenizer, 0, &params)).unwrap();
    let mut updates = submit();
    let first = updates.next_timeout(Duration::from_secs(60)).unwrap().unwrap();
    assert!(!first.tokens.is_empty() && first.done.is_none());
    while updates.try_next().unwrap().is_none() {
        std::thread::yield_now();
    }
    updates.cancel();
    assert!(updates.next().is_none() && updates.has_ended());
    let elsewhere = submit();
    elsewhere.canceller().cancel();
    assert!(all(elsewhere).2.is_none());
    drop(submit());
    engine.drain().unwrap();
    assert_eq!(engine.metrics().cancelled, 3);
    let eos: Arc<[u32]> = Arc::default();
    let late = Request::new(0, vec![5], params, eos);
    assert!(TextUpdates::submit(&engine, &tokenizer, late).is_err());
}
