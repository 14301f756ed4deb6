//! Free guesses in the engine: from the text itself, and from a corpus.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{GammaLimits, Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Transformer;

const REQUESTS: u64 = 12;
const SUFFIX: ModeChoice = ModeChoice::Always(Mode::Suffix);
const AR: ModeChoice = ModeChoice::Always(Mode::Ar);

fn engine(mode: ModeChoice, gamma: Gamma, batch_size: usize) -> Engine<Cpu> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
    let target = Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap();
    let vocab = target.config().vocab;
    let options =
        EngineOptions { mode, gamma, batch_size, kv_pages: 100, vocab, prefix_cache: true };
    Engine::new(target, None, options).unwrap()
}

/// Random prompts, half of which repeat themselves. Every third text is sampled.
fn request(id: u64) -> Request {
    let random = |i: u32| philox4x32([id as u32, i, 0, 0], [4, 4])[0] % 60;
    let period = if id.is_multiple_of(2) { 9 } else { 60 };
    let prompt = (0..40).map(|i| random(i % period)).collect();
    let params = SamplingParams {
        temperature: if id.is_multiple_of(3) { 0.9 } else { 0.0 },
        repetition_penalty: if id % 4 == 1 { 1.2 } else { 1.0 },
        seed: 3,
        max_tokens: 50,
        ..SamplingParams::default()
    };
    Request::new(id, prompt, params, Arc::default())
}

/// The texts of all requests.
fn texts(engine: &mut Engine<Cpu>) -> Vec<Vec<u32>> {
    (0..REQUESTS).for_each(|id| _ = engine.submit(request(id)).unwrap());
    let mut texts: HashMap<u64, Vec<u32>> = HashMap::new();
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            texts.entry(update.request).or_default().extend(update.tokens);
        }
    }
    (0..REQUESTS).map(|id| texts.remove(&id).unwrap()).collect()
}

/// Greedy, penalised and sampled texts in one batch are those of plain decoding, for every γ and
/// batch size, with any corpus, and for `auto`.
#[test]
fn guesses_change_no_token() {
    let plain = texts(&mut engine(AR, Gamma::Fixed(1), 1));
    let adaptive = Gamma::Adaptive(GammaLimits::default());
    for gamma in [Gamma::Fixed(1), Gamma::Fixed(4), Gamma::Fixed(11), adaptive] {
        for (batch, corpus) in [(1, false), (4, true), (12, false)] {
            for mode in [SUFFIX, ModeChoice::Auto] {
                let mut engine = engine(mode, gamma, batch);
                if corpus {
                    // Half of the true texts, and misleading ones.
                    plain.iter().step_by(2).for_each(|text| engine.add_to_corpus(text));
                    plain.iter().for_each(|text| {
                        let wrong: Vec<u32> = text.iter().map(|token| token ^ 1).collect();
                        engine.add_to_corpus(&[&text[..20], &wrong[20..]].concat());
                    });
                }
                assert_eq!(texts(&mut engine), plain, "{mode:?} {gamma:?} {batch} {corpus}");
            }
        }
    }
}

/// A text that is in the corpus is guessed whole: γ guesses and the target's own token in each
/// pass, sampled or not.
#[test]
fn a_text_of_the_corpus_is_never_rejected() {
    let plain = texts(&mut engine(AR, Gamma::Fixed(1), 1));
    for gamma in [3, 7] {
        let mut engine = engine(SUFFIX, Gamma::Fixed(gamma), 3);
        for (id, text) in (0..).zip(&plain) {
            engine.add_to_corpus(&[&request(id).prompt[..], text].concat());
        }
        assert_eq!(texts(&mut engine), plain);
        let metrics = engine.metrics();
        let rate = metrics.acceptance.rate().unwrap();
        assert!(rate > 0.98, "{rate}");
        // 50 tokens take ⌈50 / (γ + 1)⌉ passes if no guess is rejected.
        let passes = metrics.acceptance.by_position().len();
        assert_eq!(passes, gamma);
        let steps = metrics.steps[&Mode::Suffix];
        let (least, most) = (4 * 50_usize.div_ceil(gamma + 1), 5 * 50_usize.div_ceil(gamma + 1));
        assert!((least..=most).contains(&steps), "{steps}");
    }
}

/// Without a draft model `auto` chooses between plain decoding and guesses.
#[test]
fn auto_without_a_draft_model_uses_the_other_modes() {
    let mut engine = engine(ModeChoice::Auto, Gamma::Adaptive(GammaLimits::default()), 4);
    texts(&mut engine);
    let modes = engine.metrics().steps.keys();
    assert!(modes.clone().all(|mode| !mode.needs_draft_model()), "{modes:?}");
    let refused = engine.set_mode(ModeChoice::Always(Mode::Pearl)).unwrap_err().to_string();
    assert!(refused.contains("mode `pearl` needs a draft model"), "{refused}");
}
