//! Many requests with random lengths, sampling parameters and cancellations, in large batches with
//! small caches: every finished text is the one its request has when decoded alone, and no thread
//! or memory leaks.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_backend::Precision;
use fathom_decode::engine::{Done, Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{GammaLimits, Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Transformer;

const BATCH: usize = 32;
/// Less than a full batch needs: requests are preempted all the time.
const KV_PAGES: usize = 28;

fn model(precision: Precision) -> Transformer<Cpu> {
    let dir: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let options = CpuOptions { threads: Some(1), precision, isa: None };
    Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap()
}

fn engine(mode: ModeChoice, batch_size: usize, kv_pages: usize) -> Engine<Cpu> {
    let (target, draft) = (model(Precision::Bf16), model(Precision::F32));
    let vocab = target.config().vocab;
    let gamma = Gamma::Adaptive(GammaLimits { start: 2, max: 5 });
    let options = EngineOptions { mode, gamma, batch_size, kv_pages, vocab, prefix_cache: true };
    Engine::new(target, Some(draft), options).unwrap()
}

/// A number below `below`, keyed by the request.
fn random(id: u64, what: u32, below: u32) -> u32 {
    philox4x32([id as u32, what, 0, 0], [4, 2])[0] % below
}

/// `greedy`: temperature 0, so that the text does not depend on the mode.
fn request(id: u64, greedy: bool) -> Request {
    let vocab = 128;
    let prompt = (0..1 + random(id, 0, 140)).map(|i| random(id, 100 + i, vocab)).collect();
    let temperature = [0.0, 0.0, 0.8, 1.5][random(id, 1, 4) as usize];
    let params = SamplingParams {
        temperature: if greedy { 0.0 } else { temperature },
        top_k: [0, 0, 10][random(id, 2, 3) as usize],
        top_p: [1.0, 1.0, 0.9][random(id, 3, 3) as usize],
        seed: 11,
        max_tokens: 1 + random(id, 4, 80) as usize,
        ..SamplingParams::default()
    };
    let eos: Arc<[u32]> = (0..vocab).filter(|token| token % 60 == 7).collect();
    Request::new(id, prompt, params, eos)
}

fn is_cancelled(id: u64) -> bool {
    random(id, 5, 8) == 0
}

/// The texts of `requests` requests: `joining` are submitted at each step, and some are cancelled a
/// few steps later.
fn texts(
    engine: &mut Engine<Cpu>,
    requests: u64,
    greedy: bool,
    joining: u64,
    mut every_step: impl FnMut(u64),
) -> HashMap<u64, (Vec<u32>, Done)> {
    let mut open: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut ended = HashMap::new();
    let mut tickets = Vec::new();
    let mut submitted = 0;
    for step in 0.. {
        let joined = (submitted + joining).min(requests);
        tickets.extend((submitted..joined).map(|id| engine.submit(request(id, greedy)).unwrap()));
        submitted = joined;
        if joining > 1 {
            let late = (step * joining).saturating_sub(9 * joining);
            let cancelled = (late..late + joining).filter(|id| is_cancelled(*id));
            cancelled.filter_map(|id| tickets.get(id as usize)).for_each(|id| engine.cancel(*id));
        }
        for update in engine.step().unwrap() {
            open.entry(update.request).or_default().extend(update.tokens);
            if let Some(done) = update.done {
                ended.insert(update.request, (open.remove(&update.request).unwrap(), done));
            }
        }
        every_step(step);
        if submitted == requests && engine.pending() == 0 {
            return ended;
        }
    }
    unreachable!("the loop ends with the requests")
}

fn soak(requests: u64, mode: ModeChoice, greedy: bool) {
    let threads = thread_count();
    // Greedy texts do not depend on the mode: the reference is plain decoding.
    let solo_mode = if greedy { ModeChoice::Always(Mode::Ar) } else { mode };
    let alone = texts(&mut engine(solo_mode, 1, 100), requests, greedy, 1, |_| {});
    assert_eq!(alone.len() as u64, requests);

    let mut batched = engine(mode, BATCH, KV_PAGES);
    let mut early = None;
    let mut late = None;
    let ended = texts(&mut batched, requests, greedy, 5, |step| {
        late = resident_bytes();
        if step == 50 {
            early = late;
        }
    });
    let kept = (0..requests).filter(|id| !is_cancelled(*id)).count();
    assert!(ended.len() >= kept && ended.len() < requests as usize, "{} ended", ended.len());
    for (id, (text, done)) in &ended {
        assert_eq!(
            (text, done.finish),
            (&alone[id].0, alone[id].1.finish),
            "request {id}, {mode:?}"
        );
    }
    let metrics = batched.metrics();
    assert!(metrics.preemptions > 0, "the caches should be too small: {mode:?}");
    assert!(metrics.kv_pages <= KV_PAGES, "{} pages", metrics.kv_pages);
    if let (Some(early), Some(late)) = (early, late) {
        assert!(late < early + (32 << 20), "{early} bytes grew to {late}");
    }
    drop(batched);
    assert_eq!(thread_count(), threads, "a thread leaked");
}

/// Number of threads of this process, on Linux.
fn thread_count() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// Resident memory of this process in bytes, on Linux.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

/// A single test, because it counts the threads of the process.
#[test]
fn no_text_is_lost_and_no_thread_or_memory_leaks() {
    soak(2000, ModeChoice::Always(Mode::Pearl), false);
    soak(600, ModeChoice::Always(Mode::Sd), true);
    soak(600, ModeChoice::Auto, true);
    soak(600, ModeChoice::Always(Mode::Forked), false);
    soak(600, ModeChoice::Always(Mode::Suffix), false);
}
