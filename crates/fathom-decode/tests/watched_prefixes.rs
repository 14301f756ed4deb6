//! What a watcher saw in rows of the prefix cache is kept with them: watchers of texts that take
//! these rows end with the same observations as if they had seen them computed.
#![allow(clippy::unwrap_used)]

mod golden;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use fathom_backend::Backend;
use fathom_decode::engine::{
    Engine, EngineOptions, Gamma, ModeChoice, Observations, Request, Watcher,
};
use fathom_decode::{Mode, SamplingParams, philox4x32};
use fathom_kernels::Cpu;
use fathom_model::{
    Access, At, LogitRows, Measured, Probe, Result, SequenceOptions, Site, Step, Transformer,
};
use foreign_backend::Foreign;
use golden::{cpu, load};

fn engine<B: Backend>(backend: impl Fn() -> B, mode: Mode, kv_pages: usize) -> Engine<B> {
    let (mode, gamma, vocab) = (ModeChoice::Always(mode), Gamma::Fixed(3), 384);
    let options = EngineOptions { mode, gamma, batch_size: 4, kv_pages, vocab, prefix_cache: true };
    let (target, draft) = (load("qwen2", backend()), load("qwen2", backend()));
    Engine::new(target, Some(draft), options).unwrap()
}

/// Of pages of 128 tokens, the first and the second have a reference position.
const REFERENCES: [usize; 2] = [2, 140];

/// Bits of norms by position (with `None`), and of dot products by position and reference.
type Numbers = BTreeMap<(usize, Option<usize>), u32>;

/// A watcher that stores norms and dot products, and shares them with those of its kind.
#[derive(Clone, Default)]
struct Seen {
    kind: u32,
    numbers: Arc<Mutex<Numbers>>,
    /// A clone for each page's observations.
    kept: Arc<()>,
}

struct Kept {
    kind: u32,
    positions: Range<usize>,
    numbers: Numbers,
    _kept: Arc<()>,
}

/// The position from which on a number is known.
fn known_at((position, reference): (usize, Option<usize>)) -> usize {
    position.max(reference.unwrap_or(0))
}

impl Probe for Seen {
    fn access(&self, site: Site, layer: usize) -> Access {
        if (site, layer) == (Site::ResidPost, 1) { Access::Dots } else { Access::Skip }
    }

    fn reference_positions(&self, _: usize) -> Vec<usize> {
        REFERENCES.to_vec()
    }

    fn read(&mut self, at: &At, _: &[f32]) -> Result<()> {
        panic!("rows of {at:?}")
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        let mut numbers = self.numbers.lock().unwrap();
        for (position, norm) in at.positions.clone().zip(measured.norms) {
            numbers.insert((position, None), norm.to_bits());
        }
        for (reference, dots) in REFERENCES.into_iter().zip(&measured.dots) {
            let before = dots.before.iter().enumerate();
            for (position, dot) in before.chain(at.positions.clone().zip(dots.these)) {
                numbers.insert((position, Some(reference)), dot.to_bits());
            }
        }
        Ok(())
    }
}

impl Watcher for Seen {
    fn truncate(&mut self, len: usize) {
        self.numbers.lock().unwrap().retain(|&place, _| known_at(place) < len);
    }

    fn shares(&self) -> bool {
        true
    }

    fn observed(&self, positions: Range<usize>) -> Option<Observations> {
        let mut numbers = self.numbers.lock().unwrap().clone();
        assert!(positions.clone().all(|position| numbers.contains_key(&(position, None))));
        numbers.retain(|&place, _| positions.contains(&known_at(place)));
        let (kind, kept) = (self.kind, Arc::clone(&self.kept));
        Some(Arc::new(Kept { kind, positions, numbers, _kept: kept }))
    }

    fn accepts(&self, observations: &Observations) -> bool {
        observations.downcast_ref::<Kept>().unwrap().kind == self.kind
    }

    fn adopt(&mut self, positions: Range<usize>, observations: &Observations) -> Result<()> {
        let kept = observations.downcast_ref::<Kept>().unwrap();
        let mut numbers = self.numbers.lock().unwrap();
        assert_eq!(kept.positions.start, positions.start);
        assert!(numbers.keys().all(|&place| known_at(place) < positions.start));
        let taken = kept.numbers.iter().filter(|(place, _)| known_at(**place) < positions.end);
        numbers.extend(taken);
        Ok(())
    }
}

/// A text to write: which prompt, how many of its tokens, and the number of the question after
/// them.
#[derive(Clone, Copy, Debug)]
struct Asked {
    prompt: u32,
    agreeing: usize,
    question: u32,
    /// `None`: not watched.
    kind: Option<u32>,
}

fn asked(prompt: u32, agreeing: usize, question: u32, kind: Option<u32>) -> Asked {
    Asked { prompt, agreeing, question, kind }
}

impl Asked {
    fn tokens(&self) -> Vec<u32> {
        let random = |what: u32, i: u32| philox4x32([what, i, 0, 0], [7, 7])[0] % 300;
        let mut tokens: Vec<u32> =
            (0..self.agreeing as u32).map(|i| random(self.prompt, i)).collect();
        tokens.push(300 + self.question);
        tokens.extend((0..self.question % 30).map(|i| random(100 + self.question, i)));
        tokens
    }
}

/// Writes the texts at once. Every watcher must have seen what a pass over its text computes.
/// Returns the number of prompt tokens of each that were taken from the cache.
fn write<B: Backend>(
    engine: &mut Engine<B>,
    model: &Transformer<Cpu>,
    kept: &Arc<()>,
    all: &[Asked],
) -> Vec<usize> {
    let mut texts = Vec::new();
    for (id, asked) in (0..).zip(all) {
        let params = SamplingParams { max_tokens: 30, seed: 1, ..SamplingParams::default() };
        let seen = asked.kind.map(|kind| Seen { kind, kept: Arc::clone(kept), ..Seen::default() });
        let watcher = seen.clone().map(|seen| Box::new(seen) as Box<dyn Watcher>);
        let request = Request::new(id, asked.tokens(), params, Arc::default());
        engine.submit(Request { watcher, ..request }).unwrap();
        texts.push((asked.tokens(), seen, 0));
    }
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            let text = &mut texts[update.request as usize];
            text.0.extend(update.tokens);
            text.2 += update.done.map_or(0, |done| done.cached_prompt_tokens);
        }
        let metrics = engine.metrics();
        assert!(metrics.pages_used <= metrics.pages_total, "{metrics:?}");
    }
    for ((tokens, seen, _), asked) in texts.iter().zip(all) {
        let Some(seen) = seen else { continue };
        let mut expected = Seen::default();
        let mut sequence = model.new_sequence(SequenceOptions::default());
        // The target was never fed the last token.
        let tokens = &tokens[..tokens.len() - 1];
        let logits = LogitRows::None;
        let mut step = [Step { sequence: &mut sequence, tokens, logits }];
        model.forward(&mut step, Some(&mut expected)).unwrap();
        let (seen, expected) = (seen.numbers.lock().unwrap(), expected.numbers.lock().unwrap());
        assert!(*seen == *expected && !seen.is_empty(), "{asked:?} of {all:?}");
    }
    texts.into_iter().map(|(_, _, cached)| cached).collect()
}

#[test]
fn observations_come_with_the_rows() {
    let model = load("qwen2", cpu());
    for mode in Mode::ALL {
        let (mut engine, kept) = (engine(cpu, mode, 100), Arc::default());
        let mut cached = |asked| write(&mut engine, &model, &kept, &[asked])[0];
        let watched = Some(0);
        // A watched text after another one, to the end of a page, within one, and within the first
        // one, whose rows were compared with one of the next page.
        assert_eq!(cached(asked(0, 300, 10, watched)), 0, "{mode}");
        assert_eq!(cached(asked(0, 300, 21, watched)), 300);
        assert_eq!(cached(asked(0, 256, 12, watched)), 256);
        assert_eq!(cached(asked(0, 139, 13, watched)), 139);
        assert_eq!(cached(asked(0, 141, 14, watched)), 141);
        assert_eq!(cached(asked(0, 100, 15, watched)), 100);
        assert_eq!(cached(asked(0, 1, 9, watched)), 1);
        // From a watched one, others take rows as well.
        assert_eq!(cached(asked(0, 300, 16, None)), 300);
        // Not one that looks at something else. Then its observations are those of the pages.
        assert_eq!(cached(asked(0, 300, 10, Some(1))), 0);
        assert_eq!(cached(asked(0, 300, 19, Some(1))), 300);
        // After a text that nobody watched: its rows are computed again, and seen.
        assert_eq!(cached(asked(1, 300, 10, None)), 0);
        assert_eq!(cached(asked(1, 300, 11, watched)), 0);
        assert_eq!(cached(asked(1, 290, 12, watched)), 256);
        assert_eq!(cached(asked(1, 300, 10, None)), 310);
        // As far as the page of the one before agrees.
        assert_eq!(cached(asked(1, 300, 10, watched)), 290);
        assert_eq!(cached(asked(1, 300, 10, watched)), 310);
    }
}

/// Watched and other texts in one batch, in caches too small for it, on the CPU and on a device
/// with memory of its own.
#[test]
fn observations_are_kept_as_long_as_the_pages() {
    fn check<B: Backend>(mut engine: Engine<B>) {
        let (model, kept) = (load("qwen2", cpu()), Arc::default());
        let random = |i: u32, what: u32, below: u32| philox4x32([i, what, 0, 0], [5, 5])[0] % below;
        let mut hits = 0;
        for round in 0..4 {
            let asked = |i: u32| {
                let kind = [None, Some(0), Some(0), Some(1)][random(i, 0, 4) as usize];
                let agreeing = [300, 256, 257, 141, 139, 128, 90][random(i, 1, 7) as usize];
                asked(random(i, 2, 2), agreeing, random(i, 3, 80), kind)
            };
            let all: Vec<Asked> = (8 * round..8 * round + 8).map(asked).collect();
            let cached = write(&mut engine, &model, &kept, &all);
            let watched = cached.iter().zip(&all).filter(|(_, asked)| asked.kind.is_some());
            hits += watched.filter(|(cached, _)| **cached > 0).count();
            assert!(Arc::strong_count(&kept) > 1);
            assert!(Arc::strong_count(&kept) <= 1 + engine.metrics().pages_cached);
        }
        assert!(hits > 0 && engine.metrics().preemptions > 0, "{hits} {:?}", engine.metrics());
        engine.configure(EngineOptions { prefix_cache: false, ..*engine.options() }).unwrap();
        assert_eq!(Arc::strong_count(&kept), 1);
    }
    for mode in Mode::ALL {
        check(engine(cpu, mode, 8));
    }
    check(engine(|| Foreign::new(cpu()), Mode::Pearl, 8));
}

/// Prompts submitted together: the first is computed, and the others take its rows. A watched one
/// does not wait for rows that nobody watches.
#[test]
fn watched_prompts_share_one_prefill() {
    let model = load("qwen2", cpu());
    let with = |kinds: &[Option<u32>]| {
        let (mut engine, kept) = (engine(cpu, Mode::Ar, 100), Arc::default());
        let all: Vec<Asked> = kinds.iter().map(|&kind| asked(0, 1_000, 0, kind)).collect();
        let cached = write(&mut engine, &model, &kept, &all);
        let computed = engine.metrics().prefill_tokens;
        // Also what was observed of pages that others were using is there for later texts.
        let later = asked(0, 1_000, 0, Some(0));
        assert_eq!(write(&mut engine, &model, &kept, &[later]), [1_000]);
        (cached, computed)
    };
    let watched = Some(0);
    assert_eq!(with(&[watched, watched, None]), (vec![0, 1_000, 1_000], 1_000));
    assert_eq!(with(&[None, watched]), (vec![0, 0], 2_000));

    let mut engine = engine(cpu, Mode::Ar, 100);
    for watcher in [None, Some(Box::new(Seen::default()) as Box<dyn Watcher>)] {
        let params = SamplingParams { max_tokens: 3, ..SamplingParams::default() };
        let prompt = asked(0, 200, 0, None).tokens();
        let request = Request::new(0, prompt, params, Arc::default());
        engine.submit(Request { watcher, ..request }).unwrap();
    }
    assert_eq!(engine.step().unwrap().len(), 2, "both were prefilled in the first chunk");
}

/// Two texts take a part of a page, and the second the rest from the first.
#[test]
fn a_watcher_goes_on_from_the_middle_of_a_page() {
    let model = load("qwen2", cpu());
    let (mut engine, kept) = (engine(cpu, Mode::Ar, 100), Arc::default());
    let watched = Some(0);
    write(&mut engine, &model, &kept, &[asked(0, 100, 15, watched)]);
    let both = [asked(0, 300, 0, watched), asked(0, 300, 0, watched)];
    assert_eq!(write(&mut engine, &model, &kept, &both), [100, 300]);
}
