//! What a request can ask for besides a text (log-probabilities, a constraint), and what its
//! updates tell of how it was made (accepted drafts, seconds): the same under every mode and batch.
#![allow(clippy::unwrap_used)]

#[path = "toy/rule.rs"]
mod rule;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use fathom_backend::Precision;
use fathom_decode::engine::{Done, Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{
    Constraint, Finish, Mode, SamplingParams, TokenLogprobs, TokenMask, philox4x32,
};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, LogitRows, Result, SequenceOptions, Step, Transformer};
use rule::Rule;

const VOCAB: usize = 384;
const EOS: u32 = 11;

fn model(precision: Precision) -> Transformer<Cpu> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let options = CpuOptions { threads: Some(1), precision, isa: None };
    Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap()
}

fn engine(mode: Mode, batch_size: usize, kv_pages: usize) -> Engine<Cpu> {
    let (gamma, vocab, prefix_cache) = (Gamma::Fixed(3), VOCAB, true);
    let mode = ModeChoice::Always(mode);
    let options = EngineOptions { mode, gamma, batch_size, kv_pages, vocab, prefix_cache };
    Engine::new(model(Precision::Bf16), Some(model(Precision::F32)), options).unwrap()
}

/// A number below `below`, keyed by the request.
fn random(id: u64, what: u32, below: u32) -> u32 {
    philox4x32([id as u32, what, 0, 0], [5, 1])[0] % below
}

fn prompt(id: u64) -> Vec<u32> {
    (0..1 + random(id, 0, 150)).map(|i| random(id, 100 + i, VOCAB as u32)).collect()
}

/// Greedy for every second request.
fn request(id: u64) -> Request {
    let params = SamplingParams {
        temperature: if id.is_multiple_of(2) { 0.0 } else { 0.9 },
        frequency_penalty: if id.is_multiple_of(3) { 0.4 } else { 0.0 },
        seed: 3,
        max_tokens: 1 + random(id, 1, 80) as usize,
        ..SamplingParams::default()
    };
    Request::new(id, prompt(id), params, [EOS].into())
}

/// A text with everything its updates told.
#[derive(Debug, PartialEq)]
struct Text {
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    /// Whether each token was drafted.
    drafted: Vec<bool>,
    done: Done,
}

/// Tokens, log-probabilities, and whether each token was drafted, of a text that has not ended.
type Parts = (Vec<u32>, Vec<TokenLogprobs>, Vec<bool>);

/// Runs the requests until all have ended. Returns their texts by id.
fn run(
    engine: &mut Engine<Cpu>,
    requests: impl IntoIterator<Item = Request>,
) -> HashMap<u64, Text> {
    requests.into_iter().for_each(|request| _ = engine.submit(request).unwrap());
    let mut parts: HashMap<u64, Parts> = HashMap::new();
    let mut texts = HashMap::new();
    while engine.pending() > 0 {
        for update in engine.step().unwrap() {
            assert!(update.outcome.accepted <= update.tokens.len());
            let (tokens, logprobs, drafted) = parts.entry(update.request).or_default();
            drafted.extend((0..update.tokens.len()).map(|i| i < update.outcome.accepted));
            tokens.extend(update.tokens);
            logprobs.extend(update.logprobs);
            if let Some(done) = update.done {
                let (tokens, logprobs, drafted) = parts.remove(&update.request).unwrap();
                texts.insert(update.request, Text { tokens, logprobs, drafted, done });
            }
        }
    }
    texts
}

/// The target's logits after every token of `tokens`, from one pass of the model alone.
fn logits(model: &Transformer<Cpu>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut steps = [Step { sequence: &mut sequence, tokens, logits: LogitRows::All }];
    let rows = model.forward(&mut steps, None).unwrap().step(model.backend(), 0).unwrap();
    rows.chunks(model.config().vocab).map(<[f32]>::to_vec).collect()
}

/// Asking for log-probabilities changes no text. They are those of the target's logits in a pass of
/// the whole text alone, bit for bit, in every mode, in a batch whose caches are too small, with
/// neighbours that ask for none.
#[test]
fn logprobs_are_the_targets_under_every_mode_and_batch() {
    let target = model(Precision::Bf16);
    let ask = |id: u64| match id % 4 {
        3 => None,
        top => Some(3 * top as usize),
    };
    for mode in Mode::ALL {
        let plain = run(&mut engine(mode, 1, 100), (0..24).map(request));
        let mut tight = engine(mode, 5, 6);
        let asked = (0..24).map(|id| Request { logprobs: ask(id), ..request(id) });
        let texts = run(&mut tight, asked);
        assert!(tight.metrics().preemptions > 0, "the caches should be too small");
        for id in 0..24 {
            let Text { tokens, logprobs, .. } = &texts[&id];
            assert_eq!(tokens, &plain[&id].tokens, "{mode} {id}");
            let Some(top) = ask(id) else {
                assert!(logprobs.is_empty());
                continue;
            };
            let all: Vec<u32> = prompt(id).into_iter().chain(tokens.iter().copied()).collect();
            let rows = logits(&target, &all[..all.len() - 1]);
            let rows = &rows[rows.len() - tokens.len()..];
            assert_eq!(logprobs.len(), tokens.len());
            for ((row, &token), got) in rows.iter().zip(tokens).zip(logprobs) {
                assert_eq!(got, &TokenLogprobs::of(row, token, top, VOCAB).unwrap(), "{mode} {id}");
                // By the definition, in f64.
                let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                let expected = f64::from(row[token as usize]) - total.ln();
                assert!((f64::from(got.logprob) - expected).abs() < 1e-5);
            }
        }
    }
}

/// Those of a prompt are the target's too, and the text is the same, whatever the prefix cache
/// holds, and though prompts are computed in pieces and again after a preemption.
#[test]
fn logprobs_of_a_prompt_are_the_targets_in_a_batch() {
    let target = model(Precision::Bf16);
    let ask = |id: u64| (!id.is_multiple_of(3)).then_some(id as usize % 5);
    for mode in Mode::ALL {
        let plain = run(&mut engine(mode, 1, 100), (0..24).map(request));
        let mut tight = engine(mode, 5, 6);
        for id in 0..24 {
            tight.submit(Request { prompt_logprobs: ask(id), ..request(id) }).unwrap();
        }
        let mut texts: HashMap<u64, (Vec<u32>, Vec<TokenLogprobs>)> = HashMap::new();
        while tight.pending() > 0 {
            for update in tight.step().unwrap() {
                let is_first = !texts.contains_key(&update.request);
                assert!(is_first || update.prompt_logprobs.is_empty());
                let (tokens, logprobs) = texts.entry(update.request).or_default();
                tokens.extend(update.tokens);
                logprobs.extend(update.prompt_logprobs);
            }
        }
        assert!(tight.metrics().preemptions > 0, "the caches should be too small");
        for id in 0..24 {
            let (tokens, logprobs) = &texts[&id];
            assert_eq!(tokens, &plain[&id].tokens, "{mode} {id}");
            let Some(top) = ask(id) else {
                assert!(logprobs.is_empty());
                continue;
            };
            let prompt = prompt(id);
            assert_eq!(logprobs.len(), prompt.len() - 1);
            let rows = if prompt.len() > 1 { logits(&target, &prompt) } else { Vec::new() };
            for ((row, &token), got) in rows.iter().zip(&prompt[1..]).zip(logprobs) {
                assert_eq!(got, &TokenLogprobs::of(row, token, top, VOCAB).unwrap(), "{mode} {id}");
            }
        }
    }
}

/// Greedy texts under a rule, by definition: the most likely allowed token after the text, from a
/// pass over the whole text.
fn greedy_under(rule: &Rule, target: &Transformer<Cpu>, request: &Request) -> Vec<u32> {
    let (mut all, mut text) = (request.prompt.clone(), Vec::new());
    while text.len() < request.params.max_tokens {
        let row = logits(target, &all).pop().unwrap();
        let allowed = (0..VOCAB as u32).filter(|&id| rule.allows(&text, id));
        let best = allowed.reduce(|a, b| if row[b as usize] > row[a as usize] { b } else { a });
        let best = best.unwrap();
        all.push(best);
        text.push(best);
        if best == EOS {
            break;
        }
    }
    text
}

fn rule_of(id: u64) -> Rule {
    let longest = random(id, 2, 70) as usize;
    Rule { longest, end: Some(EOS), ..Rule::new(VOCAB, 1 + random(id, 3, 2)) }
}

/// A constrained greedy text is that of plain decoding under the constraint, whatever the mode, the
/// drafts and the batch. Sampled texts obey the constraint and do not depend on the batch.
#[test]
fn constrained_texts_are_those_of_plain_decoding_under_the_constraint() {
    let target = model(Precision::Bf16);
    let constrained = |id: u64| {
        let constraint: Option<Box<dyn Constraint>> =
            (!id.is_multiple_of(5)).then(|| Box::new(rule_of(id)) as Box<_>);
        Request { constraint, logprobs: Some(2), ..request(id) }
    };
    let mut drafted = 0;
    for mode in Mode::ALL {
        let alone = run(&mut engine(mode, 1, 100), (0..25).map(constrained));
        let mut tight = engine(mode, 5, 6);
        let texts = run(&mut tight, (0..25).map(constrained));
        assert!(tight.metrics().preemptions > 0);
        for id in 0..25 {
            let text = &texts[&id];
            assert_eq!(text.tokens, alone[&id].tokens, "{mode} {id}");
            assert_eq!(text.logprobs, alone[&id].logprobs, "{mode} {id}");
            if id.is_multiple_of(5) {
                continue;
            }
            let rule = rule_of(id);
            for at in 0..text.tokens.len() {
                assert!(rule.allows(&text.tokens[..at], text.tokens[at]), "{mode} {id} {at}");
            }
            if text.tokens.len() > rule.longest {
                assert_eq!((text.tokens.len(), text.done.finish), (rule.longest + 1, Finish::Eos));
            }
            let greedy = id.is_multiple_of(2) && !id.is_multiple_of(3);
            if greedy {
                assert_eq!(text.tokens, greedy_under(&rule, &target, &request(id)), "{mode} {id}");
            }
            drafted += text.drafted.iter().filter(|&&drafted| drafted).count();
        }
    }
    assert!(drafted > 300, "drafts under a constraint are accepted: {drafted}");
}

/// Fails, panics or allows nothing after two tokens.
#[derive(Clone)]
struct Broken {
    how: &'static str,
    tokens: usize,
}

impl Constraint for Broken {
    fn allowed(&mut self) -> Result<TokenMask> {
        match self.how {
            _ if self.tokens < 2 => Ok(TokenMask::from_words(vec![u32::MAX; VOCAB / 32])),
            "fails" => Err(Error::Request("too many states".to_owned())),
            "panics" => panic!("a bug"),
            _ => Ok(TokenMask::none(VOCAB)),
        }
    }

    fn advance(&mut self, _: u32) -> Result<()> {
        self.tokens += 1;
        Ok(())
    }

    fn roll_back(&mut self, tokens: usize) -> Result<()> {
        self.tokens -= tokens;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// A constraint that fails ends its own request, and no other.
#[test]
fn a_broken_constraint_ends_its_own_request_only() {
    for mode in Mode::ALL {
        let handle = engine(mode, 4, 100).spawn().unwrap();
        let params = SamplingParams { max_tokens: 9, ..SamplingParams::default() };
        let request = |id| Request::new(id, prompt(id), params.clone(), Arc::default());
        let well = handle.submit(request(1)).unwrap();
        for (how, problem) in
            [("fails", "too many states"), ("panics", "a bug"), ("refuses", "allows no token")]
        {
            let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Broken { how, tokens: 0 }));
            let updates = handle.submit(Request { constraint, ..request(2) }).unwrap();
            let (mut tokens, mut errors) = (0, Vec::new());
            for update in updates {
                match update {
                    Ok(update) => tokens += update.tokens.len(),
                    Err(error) => errors.push(error.to_string()),
                }
            }
            assert!(tokens <= 2 && errors.len() == 1, "{mode} {how}: {tokens} {errors:?}");
            assert!(errors[0].contains(problem), "{}", errors[0]);
        }
        assert_eq!(well.map(|update| update.unwrap().tokens.len()).sum::<usize>(), 9);
        handle.drain().unwrap();
        assert_eq!((handle.metrics().finished, handle.metrics().failed), (1, 3));
    }
}

/// Which tokens were drafts, how many were judged, and the seconds: those of all requests together
/// are the engine's.
#[test]
fn what_updates_tell_sums_to_the_engines_metrics() {
    for mode in Mode::ALL {
        let mut engine = engine(mode, 4, 8);
        let texts = run(&mut engine, (0..20).map(request));
        let metrics = engine.metrics();
        let mut accepted = 0;
        for text in texts.values() {
            let drafted = text.drafted.iter().filter(|&&drafted| drafted).count() as u64;
            assert_eq!(drafted, text.done.acceptance.accepted());
            assert!(text.done.acceptance.judged() >= drafted);
            accepted += drafted;
        }
        assert_eq!(accepted, metrics.acceptance.accepted());
        assert_eq!(metrics.acceptance.judged(), {
            texts.values().map(|text| text.done.acceptance.judged()).sum::<u64>()
        });
        let rates: Vec<f64> =
            metrics.acceptance.counts().map(|(judged, yes)| yes as f64 / judged as f64).collect();
        assert_eq!(rates, metrics.acceptance.by_position());
        assert_eq!(accepted > 0, mode.drafts());
        let target: f64 = texts.values().map(|text| text.done.target_seconds).sum();
        assert!(
            target > metrics.verify_seconds
                && target < metrics.verify_seconds + { metrics.prefill_seconds * 1.001 }
        );
        let draft: f64 = texts.values().map(|text| text.done.draft_seconds).sum();
        assert!(draft >= metrics.draft_seconds * 0.999, "{draft} {}", metrics.draft_seconds);
        assert_eq!((metrics.mode, metrics.pages_total), (Some(mode), 8));
    }
}

/// Different ids give different texts of one prompt and seed, the same id the same text.
#[test]
fn ids_give_different_streams_of_one_seed() {
    let params = SamplingParams { temperature: 1.0, seed: 8, max_tokens: 20, ..Default::default() };
    let request = |id| Request::new(id, prompt(1), params.clone(), Arc::default());
    let first = run(&mut engine(Mode::Pearl, 4, 100), (0..4).map(request));
    let again = run(&mut engine(Mode::Pearl, 2, 100), (0..4).rev().map(request));
    for id in 0..4 {
        assert_eq!(first[&id].tokens, again[&id].tokens);
        assert!((0..id).all(|other| first[&id].tokens != first[&other].tokens));
    }
}

/// A constraint decides where its text ends, so it cannot be told to go on after the end.
#[test]
fn a_constraint_with_ignore_eos_is_refused() {
    let params = SamplingParams { ignore_eos: true, ..SamplingParams::default() };
    let constraint: Option<Box<dyn Constraint>> = Some(Box::new(rule_of(1)));
    let request = Request { constraint, ..Request::new(3, vec![1], params, [EOS].into()) };
    let refused = engine(Mode::Ar, 1, 10).submit(request).unwrap_err().to_string();
    assert!(refused.contains("request 3") && refused.contains("ignore-eos"), "{refused}");
}
