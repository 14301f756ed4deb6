//! A long prompt holds up no short one, and short ones do not hold up a long one for ever. Counted
//! in steps, each of which prefills at most one chunk.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{PREFILL_CHUNK, Transformer};

const CHUNKS: usize = 10;
const LONG: usize = CHUNKS * PREFILL_CHUNK;

fn engine(prefix_cache: bool) -> Engine<Cpu> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let target = Transformer::load(&dir, cpu).unwrap();
    let options = EngineOptions {
        mode: ModeChoice::Always(Mode::Ar),
        gamma: Gamma::Fixed(1),
        batch_size: 64,
        kv_pages: 2_000,
        vocab: target.config().vocab,
        prefix_cache,
    };
    Engine::new(target, None, options).unwrap()
}

fn request(id: u64, prompt: usize, max_tokens: usize) -> Request {
    let token = |i| philox4x32([id as u32, i, 0, 0], [2, 8])[0] % 380;
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    Request::new(id, (0..prompt as u32).map(token).collect(), params, Arc::default())
}

#[test]
fn short_prompts_overtake_a_long_one() {
    for prefix_cache in [false, true] {
        let mut engine = engine(prefix_cache);
        engine.submit(request(0, LONG, 5)).unwrap();
        // Another request keeps the engine decoding, so that a step is one chunk.
        engine.submit(request(1, 2, 1_000)).unwrap();
        for _ in 0..3 {
            assert!(engine.step().unwrap().iter().all(|update| update.request == 1));
        }
        (2..6).for_each(|id| _ = engine.submit(request(id, 90, 1)).unwrap());
        let first = engine.step().unwrap();
        let ended: Vec<u64> = first
            .iter()
            .filter(|update| update.done.is_some())
            .map(|update| update.request)
            .collect();
        assert_eq!(ended, [2, 3, 4, 5], "all of them fit beside the long one's share");
        let steps = (1..).find(|_| engine.step().unwrap().iter().any(|update| update.request == 0));
        assert!(steps.unwrap() <= CHUNKS, "{steps:?}");
    }
}

#[test]
fn a_long_prompt_is_not_starved() {
    let mut engine = engine(true);
    engine.submit(request(0, LONG, 5)).unwrap();
    let mut text = Vec::new();
    let (mut id, mut steps) = (0, 0);
    while text.is_empty() {
        // More short prompts than fit in a chunk, all the time.
        while engine.pending() < 8 {
            id += 1;
            engine.submit(request(id, 200, 1)).unwrap();
        }
        for update in engine.step().unwrap().into_iter().filter(|update| update.request == 0) {
            text.extend(update.tokens);
        }
        steps += 1;
        assert!(steps <= 4 * CHUNKS + 1, "a quarter of every chunk is the oldest prompt's");
    }
    assert!(steps > 4 * CHUNKS - 4, "the others get the rest: {steps}");
    while text.len() < 5 {
        let updates = engine.step().unwrap().into_iter();
        text.extend(updates.filter(|update| update.request == 0).flat_map(|update| update.tokens));
    }
    let mut alone = self::engine(false);
    alone.submit(request(0, LONG, 5)).unwrap();
    let mut expected = Vec::new();
    while alone.pending() > 0 {
        expected.extend(alone.step().unwrap().into_iter().flat_map(|update| update.tokens));
    }
    assert_eq!(text, expected);
}

/// A prompt that is cancelled during its prefill stops at the next chunk, also if nothing else
/// runs.
#[test]
fn a_cancelled_prompt_stops_at_the_next_chunk() {
    let handle = engine(true).spawn().unwrap();
    let updates = handle.submit(request(0, 30_000, 5)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while handle.metrics().engine.prefill_tokens == 0 {
        assert!(Instant::now() < deadline, "no chunk was prefilled");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(updates);
    let short = handle.submit(request(1, 10, 3)).unwrap();
    assert_eq!(short.map(|update| update.unwrap().tokens.len()).sum::<usize>(), 3);
    let metrics = handle.metrics();
    assert_eq!((metrics.cancelled, metrics.prefilling, metrics.running), (1, 0, 0));
    assert!(metrics.engine.prefill_tokens < 15_000, "{}", metrics.engine.prefill_tokens);
}
