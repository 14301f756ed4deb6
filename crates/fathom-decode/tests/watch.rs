//! Watchers observe the same values as a probe of a pass over the finished text: in every mode and
//! batch, on the CPU and on a device other than the host, with rejected drafts, preemptions, and
//! different watchers in one batch.
#![allow(clippy::unwrap_used)]

mod golden;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fathom_backend::Backend;
use fathom_decode::engine::{
    Engine, EngineOptions, Gamma, ModeChoice, Request, RowWatcher, WatchedRows, Watcher,
};
use fathom_decode::{GammaLimits, Mode, SamplingParams};
use fathom_model::{
    Access, At, Error, LogitRows, Measured, Probe, Result, SequenceOptions, Site, Step, Transformer,
};
use foreign_backend::Foreign;
use golden::{cpu, load};

const TARGET: &str = "llama3.2";
/// A draft with the same vocabulary and other weights: most drafts are rejected.
const UNRELATED: &str = "qwen3";

fn places(request: u64) -> Vec<(Site, usize)> {
    match request {
        0 => vec![(Site::ResidPost, 1), (Site::Embed, 0), (Site::Logits, 0)],
        1 => vec![(Site::K, 0), (Site::MlpElementwise, 1)],
        _ => vec![(Site::FinalNorm, 0)],
    }
}

/// Bits of the norm and of the dot product by position.
type Numbers = BTreeMap<usize, (u32, Option<u32>)>;

/// A watcher that stores norms and dot products.
#[derive(Clone, Default)]
struct Norms(Arc<Mutex<Numbers>>);

const REFERENCE: usize = 2;

impl Probe for Norms {
    fn access(&self, site: Site, layer: usize) -> Access {
        match (site, layer) {
            (Site::ResidMid, 1) => Access::Dots,
            _ => Access::Skip,
        }
    }

    fn reference_positions(&self, _: usize) -> Vec<usize> {
        vec![REFERENCE]
    }

    fn read(&mut self, at: &At, _: &[f32]) -> Result<()> {
        panic!("rows of {at:?}")
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        let mut norms = self.0.lock().unwrap();
        for (position, norm) in at.positions.clone().zip(measured.norms) {
            norms.insert(position, (norm.to_bits(), None));
        }
        for dots in &measured.dots {
            let before = dots.before.iter().enumerate();
            for (position, dot) in before.chain(at.positions.clone().zip(dots.these)) {
                norms.get_mut(&position).unwrap().1 = Some(dot.to_bits());
            }
        }
        Ok(())
    }
}

impl Watcher for Norms {
    fn truncate(&mut self, len: usize) {
        self.0.lock().unwrap().retain(|position, _| *position < len);
    }
}

struct Observed {
    tokens: Vec<u32>,
    rows: Option<WatchedRows>,
    norms: Norms,
}

fn write<B: Backend>(
    target: Transformer<B>,
    draft: Option<Transformer<B>>,
    (mode, gamma): (ModeChoice, Gamma),
) -> Vec<Observed> {
    let vocab = target.config().vocab.min(draft.as_ref().map_or(usize::MAX, |d| d.config().vocab));
    // The caches hold two of the four texts: the others are preempted.
    let page = target.backend().kv_page();
    let options = EngineOptions {
        mode,
        gamma,
        batch_size: 3,
        kv_pages: 2 * 140_usize.div_ceil(page),
        vocab,
        prefix_cache: true,
    };
    let mut engine = Engine::new(target, draft, options).unwrap();
    let mut all = Vec::new();
    let mut tickets = Vec::new();
    for id in 0..4 {
        let prompt: Vec<u32> = (0..60 + 9 * id as u32).map(|i| (i * 37 + 11) % 300).collect();
        let watcher = (id < 3).then(|| RowWatcher::new(&places(id)).unwrap());
        let rows = watcher.as_ref().map(RowWatcher::rows);
        let norms = Norms::default();
        let watcher: Box<dyn Watcher> = match watcher {
            Some(watcher) => Box::new(watcher),
            None => Box::new(norms.clone()),
        };
        let temperature = if id == 1 { 0.9 } else { 0.0 };
        let params = SamplingParams { max_tokens: 110, temperature, ..SamplingParams::default() };
        all.push(Observed { tokens: prompt.clone(), rows, norms });
        let (eos, watcher) = (Arc::default(), Some(watcher));
        tickets.push(
            engine.submit(Request { watcher, ..Request::new(id, prompt, params, eos) }).unwrap(),
        );
    }
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            let index = tickets.iter().position(|ticket| *ticket == update.ticket).unwrap();
            all[index].tokens.extend(update.tokens);
            if let Some(rows) = &all[index].rows {
                assert_eq!(rows.positions(), all[index].tokens.len() - 1, "between steps");
            }
        }
    }
    assert!(engine.metrics().preemptions > 0);
    all
}

/// Probes one pass over the finished text with `watcher`.
fn expected<B: Backend>(model: &Transformer<B>, tokens: &[u32], watcher: &mut dyn Probe) {
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut step = [Step { sequence: &mut sequence, tokens, logits: LogitRows::None }];
    model.forward(&mut step, Some(watcher)).unwrap();
}

#[test]
fn a_watcher_observes_what_a_pass_over_the_finished_text_computes() {
    let model = load(TARGET, cpu());
    let adaptive = Gamma::Adaptive(GammaLimits { start: 2, max: 5 });
    let choices = [
        (ModeChoice::Always(Mode::Ar), Gamma::Fixed(1)),
        (ModeChoice::Always(Mode::Sd), Gamma::Fixed(4)),
        (ModeChoice::Always(Mode::Pearl), Gamma::Fixed(3)),
        (ModeChoice::Always(Mode::Forked), Gamma::Fixed(3)),
        (ModeChoice::Auto, adaptive),
    ];
    for choice in choices {
        for draft in [TARGET, UNRELATED] {
            let on_cpu = write(load(TARGET, cpu()), Some(load(draft, cpu())), choice);
            let foreign = |name| load(name, Foreign::new(cpu()));
            let on_device = write(foreign(TARGET), Some(foreign(draft)), choice);
            for (id, observed) in (0..).zip(on_cpu.iter().chain(&on_device)) {
                let id = id % 4;
                let what = format!("{choice:?} {draft} request {id}");
                // The target was never fed the last token.
                let fed = &observed.tokens[..observed.tokens.len() - 1];
                let Some(rows) = &observed.rows else {
                    let mut norms = Norms::default();
                    expected(&model, fed, &mut norms);
                    let (got, want) = (observed.norms.0.lock().unwrap(), norms.0.lock().unwrap());
                    assert!(want.len() == fed.len() && *got == *want, "{what}");
                    continue;
                };
                let mut want = RowWatcher::new(&places(id)).unwrap();
                expected(&model, fed, &mut want);
                let want = want.rows();
                for place in 0..want.places().len() {
                    let bits = |rows: &WatchedRows| -> Vec<u32> {
                        rows.since(place, 0).iter().map(|x| x.to_bits()).collect()
                    };
                    assert!(!bits(&want).is_empty() && bits(rows) == bits(&want), "{what} {place}");
                }
                let width = want.since(0, 0).len() / fed.len();
                assert_eq!(rows.since(0, fed.len() - 2).len(), 2 * width, "{what}");
            }
        }
    }
}

/// A watcher that fails at a position.
struct FailsAt(usize);

impl Probe for FailsAt {
    fn access(&self, site: Site, _: usize) -> Access {
        if site == Site::Embed { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, at: &At, _: &[f32]) -> Result<()> {
        match at.positions.end > self.0 {
            true => Err(Error::Request("the watcher failed".to_owned())),
            false => Ok(()),
        }
    }
}

impl Watcher for FailsAt {
    fn truncate(&mut self, _: usize) {}
}

#[test]
fn a_watcher_that_fails_ends_its_own_request_only() {
    for at in [2, 9] {
        let model = load(TARGET, cpu());
        let vocab = model.config().vocab;
        let (mode, gamma) = (ModeChoice::Always(Mode::Ar), Gamma::Fixed(1));
        let options =
            EngineOptions { mode, gamma, batch_size: 4, kv_pages: 10, vocab, prefix_cache: true };
        let engine = Engine::new(model, None, options).unwrap().spawn().unwrap();
        let request = |id, watcher: Option<Box<dyn Watcher>>| {
            let params = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
            let (prompt, eos) = (vec![1, 2, 3, 4, 5], Arc::default());
            Request { watcher, ..Request::new(id, prompt, params, eos) }
        };
        let fails = engine.submit(request(0, Some(Box::new(FailsAt(at))))).unwrap();
        let other = engine.submit(request(1, None)).unwrap();
        let error = fails.last().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the watcher failed");
        assert_eq!(other.map(|update| update.unwrap().tokens.len()).sum::<usize>(), 12);
    }
}

#[test]
fn a_site_without_rows_is_refused() {
    let error = RowWatcher::new(&[(Site::AttnWeights, 0)]).map(drop).unwrap_err().to_string();
    assert!(error.contains("`attn_weights` has no row for each token"), "{error}");
}
