//! Above temperature 0 every mode gives the target's own distribution of texts.
//!
//! The expected distribution is computed by enumerating all texts of four tokens of a toy model
//! with three tokens: 81 cells. Pearson's χ² then has 80 degrees of freedom and exceeds 124.8 with
//! probability 0.001 under the null hypothesis. If the distributions differ by a total variation
//! distance δ, χ² is non-central with λ ≥ 4Nδ²; at λ = 105 it exceeds 124.8 with probability 0.99.
//! N = 65 625 samples therefore detect δ = 0.02 with power 0.99.
#![allow(clippy::unwrap_used)]

mod toy;

use fathom_decode::{
    BlockJudge, Completion, Distribution, Drafted, EndRules, Judge, LogitsJudge, Mode, Sampler,
    SamplingParams, Verdict, Verification, sd,
};
use toy::{Rule, Toy, counted, decode, decode_verified};

const SAMPLES: u64 = 65_625;
const CRITICAL: f64 = 124.8;
const LENGTH: usize = 4;
/// Size of the vocabulary. The toy models' logits have one more column, which is padding.
const TOKENS: usize = 3;

fn target() -> Toy {
    Toy::target(TOKENS + 1, 17)
}

/// A draft that often disagrees but gives every token of the target a positive probability.
fn draft() -> Toy {
    target().draft(0.4)
}

fn sampled(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, seed: 42, max_tokens: LENGTH, ..SamplingParams::default() }
}

/// Reference implementation of p after `prefix`, whose first token is the prompt, in f64: bias,
/// penalties, softmax(logits / T), min-p, top-k, top-p, by their definitions.
fn naive(params: &SamplingParams, prefix: &[u32]) -> Vec<f64> {
    let logits = target().logits(prefix);
    let penalised = |id: usize| {
        let id = id as u32;
        let bias = params.logit_bias.get(&id).copied().unwrap_or(0.0);
        let logit = f64::from(logits[id as usize]) + f64::from(bias);
        let count = prefix[1..].iter().filter(|&&token| token == id).count();
        let factor = f64::from(params.repetition_penalty);
        let scaled = match prefix.contains(&id) {
            true if logit > 0.0 => logit / factor,
            true => logit * factor,
            false => logit,
        };
        let once = if count > 0 { f64::from(params.presence_penalty) } else { 0.0 };
        scaled - f64::from(params.frequency_penalty) * count as f64 - once
    };
    let mut p: Vec<f64> =
        (0..TOKENS).map(|id| (penalised(id) / f64::from(params.temperature)).exp()).collect();
    let most = p.iter().copied().fold(0.0, f64::max);
    p.iter_mut().filter(|p| **p < f64::from(params.min_p) * most).for_each(|p| *p = 0.0);
    let normalise = |p: &mut Vec<f64>| {
        let total: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
    };
    let mut order: Vec<usize> = (0..TOKENS).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    if params.top_k > 0 {
        order.iter().skip(params.top_k).for_each(|&id| p[id] = 0.0);
    }
    normalise(&mut p);
    let mut before = 0.0;
    for id in order {
        let own = p[id];
        if before >= f64::from(params.top_p) {
            p[id] = 0.0;
        }
        before += own;
    }
    normalise(&mut p);
    p
}

/// Probability of every text. The index is the text as a number in base 3.
fn truth(params: &SamplingParams) -> Vec<f64> {
    let cells = TOKENS.pow(LENGTH as u32);
    let probability = |cell: usize| {
        let mut prefix = vec![0];
        let mut product = 1.0;
        for i in (0..LENGTH as u32).rev() {
            let token = cell / TOKENS.pow(i) % TOKENS;
            product *= naive(params, &prefix)[token];
            prefix.push(token as u32);
        }
        product
    };
    (0..cells).map(probability).collect()
}

/// χ² of counted texts against their probabilities. Infinite if a text of probability 0 occurred.
fn chi2(counts: &[u64], truth: &[f64]) -> f64 {
    let cell = |(&n, &p): (&u64, &f64)| {
        let expected = p * SAMPLES as f64;
        match (n, expected > 0.0) {
            (0, false) => 0.0,
            (_, false) => f64::INFINITY,
            (n, true) => (n as f64 - expected).powi(2) / expected,
        }
    };
    counts.iter().zip(truth).map(cell).sum()
}

fn count(params: &SamplingParams, mode: Mode, gamma: usize) -> Vec<u64> {
    let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
    for request in 0..SAMPLES {
        counts[index(&text(params, request, mode, gamma))] += 1;
    }
    counts
}

fn text(params: &SamplingParams, request: u64, mode: Mode, gamma: usize) -> Vec<u32> {
    let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
    let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
    let mut text = Completion::new(vec![0], end);
    decode(None, mode, &mut text, &sampler, target(), draft(), |_| gamma);
    text.generated().to_vec()
}

fn index(text: &[u32]) -> usize {
    text.iter().fold(0, |cell, &token| cell * TOKENS + token as usize)
}

#[test]
fn texts_are_distributed_as_the_targets() {
    let plain = sampled(0.8);
    let truth_plain = truth(&plain);
    for (mode, gamma) in [
        (Mode::Ar, 1),
        (Mode::Sd, 1),
        (Mode::Sd, 3),
        (Mode::Pearl, 1),
        (Mode::Pearl, 2),
        (Mode::Pearl, 5),
        (Mode::Forked, 2),
        (Mode::Forked, 4),
        (Mode::Suffix, 3),
    ] {
        let chi2 = chi2(&count(&plain, mode, gamma), &truth_plain);
        assert!(chi2 < CRITICAL, "{mode} γ={gamma}: χ² = {chi2}");
    }
}

/// Decodes with block verification. Returns the tokens and the drafts accepted in the first pass
/// with drafts.
fn of_blocks(
    params: &SamplingParams,
    request: u64,
    mode: Mode,
    gamma: usize,
    verification: Verification,
) -> (Vec<u32>, usize) {
    let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
    let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
    let mut text = Completion::new(vec![0], end);
    let (target, draft) = (target(), draft());
    let steps =
        decode_verified(None, (mode, verification), &mut text, &sampler, target, draft, |_| gamma);
    // The first token of every text is the target's own.
    let accepted = steps.get(1).map_or(0, |outcome| outcome.accepted);
    (text.generated().to_vec(), accepted)
}

/// Block verification gives the target's distribution too, in both modes, with penalties as well.
#[test]
fn texts_of_block_verification_are_distributed_as_the_targets() {
    let [.., penalised] = penalties();
    for params in [sampled(0.8), SamplingParams { top_k: 2, ..sampled(1.3) }, penalised] {
        let truth = truth(&params);
        let modes =
            [(Mode::Sd, 2), (Mode::Sd, 3), (Mode::Pearl, 2), (Mode::Pearl, 4), (Mode::Forked, 3)];
        for (mode, gamma) in modes {
            let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
            for request in 0..SAMPLES {
                let block = Verification::Block;
                counts[index(&of_blocks(&params, request, mode, gamma, block).0)] += 1;
            }
            let chi2 = chi2(&counts, &truth);
            assert!(chi2 < CRITICAL, "{params:?} {mode} γ={gamma}: χ² = {chi2}");
        }
    }
}

/// Power of the test: it rejects block verification that uses the draws of a rejected chunk again.
#[test]
fn draws_that_are_used_again_after_a_rejected_block_are_detected() {
    let params = sampled(0.8);
    let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
    for request in 0..SAMPLES {
        let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
        let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
        let mut text = Completion::new(vec![0], end);
        while !text.is_finished() {
            let (mut prefix, position) = (text.tokens().to_vec(), text.tokens().len());
            let mut logits = target().logits(&prefix);
            let mut chunk = Vec::new();
            for _ in 0..3 {
                chunk.push(sampler.draft(&draft().logits(&prefix), prefix.len()).unwrap());
                prefix.push(chunk[chunk.len() - 1].token);
                logits.extend(target().logits(&prefix));
            }
            let (logits, vocab) = (&logits[..], TOKENS + 1);
            let judge = LogitsJudge {
                sampler: &sampler,
                logits,
                vocab,
                position,
                history: None,
                constraint: None,
            };
            sd::step(&mut text, &chunk, &mut BlockJudge(judge)).unwrap();
        }
        counts[index(text.generated())] += 1;
    }
    let chi2 = chi2(&counts, &truth(&params));
    assert!(chi2 > 5.0 * CRITICAL, "χ² = {chi2}");
}

/// More drafts are accepted of a block than one by one. γ = 3, so the number of each pass has a
/// standard deviation of at most 1.5; of 65 625 passes, the mean's is below 0.006, and that of the
/// difference below 0.0085. A difference of 0.03 is found with a probability above 0.99.
#[test]
fn no_fewer_drafts_are_accepted_of_a_block() {
    let mean = |verification| {
        let accepted = |request| of_blocks(&sampled(0.8), request, Mode::Sd, 3, verification).1;
        (0..SAMPLES).map(accepted).sum::<usize>() as f64 / SAMPLES as f64
    };
    let (block, token) = (mean(Verification::Block), mean(Verification::Token));
    assert!(block > token + 0.01, "{block} {token}");
}

/// A draft that is the target is accepted whole.
#[test]
fn a_block_of_the_targets_own_tokens_is_accepted() {
    let params = SamplingParams { max_tokens: 40, ..sampled(0.8) };
    for request in 0..300 {
        for (mode, gamma) in [(Mode::Sd, 4), (Mode::Pearl, 3)] {
            let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
            let end = EndRules { max_tokens: 40, ..EndRules::default() };
            let mut text = Completion::new(vec![0], end);
            let (block, own) = (Verification::Block, target());
            let steps =
                decode_verified(None, (mode, block), &mut text, &sampler, own, own, |_| gamma);
            assert!(steps[1..].iter().all(|step| step.accepted == step.judged && !step.ends_run));
        }
    }
}

#[test]
fn top_k_and_top_p_are_applied_to_both_models() {
    for params in [
        SamplingParams { top_k: 2, ..sampled(1.3) },
        SamplingParams { top_p: 0.7, ..sampled(1.0) },
        SamplingParams { top_k: 2, top_p: 0.8, ..sampled(2.0) },
    ] {
        let truth = truth(&params);
        for (mode, gamma) in [(Mode::Ar, 1), (Mode::Sd, 2), (Mode::Pearl, 3), (Mode::Forked, 3)] {
            let chi2 = chi2(&count(&params, mode, gamma), &truth);
            assert!(chi2 < CRITICAL, "{params:?} {mode}: χ² = {chi2}");
        }
    }
}

/// Every penalty alone, and all of them.
fn penalties() -> [SamplingParams; 6] {
    [
        SamplingParams { repetition_penalty: 1.8, ..sampled(0.8) },
        SamplingParams { presence_penalty: 1.5, ..sampled(0.8) },
        SamplingParams { frequency_penalty: 0.9, ..sampled(0.8) },
        SamplingParams { logit_bias: [(0, 1.5), (2, -1.0)].into(), ..sampled(1.2) },
        SamplingParams { min_p: 0.3, ..sampled(1.0) },
        SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: -0.8,
            frequency_penalty: 0.7,
            logit_bias: [(1, 0.9)].into(),
            min_p: 0.1,
            top_p: 0.95,
            ..sampled(0.9)
        },
    ]
}

/// With penalties a row's distribution depends on the drafts before it, for target and draft.
#[test]
fn penalties_count_the_drafts_before_a_row() {
    for params in penalties() {
        let truth = truth(&params);
        for (mode, gamma) in [(Mode::Ar, 1), (Mode::Sd, 3), (Mode::Pearl, 2), (Mode::Forked, 3)] {
            let chi2 = chi2(&count(&params, mode, gamma), &truth);
            assert!(chi2 < CRITICAL, "{params:?} {mode}: χ² = {chi2}");
        }
    }
}

/// No text ends before min-tokens, and until then tokens are distributed as without the token that
/// ends the text.
#[test]
fn min_tokens_takes_the_ending_token_out_of_the_distribution() {
    let params = SamplingParams { min_tokens: LENGTH, ..sampled(0.8) };
    let banned = SamplingParams { logit_bias: [(1, -1e9)].into(), ..sampled(0.8) };
    let truth = truth(&banned);
    for (mode, gamma) in [(Mode::Ar, 1), (Mode::Sd, 3), (Mode::Pearl, 2), (Mode::Forked, 3)] {
        let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
        for request in 0..SAMPLES {
            let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
            let sampler = sampler.with_eos(&[1]).unwrap();
            let end = EndRules { eos: [1].into(), max_tokens: LENGTH, ..EndRules::default() };
            let mut text = Completion::new(vec![0], end);
            decode(None, mode, &mut text, &sampler, target(), draft(), |_| gamma);
            counts[index(text.generated())] += 1;
        }
        let chi2 = chi2(&counts, &truth);
        assert!(chi2 < CRITICAL, "{mode}: χ² = {chi2}");
    }
}

/// Power of the test: it rejects a judge whose penalties count the text but not the drafts.
#[test]
fn a_judge_that_does_not_count_drafts_is_detected() {
    struct Forgetful<'a> {
        sampler: &'a Sampler,
        text: Vec<u32>,
        logits: Vec<f32>,
    }
    impl Forgetful<'_> {
        fn row(&self, row: usize) -> Vec<f32> {
            let mut logits = self.logits[row * (TOKENS + 1)..][..TOKENS + 1].to_vec();
            let history = counted(self.sampler, 1, &self.text).unwrap();
            self.sampler.process(&mut logits, &history);
            logits
        }
    }
    impl Judge for Forgetful<'_> {
        fn judge(&mut self, row: usize, draft: &Drafted) -> fathom_model::Result<Verdict> {
            self.sampler.judge(&self.row(row), draft, self.text.len() + row)
        }
        fn sample(&mut self, row: usize) -> fathom_model::Result<u32> {
            self.sampler.sample(&self.row(row), self.text.len() + row)
        }
    }
    let params = SamplingParams { frequency_penalty: 0.9, ..sampled(0.8) };
    let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
    for request in 0..SAMPLES {
        let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
        let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
        let mut text = Completion::new(vec![0], end);
        while !text.is_finished() {
            let mut prefix = text.tokens().to_vec();
            let mut logits = target().logits(&prefix);
            let mut chunk = Vec::new();
            for _ in 0..2 {
                let mut own = draft().logits(&prefix);
                sampler.process(&mut own, &counted(&sampler, 1, &prefix).unwrap());
                chunk.push(sampler.draft(&own, prefix.len()).unwrap());
                prefix.push(chunk[chunk.len() - 1].token);
                logits.extend(target().logits(&prefix));
            }
            let (sampler, tokens) = (&sampler, text.tokens().to_vec());
            sd::step(&mut text, &chunk, &mut Forgetful { sampler, text: tokens, logits }).unwrap();
        }
        counts[index(text.generated())] += 1;
    }
    let chi2 = chi2(&counts, &truth(&params));
    assert!(chi2 > 10.0 * CRITICAL, "χ² = {chi2}");
}

/// A draft that lacks one of the target's tokens, and stops drafting in the middle of the text.
#[test]
fn a_draft_that_stops_early_changes_no_distribution() {
    let params = sampled(0.8);
    let truth = truth(&params);
    let short = Toy { vocab: TOKENS - 1, ..draft() };
    for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
        let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
        for request in 0..SAMPLES {
            let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
            let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
            let mut text = Completion::new(vec![0], end);
            let gamma = |step| if step < 2 { 2 } else { 0 };
            decode(None, mode, &mut text, &sampler, target(), short, gamma);
            counts[index(text.generated())] += 1;
        }
        let chi2 = chi2(&counts, &truth);
        assert!(chi2 < CRITICAL, "{mode}: χ² = {chi2}");
    }
}

/// Under a constraint texts have the distribution of plain decoding under it: the target's,
/// masked and normalised at every token. Of the 81 texts 16 are possible, so χ² has 15 degrees of
/// freedom and exceeds 37.7 with probability 0.001.
#[test]
fn constrained_texts_are_distributed_as_the_masked_targets() {
    let (params, rule) = (sampled(0.8), Rule::new(TOKENS, 3));
    let probability = |cell: usize| {
        let mut prefix = vec![0];
        let mut product = 1.0;
        for i in (0..LENGTH as u32).rev() {
            let token = cell / TOKENS.pow(i) % TOKENS;
            let p = naive(&params, &prefix);
            let may = |id: usize| rule.allows(&prefix[1..], id as u32);
            let total: f64 = (0..TOKENS).filter(|&id| may(id)).map(|id| p[id]).sum();
            product *= if may(token) { p[token] / total } else { 0.0 };
            prefix.push(token as u32);
        }
        product
    };
    let truth: Vec<f64> = (0..TOKENS.pow(LENGTH as u32)).map(probability).collect();
    let possible = truth.iter().filter(|&&p| p > 0.0).count();
    assert!((10..=30).contains(&possible), "{possible}");
    for (mode, gamma) in [(Mode::Ar, 1), (Mode::Sd, 3), (Mode::Pearl, 2), (Mode::Pearl, 4)] {
        let mut counts = vec![0; truth.len()];
        for request in 0..SAMPLES {
            let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
            let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
            let mut text = Completion::new(vec![0], end);
            let rule = Some(rule.clone());
            decode(rule, mode, &mut text, &sampler, target(), draft(), |_| gamma);
            counts[index(text.generated())] += 1;
        }
        let chi2 = chi2(&counts, &truth);
        assert!(chi2 < 37.7, "{mode} γ={gamma}: χ² = {chi2}");
    }
}

/// Draws are keyed by position, and PEARL judges every draft, so its sampled text does not depend
/// on γ or on its adaptation.
#[test]
fn the_text_of_a_request_does_not_depend_on_gamma() {
    for request in 0..500 {
        let one = text(&sampled(0.8), request, Mode::Pearl, 1);
        for gamma in [2, 3, 7] {
            assert_eq!(text(&sampled(0.8), request, Mode::Pearl, gamma), one);
            assert_eq!(text(&sampled(0.8), request, Mode::Forked, gamma), one);
        }
    }
}

/// A guess is accepted if it is the target's own draw. The text is therefore that of plain decoding
/// with the same seed, token for token, with any processing of the logits.
#[test]
fn sampled_texts_with_guesses_are_those_of_plain_decoding() {
    let mut same = 0;
    for params in penalties().into_iter().chain([sampled(0.4), sampled(1.5)]) {
        let params = SamplingParams { max_tokens: 30, ..params };
        for request in 0..60 {
            let of = |mode, gamma| {
                let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
                let end = EndRules { max_tokens: 30, ..EndRules::default() };
                let mut text = Completion::new(vec![0, 1, 2, 0, 1], end);
                decode(None, mode, &mut text, &sampler, target(), draft(), |_| gamma);
                text.generated().to_vec()
            };
            let plain = of(Mode::Ar, 1);
            for gamma in [1, 2, 5] {
                assert_eq!(of(Mode::Suffix, gamma), plain, "{params:?} {request} γ={gamma}");
            }
            same += 1;
        }
    }
    assert_eq!(same, 480);
}

/// Power of the test: it rejects a judge that draws the correction from p instead of (p - q)₊.
#[test]
fn a_judge_without_the_residual_is_detected() {
    struct Careless<'a> {
        inner: LogitsJudge<'a>,
    }
    impl Judge for Careless<'_> {
        fn judge(&mut self, row: usize, draft: &Drafted) -> fathom_model::Result<Verdict> {
            Ok(match self.inner.judge(row, draft)? {
                Verdict::Reject(_) => Verdict::Reject(self.inner.sample(row)?),
                accept => accept,
            })
        }
        fn sample(&mut self, row: usize) -> fathom_model::Result<u32> {
            self.inner.sample(row)
        }
    }
    let params = sampled(0.8);
    let mut counts = vec![0; TOKENS.pow(LENGTH as u32)];
    for request in 0..SAMPLES {
        let sampler = Sampler::new(params.clone(), request, TOKENS).unwrap();
        let end = EndRules { max_tokens: LENGTH, ..EndRules::default() };
        let mut text = Completion::new(vec![0], end);
        while !text.is_finished() {
            let position = text.tokens().len();
            let drafted = sampler.draft(&draft().logits(text.tokens()), position).unwrap();
            let logits = target().logits(text.tokens());
            let inner = LogitsJudge {
                sampler: &sampler,
                logits: &logits,
                vocab: TOKENS + 1,
                position,
                history: None,
                constraint: None,
            };
            fathom_decode::Pearl::new()
                .step(&mut text, vec![drafted], &mut Careless { inner })
                .unwrap();
        }
        counts[index(text.generated())] += 1;
    }
    let chi2 = chi2(&counts, &truth(&params));
    assert!(chi2 > 10.0 * CRITICAL, "χ² = {chi2}");
}

/// By definition, the accepted mass min(p, q) and the corrected mass (p - q)₊ sum to p.
#[test]
fn acceptance_and_residual_sum_to_p() {
    for seed in 0..50 {
        let logits = |model: u32| Toy::target(9, 2 * seed + model).logits(&[]);
        let params = SamplingParams { top_k: 5, ..sampled(0.7) };
        let p = Distribution::from_logits(&logits(0), &params, 8).unwrap();
        let q = Distribution::from_logits(&logits(1), &params, 8).unwrap();
        let residual = p.residual(&q);
        let accepted: f32 = (0..9).map(|id| p.prob(id).min(q.prob(id))).sum();
        for id in 0..9 {
            let mass = p.prob(id).min(q.prob(id)) + (1.0 - accepted) * residual.prob(id);
            assert!((mass - p.prob(id)).abs() < 1e-6, "{seed} {id}");
            if q.prob(id) > 0.0 {
                let ratio = f64::from(p.prob(id)) / f64::from(q.prob(id));
                assert!(!p.accepts(id, &q, (ratio * 1.001 + 1e-12).min(2.0)) || ratio >= 2.0);
                assert_eq!(p.accepts(id, &q, ratio * 0.999), ratio > 0.0);
            }
        }
        assert_eq!(p.prob(8), 0.0); // padding
    }
}
