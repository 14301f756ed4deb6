//! An engine on its own thread, used by many threads at once: every text is the one its request has
//! when decoded alone, and nothing waits forever.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use fathom_backend::Precision;
use fathom_decode::engine::{
    Engine, EngineHandle, EngineOptions, Gamma, HandleMetrics, ModeChoice, Request, RequestUpdates,
    Update,
};
use fathom_decode::{Finish, Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, Result, Transformer};

const VOCAB: u32 = 128;
/// Number of different requests. Many are submitted several times, also concurrently.
const DISTINCT: u64 = 120;
const THREADS: u64 = 8;
/// Requests per mode and thread: 2 016 in total.
const REQUESTS: u64 = 84;
const GAMMA: usize = 3;

fn model(precision: Precision) -> Transformer<Cpu> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let options = CpuOptions { threads: Some(1), precision, isa: None };
    Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap()
}

fn options(mode: Mode, batch_size: usize, kv_pages: usize) -> EngineOptions {
    let (mode, gamma) = (ModeChoice::Always(mode), Gamma::Fixed(GAMMA));
    EngineOptions { mode, gamma, batch_size, kv_pages, vocab: VOCAB as usize, prefix_cache: true }
}

/// The draft is the target in another precision: most drafts are accepted.
fn engine(options: EngineOptions) -> Engine<Cpu> {
    let draft = (options.mode != ModeChoice::Always(Mode::Ar)).then(|| model(Precision::F32));
    Engine::new(model(Precision::Bf16), draft, options).unwrap()
}

fn handle(mode: Mode) -> EngineHandle {
    engine(options(mode, 8, 100)).spawn().unwrap()
}

/// A number below `below`, keyed by the request.
fn random(id: u64, what: u32, below: u32) -> u32 {
    philox4x32([id as u32, what, 0, 0], [14, 2])[0] % below
}

/// Greedy or sampled, with a length, a seed and parameters of its own.
fn request(id: u64) -> Request {
    let prompt = (0..1 + random(id, 0, 140)).map(|i| random(id, 100 + i, VOCAB)).collect();
    let params = SamplingParams {
        temperature: [0.0, 0.7, 1.5][random(id, 1, 3) as usize],
        top_k: [0, 10][random(id, 2, 2) as usize],
        top_p: [1.0, 0.9][random(id, 3, 2) as usize],
        frequency_penalty: [0.0, 0.5][random(id, 4, 2) as usize],
        seed: u64::from(random(id, 5, 1000)),
        max_tokens: 1 + random(id, 6, 60) as usize,
        ..SamplingParams::default()
    };
    let eos: Arc<[u32]> = (0..VOCAB).filter(|token| token % 60 == 7).collect();
    Request::new(id, prompt, params, eos)
}

/// A request without end-of-text tokens: it runs until cancelled or for `max_tokens`.
fn long(id: u64, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    Request::new(id, vec![1, 2, 3], params, Arc::default())
}

/// Texts and finish reasons by request.
type Texts = HashMap<u64, (Vec<u32>, Finish)>;

/// The texts of requests decoded one after the other by an engine driven step by step.
fn alone(mode: Mode, requests: impl Iterator<Item = Request>) -> Texts {
    let mut engine = engine(options(mode, 1, 100));
    requests.for_each(|request| _ = engine.submit(request).unwrap());
    let mut tokens: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut texts = HashMap::new();
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            tokens.entry(update.request).or_default().extend(update.tokens);
            if let Some(done) = update.done {
                let text = tokens.remove(&update.request).unwrap();
                texts.insert(update.request, (text, done.finish));
            }
        }
    }
    texts
}

/// Runs `work` with a time limit.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (outbox, inbox) = channel();
    let thread = thread::spawn(move || drop(outbox.send(work())));
    match inbox.recv_timeout(Duration::from_secs(120)) {
        Ok(result) => result,
        Err(_) if thread.is_finished() => std::panic::resume_unwind(thread.join().unwrap_err()),
        Err(_) => panic!("it hangs"),
    }
}

/// How a test reads a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    ReadToTheEnd,
    CancelledAfter(usize),
    DroppedAfter(usize),
    CancelledElsewhere,
}

fn fate(number: u64) -> Fate {
    let half = random(number, 8, 20) as usize;
    match random(number, 7, 8) {
        0 => Fate::CancelledAfter(half),
        1 => Fate::DroppedAfter(half),
        2 => Fate::CancelledElsewhere,
        _ => Fate::ReadToTheEnd,
    }
}

/// Reads a text by one of three methods, up to `enough` tokens or the end.
fn read(updates: &mut RequestUpdates, method: u32, enough: usize) -> (Vec<u32>, Option<Finish>) {
    let (mut tokens, mut finish) = (Vec::new(), None);
    while tokens.len() < enough && !updates.has_ended() {
        let update = match method {
            0 => updates.next().transpose(),
            1 => updates.next_timeout(Duration::from_millis(1)),
            _ => updates.try_next(),
        };
        match update.unwrap() {
            Some(update) => {
                tokens.extend(update.tokens);
                finish = update.done.map(|done| done.finish);
            }
            None => thread::yield_now(),
        }
    }
    (tokens, finish)
}

/// A client thread: keeps a few requests open and compares their texts. Returns the number of texts
/// read to the end.
fn client(engine: &EngineHandle, thread: u64, expected: &Texts) -> u64 {
    let mut open: VecDeque<(u64, u64, RequestUpdates)> = VecDeque::new();
    let mut whole = 0;
    for number in (0..REQUESTS).map(|n| thread * REQUESTS + n) {
        let id = u64::from(random(number, 6, DISTINCT as u32));
        open.push_back((number, id, engine.submit(request(id)).unwrap()));
        let last = number + 1 == (thread + 1) * REQUESTS;
        while open.len() > if last { 0 } else { 5 } {
            let (number, id, mut updates) = open.pop_front().unwrap();
            let fate = fate(number);
            let enough = match fate {
                Fate::CancelledAfter(enough) | Fate::DroppedAfter(enough) => enough,
                Fate::ReadToTheEnd => usize::MAX,
                Fate::CancelledElsewhere => {
                    let canceller = updates.canceller();
                    thread::spawn(move || canceller.cancel());
                    usize::MAX
                }
            };
            let (tokens, finish) = read(&mut updates, random(number, 9, 3), enough);
            let (text, end) = &expected[&id];
            match finish {
                Some(finish) => assert_eq!((&tokens, finish), (text, *end), "request {id}"),
                None => {
                    assert_ne!(fate, Fate::ReadToTheEnd, "request {id} has no end");
                    assert_eq!(tokens, text[..tokens.len()], "request {id}");
                }
            }
            whole += u64::from(finish.is_some());
            if let Fate::CancelledAfter(_) = fate {
                updates.cancel();
                assert!(updates.next().is_none() && updates.has_ended());
            }
        }
    }
    whole
}

/// Whether every request is counted in exactly one state.
fn accounted(metrics: &HandleMetrics) -> bool {
    let open = metrics.waiting + metrics.prefilling + metrics.running;
    metrics.submitted == open as u64 + metrics.finished + metrics.cancelled + metrics.failed
}

/// The counters, which never decrease.
fn counters(metrics: &HandleMetrics) -> [u64; 6] {
    let engine = &metrics.engine;
    let steps = engine.steps.values().sum::<usize>() as u64;
    [
        metrics.submitted,
        metrics.finished,
        metrics.cancelled,
        metrics.failed,
        engine.tokens as u64,
        steps,
    ]
}

/// Eight threads submit, stream, cancel and drop requests, with caches so small that requests are
/// preempted, while another thread reads the metrics.
#[test]
fn texts_of_many_threads_are_those_of_each_request_alone() {
    let plain = alone(Mode::Ar, (0..DISTINCT).map(request));
    for mode in Mode::ALL {
        let mut expected = plain.clone();
        if mode != Mode::Ar {
            let sampled = (0..DISTINCT).map(request).filter(|r| !r.params.is_greedy());
            expected.extend(alone(mode, sampled));
        }
        in_time(move || {
            let engine = engine(options(mode, 8, 9)).spawn().unwrap();
            let over = AtomicBool::new(false);
            let whole = thread::scope(|scope| {
                scope.spawn(|| {
                    let mut before = counters(&engine.metrics());
                    while !over.load(Ordering::Relaxed) {
                        let metrics = engine.metrics();
                        let now = counters(&metrics);
                        assert!(accounted(&metrics), "{metrics:?}");
                        assert!(before.iter().zip(&now).all(|(b, n)| b <= n), "{before:?} {now:?}");
                        before = now;
                        thread::sleep(Duration::from_micros(200));
                    }
                });
                let client = |thread| {
                    let (engine, expected) = (engine.clone(), &expected);
                    scope.spawn(move || client(&engine, thread, expected))
                };
                let clients: Vec<_> = (0..THREADS).map(client).collect();
                let whole: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
                over.store(true, Ordering::Relaxed);
                whole.into_iter().map(|whole| whole.unwrap()).sum::<u64>()
            });
            engine.drain().unwrap();
            let metrics = engine.metrics();
            assert!(accounted(&metrics), "{metrics:?}");
            assert_eq!(metrics.submitted, THREADS * REQUESTS);
            assert_eq!(metrics.waiting + metrics.prefilling + metrics.running, 0);
            assert_eq!(metrics.failed, 0);
            assert!(metrics.finished >= whole && metrics.cancelled > 50, "{metrics:?}");
            assert!(whole > THREADS * REQUESTS / 2, "{whole} whole texts");
            assert!(metrics.engine.preemptions > 0, "the caches should be too small: {mode}");
        });
    }
}

/// The id only keys the random numbers.
#[test]
fn requests_with_the_same_id_are_distinct() {
    let sampled =
        || (0..DISTINCT).map(request).find(|r| !r.params.is_greedy() && r.params.max_tokens > 20);
    let expected = alone(Mode::Pearl, sampled().into_iter());
    in_time(move || {
        let engine = handle(Mode::Pearl);
        let mut other = sampled().unwrap();
        other.params.seed += 1;
        let mut all: Vec<_> = (0..5).map(|_| engine.submit(sampled().unwrap()).unwrap()).collect();
        let mut other = engine.submit(other).unwrap();
        all[1].cancel();
        all.remove(1);
        for updates in &mut all {
            let (tokens, finish) = read(updates, 0, usize::MAX);
            assert_eq!(expected[&sampled().unwrap().id], (tokens, finish.unwrap()));
        }
        let (tokens, _) = read(&mut other, 0, usize::MAX);
        assert_ne!(expected[&sampled().unwrap().id].0, tokens, "another seed has another text");
    });
}

/// An engine whose thread is blocked in a sink until the sender is dropped, and the updates of that
/// sink's request.
fn held_engine(mode: Mode) -> (EngineHandle, Sender<()>, Receiver<Result<Update>>) {
    let engine = handle(mode);
    let (go, wait) = channel::<()>();
    let (here, arrived) = channel();
    let (outbox, updates) = channel();
    let sink = move |update| {
        here.send(()).unwrap();
        _ = wait.recv(); // until `go` is dropped
        outbox.send(update).is_ok()
    };
    engine.submit_with(long(0, 40), Box::new(sink)).unwrap();
    arrived.recv_timeout(Duration::from_secs(60)).unwrap();
    // Receive the signals of later updates too.
    thread::spawn(move || arrived.iter().count());
    (engine, go, updates)
}

#[test]
fn invalid_requests_are_refused_at_once_while_the_engine_is_busy() {
    in_time(|| {
        let (engine, go, updates) = held_engine(Mode::Pearl);
        let refused = |request| engine.submit(request).unwrap_err().to_string();
        assert!(refused(Request { prompt: vec![], ..long(7, 5) }).contains("request 7 is empty"));
        assert!(refused(Request { prompt: vec![VOCAB], ..long(7, 5) }).contains("ids below 128"));
        assert!(refused(long(7, 0)).contains("max-tokens is 0"));
        let full = Request { prompt: vec![1; 100 * 128], ..long(7, 5) };
        assert!(refused(full).contains("expected fewer than 12800"));
        let params = SamplingParams { stop: vec!["x".to_owned()], ..long(7, 5).params };
        assert!(refused(Request { params, ..long(7, 5) }).contains("stop strings"));
        // Valid requests and the metrics do not wait for the engine either.
        let mut taken = engine.submit(long(8, 10)).unwrap();
        let metrics = engine.metrics();
        assert_eq!((metrics.submitted, metrics.running, metrics.waiting), (2, 1, 1));
        assert!(taken.try_next().unwrap().is_none() && !taken.has_ended());
        drop(go);
        assert_eq!(read(&mut taken, 0, usize::MAX).1, Some(Finish::Length));
        assert!(updates.iter().last().unwrap().unwrap().done.is_some());
    });
}

#[test]
fn a_drained_engine_finishes_its_requests_and_refuses_new_ones() {
    in_time(|| {
        let (engine, go, _updates) = held_engine(Mode::Sd);
        let mut open: Vec<_> = (1..20).map(|id| engine.submit(long(id, 30)).unwrap()).collect();
        let drained = thread::spawn({
            let engine = engine.clone();
            move || engine.drain()
        });
        let refusal = loop {
            match engine.submit(long(99, 5)) {
                Ok(_) => thread::sleep(Duration::from_millis(1)), // not draining yet
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, Error::Stopped(_)));
        assert_eq!(refusal.to_string(), "the engine was drained and takes no more requests");
        assert!(!drained.is_finished(), "requests are open");
        drop(go);
        drained.join().unwrap().unwrap();
        let metrics = engine.metrics();
        assert_eq!(metrics.waiting + metrics.prefilling + metrics.running, 0);
        for updates in &mut open {
            let update = || updates.try_next().unwrap();
            let updates: Vec<Update> = std::iter::from_fn(update).collect();
            assert_eq!(updates.iter().map(|update| update.tokens.len()).sum::<usize>(), 30);
        }
        engine.drain().unwrap(); // a second time
        assert!(engine.submit(long(99, 5)).is_err());
    });
}

/// A request that shares `owner`: its count shows when the engine has been dropped.
fn owning(id: u64, owner: &Arc<()>) -> Request {
    let owner = Arc::clone(owner);
    let stop = move |_| Ok(Arc::strong_count(&owner) == 0); // never
    Request { stop: Some(Box::new(stop)), ..long(id, 100_000) }
}

#[test]
fn dropping_the_last_handle_ends_all_requests_and_the_thread() {
    for mode in Mode::ALL {
        in_time(move || {
            let engine = engine(options(mode, 4, 10_000)).spawn().unwrap();
            let owner = Arc::new(());
            let mut open: Vec<_> =
                (0..9).map(|id| engine.submit(owning(id, &owner)).unwrap()).collect();
            assert!(open[0].next().unwrap().is_ok());
            let canceller = open[1].canceller();
            let other = engine.clone();
            drop(engine);
            assert!(open[0].next().unwrap().is_ok(), "there is another handle");
            drop(other);
            assert_eq!(Arc::strong_count(&owner), 1, "the thread is joined and the engine dropped");
            for updates in &mut open {
                let error = updates.find_map(|update| update.err()).unwrap();
                assert!(matches!(error, Error::Stopped(_)));
                let expected = "the engine has stopped: its last handle was dropped";
                assert_eq!(error.to_string(), expected);
                assert!(updates.next().is_none() && updates.has_ended());
            }
            canceller.cancel();
            drop(open);
        });
    }
}

#[test]
fn an_idle_engine_ends_too() {
    in_time(|| drop(handle(Mode::Pearl)));
}

/// The engine's thread must not join itself.
#[test]
fn a_sink_may_own_the_last_handle() {
    let (outbox, ended) = channel();
    in_time(move || {
        let engine = handle(Mode::Pearl);
        let owned = engine.clone();
        let owner = Arc::new(outbox);
        let sink = move |update: Result<Update>| {
            let refused = |result: Result<()>| {
                result.unwrap_err().to_string().starts_with("a callback cannot drain or configure")
            };
            assert!(refused(owned.drain()) && refused(owned.configure(owned.options())));
            let update = update.unwrap();
            if update.done.is_some() {
                owner.send(update).unwrap();
            }
            true
        };
        engine.submit_with(long(0, 20), Box::new(sink)).unwrap();
    });
    assert!(ended.recv_timeout(Duration::from_secs(60)).unwrap().done.is_some());
    // The sink is dropped, and with it the sender.
    assert!(ended.recv_timeout(Duration::from_secs(60)).is_err());
}

/// A sink that returns `false` or panics ends its own request only.
#[test]
fn a_sink_ends_its_own_request_only() {
    in_time(|| {
        let engine = handle(Mode::Sd);
        let (outbox, heard) = channel();
        let mut left = 3;
        let sink = move |update: Result<Update>| {
            outbox.send(update.unwrap().tokens.len()).unwrap();
            left -= 1;
            left > 0
        };
        let mut other = engine.submit(long(1, 60)).unwrap();
        engine.submit_with(long(0, 100_000), Box::new(sink)).unwrap();
        let panics = |_| panic!("this sink is broken");
        engine.submit_with(long(2, 100_000), Box::new(panics)).unwrap();
        assert_eq!(heard.iter().count(), 3);
        assert_eq!(read(&mut other, 0, usize::MAX).0.len(), 60);
        engine.drain().unwrap();
        let metrics = engine.metrics();
        assert_eq!((metrics.finished, metrics.cancelled, metrics.failed), (1, 2, 0));
    });
}

/// A failing stop check ends its request in the middle of a batch.
#[test]
fn a_stop_check_ends_its_own_request_only() {
    let expected = alone(Mode::Ar, [long(0, 60)].into_iter());
    in_time(move || {
        let engine = handle(Mode::Pearl);
        let mut fine = engine.submit(long(0, 60)).unwrap();
        let mut calls = 0;
        let fails = move |_| {
            calls += 1;
            if calls < 7 { Ok(false) } else { Err(Error::Request("a token too many".to_owned())) }
        };
        let mut failing =
            engine.submit(Request { stop: Some(Box::new(fails)), ..long(1, 60) }).unwrap();
        let panics = |_| panic!("no idea");
        let mut broken =
            engine.submit(Request { stop: Some(Box::new(panics)), ..long(2, 60) }).unwrap();
        let error = |updates: &mut RequestUpdates| {
            let error = updates.find_map(|update| update.err()).unwrap().to_string();
            assert!(updates.next().is_none());
            error
        };
        assert_eq!(error(&mut failing), "a token too many");
        assert_eq!(error(&mut broken), "the request's stop check stopped: no idea");
        assert_eq!(read(&mut fine, 0, usize::MAX).0, expected[&0].0);
        let metrics = engine.metrics();
        assert_eq!((metrics.finished, metrics.failed), (1, 2));
        assert!(accounted(&metrics));
    });
}

/// A request that is cancelled or dropped before its admission is never started.
#[test]
fn nothing_is_decoded_for_cancelled_requests() {
    in_time(|| {
        let (engine, go, _updates) = held_engine(Mode::Pearl);
        drop(engine.submit(long(1, 40)).unwrap());
        engine.submit(long(2, 40)).unwrap().cancel();
        drop(go);
        engine.drain().unwrap();
        let metrics = engine.metrics();
        assert_eq!((metrics.finished, metrics.cancelled, metrics.engine.tokens), (1, 2, 40));
    });
}

/// Unread updates delay no other request and are not lost.
#[test]
fn a_slow_reader_delays_no_other_request() {
    in_time(|| {
        let engine = handle(Mode::Pearl);
        let mut slow = engine.submit(long(0, 300)).unwrap();
        for id in 1..20 {
            let mut quick = engine.submit(long(id, 20)).unwrap();
            assert_eq!(read(&mut quick, 0, usize::MAX).0.len(), 20);
        }
        engine.drain().unwrap();
        assert_eq!(read(&mut slow, 0, usize::MAX).0.len(), 300);
    });
}

/// Changing the mode, γ or batch size in the middle of greedy texts does not change them.
#[test]
fn an_engine_can_be_configured_while_it_runs() {
    let expected = alone(Mode::Ar, (0..6).map(|id| long(id, 120)));
    in_time(move || {
        let engine = handle(Mode::Pearl);
        let mut open: Vec<_> = (0..6).map(|id| engine.submit(long(id, 120)).unwrap()).collect();
        for (turn, mode) in Mode::ALL.into_iter().cycle().take(9).enumerate() {
            let changed =
                EngineOptions { gamma: Gamma::Fixed(1 + turn % 4), ..options(mode, 2 + turn, 100) };
            engine.configure(changed).unwrap();
            assert_eq!(engine.options(), changed);
            assert!(open[0].next().unwrap().is_ok());
        }
        let wrong = engine.configure(EngineOptions { batch_size: 0, ..engine.options() });
        assert!(wrong.unwrap_err().to_string().contains("batch-size is 0"));
        // Requests are validated against the current options.
        engine.configure(options(Mode::Pearl, 4, 2)).unwrap();
        let error = engine.submit(Request { prompt: vec![1; 256], ..long(9, 5) }).unwrap_err();
        assert!(error.to_string().contains("expected fewer than 256"), "{error}");
        for updates in open.iter_mut().skip(1) {
            assert_eq!(read(updates, 0, usize::MAX).0, expected[&1].0);
        }
    });
}

/// The updates of earlier requests would be lost.
#[test]
fn an_engine_with_requests_cannot_be_spawned() {
    let mut engine = engine(options(Mode::Ar, 4, 100));
    engine.submit(long(0, 5)).unwrap();
    let error = engine.spawn().unwrap_err().to_string();
    assert!(error.contains("has 1 requests"), "{error}");
}

#[test]
fn handles_can_be_used_from_any_thread() {
    fn shareable<T: Send + Sync + Clone>() {}
    fn sendable<T: Send>() {}
    shareable::<EngineHandle>();
    sendable::<RequestUpdates>();
    sendable::<Engine<Cpu>>();
}
