//! The prefix cache saves prefill and changes nothing else: no text, no log-probability, no page
//! more than the caches may have.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fathom_backend::{Backend, Precision};
use fathom_decode::engine::{
    Engine, EngineOptions, Gamma, ModeChoice, Request, RowWatcher, Watcher,
};
use fathom_decode::{Mode, SamplingParams, TokenLogprobs, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Site, Transformer};
use foreign_backend::Foreign;

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(1), precision, isa: None }).unwrap()
}

fn load<B: Backend>(name: &str, backend: B) -> Transformer<B> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    Transformer::load(&dir, backend).unwrap()
}

fn options(mode: Mode, batch_size: usize, kv_pages: usize, prefix_cache: bool) -> EngineOptions {
    let (mode, gamma, vocab) = (ModeChoice::Always(mode), Gamma::Fixed(3), 384);
    EngineOptions { mode, gamma, batch_size, kv_pages, vocab, prefix_cache }
}

/// Pages of 128 tokens.
fn engine(options: EngineOptions) -> Engine<Cpu> {
    let draft = load("qwen2", cpu(Precision::F32));
    Engine::new(load("qwen2", cpu(Precision::Bf16)), Some(draft), options).unwrap()
}

/// A number below `below`, keyed by the request.
fn random(id: u64, what: u32, below: u32) -> u32 {
    philox4x32([id as u32, what, 0, 0], [23, 4])[0] % below
}

/// Tokens of the system prompt number `system`.
fn system(system: u64, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| random(1_000 + system, i, 380)).collect()
}

/// One of three system prompts, cut at a length around the ends of pages, and a question that
/// several requests share.
fn prompt(id: u64) -> Vec<u32> {
    let lengths = [300, 300, 256, 257, 255, 129, 128, 1];
    let mut prompt = system(u64::from(random(id, 0, 3)), lengths[random(id, 1, 8) as usize]);
    let question = u64::from(random(id, 2, 4));
    prompt.extend((0..random(question, 3, 140)).map(|i| random(question, 100 + i, 380)));
    prompt
}

fn request(id: u64) -> Request {
    let params = SamplingParams {
        temperature: if id.is_multiple_of(2) { 0.0 } else { 0.9 },
        frequency_penalty: if id.is_multiple_of(5) { 0.4 } else { 0.0 },
        seed: 3,
        max_tokens: 1 + random(id, 4, 60) as usize,
        ..SamplingParams::default()
    };
    Request { logprobs: Some(2), ..Request::new(id, prompt(id), params, Arc::default()) }
}

/// Tokens, log-probabilities, and prompt tokens taken from the cache.
type Text = (Vec<u32>, Vec<TokenLogprobs>, usize);

/// Runs the requests until all have ended. The caches never have more pages than they may.
fn run<B: Backend>(engine: &mut Engine<B>, requests: Vec<Request>) -> BTreeMap<u64, Text> {
    requests.into_iter().for_each(|request| _ = engine.submit(request).unwrap());
    let mut texts: BTreeMap<u64, Text> = BTreeMap::new();
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            let text = texts.entry(update.request).or_default();
            text.0.extend(update.tokens);
            text.1.extend(update.logprobs);
            text.2 += update.done.map_or(0, |done| done.cached_prompt_tokens);
        }
        let metrics = engine.metrics();
        assert!(metrics.pages_used <= metrics.pages_total, "{metrics:?}");
    }
    texts
}

/// Texts and log-probabilities alone, without texts' counts of cached tokens.
fn words(texts: &BTreeMap<u64, Text>) -> Vec<(&Vec<u32>, &Vec<TokenLogprobs>)> {
    texts.values().map(|(tokens, logprobs, _)| (tokens, logprobs)).collect()
}

#[test]
fn texts_do_not_depend_on_the_prefix_cache() {
    for mode in Mode::ALL {
        let requests = || (0..60).map(request).collect();
        let plain = run(&mut engine(options(mode, 1, 100, false)), requests());
        assert!(plain.values().all(|text| text.2 == 0));
        for (batch, pages) in [(1, 100), (5, 100), (5, 9)] {
            let mut engine = engine(options(mode, batch, pages, true));
            // The second time most prompts are known.
            for _ in 0..2 {
                let texts = run(&mut engine, requests());
                assert_eq!(words(&texts), words(&plain), "{mode}, batch {batch}, {pages} pages");
                assert!(texts.values().any(|text| text.2 >= 128));
            }
            let metrics = engine.metrics();
            assert!(metrics.prefix_hits > 0 && metrics.prefix_hits < metrics.prefix_queries);
            assert_eq!(metrics.preemptions > 0, pages == 9, "{mode}, {pages} pages");
        }
    }
}

/// Long and short rotary factors give different keys for the same tokens. phi4-mini changes them in
/// the middle of these texts, on pages of 48 tokens. mistral has a sliding window.
#[test]
fn rows_of_another_rotary_regime_are_not_taken() {
    for name in ["phi4-mini", "mistral"] {
        let model = |precision| load(name, Foreign::new(cpu(precision)));
        let vocab = load(name, cpu(Precision::F32)).config().vocab;
        let context = load(name, cpu(Precision::F32)).config().max_position_embeddings;
        let requests = || -> Vec<Request> {
            let make = |id: u64| {
                let mut prompt: Vec<u32> = system(7, 40 + 10 * (id as usize % 9));
                prompt.iter_mut().for_each(|token| *token %= vocab as u32);
                let max_tokens = 40.min(context - prompt.len());
                let params = SamplingParams { max_tokens, ..SamplingParams::default() };
                let request = Request::new(id, prompt, params, Arc::default());
                Request { logprobs: Some(1), ..request }
            };
            (0..18).map(make).collect()
        };
        for mode in [Mode::Ar, Mode::Pearl, Mode::Forked] {
            let run_with = |prefix_cache| {
                let options = EngineOptions { vocab, ..options(mode, 4, 20, prefix_cache) };
                let (target, draft) = (model(Precision::F32), model(Precision::Bf16));
                let mut engine = Engine::new(target, Some(draft), options).unwrap();
                let texts = run(&mut engine, requests());
                (texts, engine.metrics().prefix_hits)
            };
            let ((plain, none), (texts, hits)) = (run_with(false), run_with(true));
            assert_eq!(words(&texts), words(&plain), "{name} {mode}");
            assert!(none == 0 && hits > 0, "{name} {mode}: {hits}");
        }
    }
}

fn length(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens, ..SamplingParams::default() }
}

/// Six texts of one prompt, submitted together: its rows are computed once, to the last token.
#[test]
fn several_texts_of_a_prompt_share_one_prefill() {
    let prompt = system(0, 1_300);
    let requests = |count: u64| -> Vec<Request> {
        let params = |id| SamplingParams { temperature: 0.8, seed: id, ..length(20) };
        (0..count).map(|id| Request::new(id, prompt.clone(), params(id), Arc::default())).collect()
    };
    for mode in Mode::ALL {
        let mut plain = engine(options(mode, 8, 200, false));
        let plain_texts = run(&mut plain, requests(6));
        assert_eq!(plain.metrics().prefill_tokens, 6 * 1_299);
        let mut engine = engine(options(mode, 8, 200, true));
        let texts = run(&mut engine, requests(6));
        assert_eq!(words(&texts), words(&plain_texts), "{mode}");
        assert_eq!(engine.metrics().prefill_tokens, 1_299);
        let cached: Vec<usize> = texts.values().map(|text| text.2).collect();
        assert_eq!(cached, [0, 1_299, 1_299, 1_299, 1_299, 1_299]);
        // And later ones of the same prompt need none.
        run(&mut engine, requests(3));
        assert_eq!(engine.metrics().prefill_tokens, 1_299);
    }
}

/// The text of an earlier request is the beginning of the next one of a conversation.
#[test]
fn a_conversation_goes_on_from_its_own_rows() {
    let mut engine = engine(options(Mode::Pearl, 4, 100, true));
    let mut prompt = system(1, 200);
    let request =
        |id, prompt: &[u32]| Request::new(id, prompt.to_vec(), length(90), Arc::default());
    for turn in 0..4 {
        let texts = run(&mut engine, vec![request(turn, &prompt)]);
        let (tokens, _, cached) = &texts[&turn];
        // All full pages of the text before, which the target fed but for its last token, and the
        // last page of its prompt.
        let before = prompt.len() - 20;
        let full = (before - 1) / 128 * 128;
        let expected = if turn == 0 { 0 } else { full.max(before - 90 - 1) };
        assert_eq!(*cached, expected, "turn {turn}");
        prompt.extend(tokens);
        prompt.extend(system(2 + turn, 20));
    }
}

/// Five pages hold two prompts of two pages and the last token of a text. A third prompt evicts the
/// one that was not used for the longest time.
#[test]
fn the_least_recently_used_pages_go_first() {
    let mut engine = engine(options(Mode::Ar, 1, 5, true));
    let mut cached = |which: u64| {
        let request = Request::new(which, system(which, 257), length(1), Arc::default());
        run(&mut engine, vec![request])[&which].2
    };
    assert_eq!([cached(0), cached(1)], [0, 0]);
    assert_eq!([cached(0), cached(1), cached(0)], [256, 256, 256]);
    assert_eq!(cached(2), 0); // evicts 1
    assert_eq!([cached(0), cached(2)], [256, 256]);
    assert_eq!(cached(1), 0);
}

/// A system prompt that ends within a page, and other questions after it: all of its rows are
/// taken.
#[test]
fn a_prompt_takes_the_common_beginning_of_a_page() {
    let ask = |id: u64, shared: usize, question: usize| {
        let mut prompt = system(0, shared);
        // The first token of every question is another one.
        prompt.extend((0..question as u32).map(|i| (i * 7 + id as u32 + 381) % 384));
        Request { logprobs: Some(1), ..Request::new(id, prompt, length(40), Arc::default()) }
    };
    for mode in Mode::ALL {
        let mut plain = engine(options(mode, 1, 100, false));
        let mut engine = engine(options(mode, 1, 100, true));
        // Tokens that the prompt shares with the first one, of a question, and in the cache.
        let prompts = [(200, 90, 0), (200, 40, 200), (200, 1, 200), (150, 9, 150), (128, 3, 128)];
        let later = [(60, 100, 60), (250, 9, 200), (254, 9, 250), (257, 1, 254), (1, 1, 1)];
        for (id, (shared, question, cached)) in (0..).zip(prompts.into_iter().chain(later)) {
            let expected = run(&mut plain, vec![ask(id, shared, question)]);
            let texts = run(&mut engine, vec![ask(id, shared, question)]);
            assert_eq!(words(&texts), words(&expected), "{mode}, request {id}");
            assert_eq!(texts[&id].2, cached, "{mode}, request {id}");
        }
        // The draft's rows are right too: as many of its tokens are accepted.
        let (plain, metrics) = (plain.metrics(), engine.metrics());
        assert_eq!(metrics.acceptance, plain.acceptance, "{mode}");
        assert_eq!(metrics.pages_used, metrics.pages_cached);
    }
}

/// The page that agrees longest is taken, whatever the order in which pages came. A page that
/// agrees in all its tokens but is shorter counts as far as it goes.
#[test]
fn the_page_that_agrees_longest_is_taken() {
    let prompt = |agreeing: usize, len: usize| -> Vec<u32> {
        let mut prompt = system(3, agreeing);
        prompt.resize(len, 383 - agreeing as u32 % 128);
        prompt
    };
    // Tokens that agree with the text asked for in the end, and all tokens.
    let cached = [(20, 300), (90, 200), (60, 61), (100, 101), (40, 128), (0, 140)];
    for first in 0..cached.len() {
        let mut engine = engine(options(Mode::Ar, 1, 100, true));
        for i in 0..cached.len() {
            let (agreeing, len) = cached[(first + i) % cached.len()];
            let request = Request::new(0, prompt(agreeing, len), length(1), Arc::default());
            run(&mut engine, vec![request]);
        }
        let asked = |len| Request::new(9, prompt(len, len + 50), length(1), Arc::default());
        assert_eq!(run(&mut engine, vec![asked(120)])[&9].2, 100);
        assert_eq!(run(&mut engine, vec![asked(110)])[&9].2, 110);
    }
}

/// Prompts that part within pages, in caches with room for two or three texts: pages are taken
/// whole and in part, evicted while parts of them are in use, and given back in the end.
#[test]
fn pages_taken_in_part_are_given_back() {
    let request = |id: u64| {
        let mut prompt = system(u64::from(random(id, 10, 2)), 90 + random(id, 11, 220) as usize);
        prompt.extend((0..random(id, 12, 90)).map(|i| random(id, 200 + i, 380)));
        let params = SamplingParams { temperature: 0.7, ..length(1 + random(id, 13, 70) as usize) };
        Request { logprobs: Some(1), ..Request::new(id, prompt, params, Arc::default()) }
    };
    let requests = || (0..30).map(request).collect::<Vec<_>>();
    for mode in Mode::ALL {
        let plain = run(&mut engine(options(mode, 1, 100, false)), requests());
        for (batch, pages) in [(4, 10), (2, 5)] {
            let mut engine = engine(options(mode, batch, pages, true));
            let texts = run(&mut engine, requests());
            assert_eq!(words(&texts), words(&plain), "{mode}, {batch}, {pages}");
            let metrics = engine.metrics();
            assert!(metrics.prefix_hits > 0 && metrics.pages_cached > 0, "{metrics:?}");
            assert_eq!(metrics.pages_used, metrics.pages_cached, "{mode}, {batch}, {pages}");
            // Cancelled in the middle of the prefill and of the text.
            for request in requests() {
                let ticket = engine.submit(request).unwrap();
                engine.step().unwrap();
                engine.cancel(ticket);
            }
            engine.configure(options(mode, batch, pages, false)).unwrap();
            run(&mut engine, vec![request(0)]);
            assert_eq!((engine.metrics().pages_used, engine.metrics().pages_cached), (0, 0));
        }
    }
}

/// A watcher that cannot take over what others saw sees every row computed.
#[test]
fn watched_texts_take_no_rows_and_leave_none() {
    let mut engine = engine(options(Mode::Pearl, 4, 100, true));
    let prompt = system(0, 300);
    let request = |id| Request::new(id, prompt.clone(), length(5), Arc::default());
    let watch = |engine: &mut Engine<Cpu>, id| {
        let watcher = RowWatcher::new(&[(Site::ResidPost, 0)]).unwrap();
        let rows = watcher.rows();
        let watcher: Option<Box<dyn Watcher>> = Some(Box::new(watcher));
        let texts = run(engine, vec![Request { watcher, ..request(id) }]);
        assert_eq!(rows.positions(), 304);
        (texts[&id].2, rows.since(0, 0))
    };
    let (first, rows) = watch(&mut engine, 0);
    assert_eq!(first, 0);
    assert_eq!(run(&mut engine, vec![request(1)])[&1].2, 0);
    assert_eq!(run(&mut engine, vec![request(2)])[&2].2, 299);
    assert_eq!(watch(&mut engine, 3), (0, rows));
}

/// A benchmark rewinds texts that share pages, and options change while pages are shared.
#[test]
fn rewinds_and_changed_options_keep_the_texts() {
    let requests =
        || (0..4).map(|id| Request::new(id, system(id % 2, 200), length(150), Arc::default()));
    let plain = run(&mut engine(options(Mode::Ar, 4, 100, false)), requests().collect());
    let mut engine = engine(options(Mode::Pearl, 4, 100, true));
    requests().for_each(|request| _ = engine.submit(request).unwrap());
    engine.prefill().unwrap();
    for prefix_cache in [true, false, true] {
        engine.configure(EngineOptions { prefix_cache, ..*engine.options() }).unwrap();
        for _ in 0..20 {
            assert!(engine.step().unwrap().iter().all(|update| update.done.is_none()));
        }
        engine.rewind().unwrap();
    }
    let texts = run(&mut engine, Vec::new());
    assert_eq!(words(&texts).iter().map(|text| text.0).collect::<Vec<_>>(), {
        words(&plain).iter().map(|text| text.0).collect::<Vec<_>>()
    });
}
