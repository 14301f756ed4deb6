//! Penalties, bias, min-tokens, temperature, min-p, top-k and top-p follow vLLM's definitions and
//! order. The expected values are from an independent NumPy implementation,
//! `data/vllm_sampling.py`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use fathom_decode::{Distribution, Sampler, SamplingParams};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    /// Logits from here on are padding.
    limit: usize,
    logits: Vec<f32>,
    prompt: Vec<u32>,
    output: Vec<u32>,
    eos: Vec<u32>,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: BTreeMap<u32, f32>,
    stop_token_ids: Vec<u32>,
    min_tokens: usize,
    /// `None` for excluded tokens.
    processed: Vec<Option<f32>>,
    greedy: u32,
    probs: Vec<f32>,
}

impl Case {
    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            min_tokens: self.min_tokens,
            ..SamplingParams::default()
        }
    }

    fn sampler(&self, params: SamplingParams) -> Sampler {
        Sampler::new(params, 0, self.limit).unwrap().with_eos(&self.eos).unwrap()
    }

    /// The processed logits.
    fn processed(&self) -> Vec<f32> {
        let sampler = self.sampler(self.params());
        let mut logits = self.logits.clone();
        if let Some(mut history) = sampler.history(self.prompt.len()) {
            history.follow(0, &[&self.prompt[..], &self.output].concat());
            sampler.process(&mut logits, &history);
        }
        logits
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("data/vllm_sampling.json")).unwrap()
}

#[test]
fn logits_and_probabilities_equal_those_of_vllm() {
    let cases = cases();
    assert_eq!(cases.len(), 250);
    for case in cases {
        let params = case.params();
        let logits = case.processed();
        // The same operations in the same precision give the same bits.
        let theirs = case.processed.iter().map(|x| x.unwrap_or(f32::NEG_INFINITY));
        assert_eq!(logits[..case.limit], theirs.collect::<Vec<_>>(), "{params:?}");

        let greedy = SamplingParams { temperature: 0.0, ..params.clone() };
        assert_eq!(case.sampler(greedy).sample(&logits, 0).unwrap(), case.greedy, "{params:?}");

        let p = Distribution::from_logits(&logits, &params, case.limit).unwrap();
        for (id, theirs) in (0..).zip(&case.probs) {
            let ours = p.prob(id);
            assert!((ours - theirs).abs() < 2e-6, "{params:?} {id}: {ours} {theirs}");
            assert!((ours > 0.0) == (*theirs > 0.0) || *theirs < 1e-30, "{params:?} {id}");
        }
    }
}

/// Every parameter changes the result of some case on its own, so the comparison covers all of
/// them.
#[test]
fn every_parameter_matters_in_some_case() {
    type Unset = fn(&mut SamplingParams);
    let unset: [(&str, Unset); 7] = [
        ("min_p", |p| p.min_p = 0.0),
        ("repetition", |p| p.repetition_penalty = 1.0),
        ("presence", |p| p.presence_penalty = 0.0),
        ("frequency", |p| p.frequency_penalty = 0.0),
        ("bias", |p| p.logit_bias.clear()),
        ("min_tokens", |p| p.min_tokens = 0),
        ("stop_token_ids", |p| p.stop_token_ids.clear()),
    ];
    for (name, unset) in unset {
        let differs = |case: &Case| {
            let mut params = case.params();
            unset(&mut params);
            let sampler = case.sampler(params.clone());
            let mut logits = case.logits.clone();
            if let Some(mut history) = sampler.history(case.prompt.len()) {
                history.follow(0, &[&case.prompt[..], &case.output].concat());
                sampler.process(&mut logits, &history);
            }
            let p = Distribution::from_logits(&logits, &params, case.limit).unwrap();
            (0..).zip(&case.probs).any(|(id, &theirs)| (p.prob(id) - theirs).abs() > 1e-3)
        };
        let count = cases().iter().filter(|case| differs(case)).count();
        assert!(count >= 8, "{name}: {count}");
    }
}

#[test]
fn min_tokens_without_any_other_token_is_refused() {
    let params =
        SamplingParams { min_tokens: 2, stop_token_ids: vec![0, 2], ..SamplingParams::default() };
    let sampler = |eos: &[u32]| Sampler::new(params.clone(), 0, 3)?.with_eos(eos);
    sampler(&[0, 9]).unwrap();
    let message = sampler(&[1]).unwrap_err().to_string();
    assert_eq!(message, "min-tokens is 2 and every token ends a text; expected one that does not");
}

/// With extreme penalties logits stay finite and excluded tokens stay excluded.
#[test]
fn extreme_penalties_keep_logits_finite() {
    for repetition_penalty in [f32::MIN_POSITIVE, f32::MAX] {
        for temperature in [0.0, 0.01, 1.0] {
            let params = SamplingParams {
                repetition_penalty,
                temperature,
                presence_penalty: 2.0,
                logit_bias: [(0, 100.0)].into(),
                min_tokens: 9,
                stop_token_ids: vec![3],
                ..SamplingParams::default()
            };
            let sampler = Sampler::new(params, 0, 4).unwrap();
            let mut history = sampler.history(1).unwrap();
            history.follow(0, &[0, 1, 2]);
            let mut logits = vec![5.0, -5.0, 1e-3, 8.0];
            sampler.process(&mut logits, &history);
            assert!(logits[..3].iter().all(|logit| logit.is_finite()), "{logits:?}");
            assert_eq!(logits[3], f32::NEG_INFINITY);
            for position in 0..20 {
                assert!(sampler.sample(&logits, position).unwrap() < 3);
            }
        }
    }
}

/// Without penalties, bias or min-tokens there is no history and no processing. Processing for
/// min-tokens stops once the text is long enough.
#[test]
fn no_history_is_needed_without_processing() {
    let sampler = |params| Sampler::new(params, 0, 9).unwrap().with_eos(&[2]).unwrap();
    let usual = SamplingParams { top_p: 0.5, min_p: 0.1, temperature: 1.0, ..Default::default() };
    assert!(sampler(usual.clone()).history(3).is_none());
    assert!(!sampler(usual).takes_argmax(0));
    assert!(sampler(SamplingParams::default()).takes_argmax(0));
    let zero = SamplingParams { logit_bias: [(1, 0.0)].into(), ..SamplingParams::default() };
    assert!(sampler(zero).takes_argmax(0));
    let min = sampler(SamplingParams { min_tokens: 5, ..SamplingParams::default() });
    assert!(min.history(3).is_some());
    assert_eq!(
        [0, 4, 5, 6].map(|generated| min.takes_argmax(generated)),
        [false, false, true, true]
    );
    // No token ends a text: there is nothing to exclude.
    let endless = SamplingParams { min_tokens: 5, ..SamplingParams::default() };
    assert!(Sampler::new(endless, 0, 9).unwrap().takes_argmax(0));
}
