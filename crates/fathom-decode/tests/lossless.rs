//! At temperature 0 every mode gives the tokens of plain autoregressive decoding.
#![allow(clippy::unwrap_used)]

mod toy;

use fathom_decode::{Completion, EndRules, Finish, Mode, Sampler, SamplingParams, philox4x32};
use proptest::prelude::*;
use toy::{Rule, Toy, decode};

const VOCAB: usize = 16;

#[derive(Clone, Debug)]
struct Case {
    seed: u32,
    agreement: f64,
    prompt: Vec<u32>,
    eos: Vec<u32>,
    /// Two consecutive tokens that end the text.
    stop: Option<[u32; 2]>,
    max_tokens: usize,
    /// Penalties, bias and end conditions.
    params: SamplingParams,
    /// Restricts the text.
    rule: Option<Rule>,
}

/// The toy's logits are between -2 and 2, so these parameters change many choices.
fn params() -> impl Strategy<Value = SamplingParams> {
    (
        prop_oneof![Just(1.0), 1.0..3.0_f32, 0.5..1.0_f32],
        prop_oneof![Just(0.0), -2.0..2.0_f32],
        prop_oneof![Just(0.0), -0.5..2.0_f32],
        prop::collection::btree_map(0..VOCAB as u32, -3.0..3.0_f32, 0..4),
        prop::collection::vec(0..VOCAB as u32, 0..3),
        prop_oneof![Just(0), 1..20_usize],
    )
        .prop_map(
            |(repetition, presence, frequency, logit_bias, stop_token_ids, min_tokens)| {
                SamplingParams {
                    repetition_penalty: repetition,
                    presence_penalty: presence,
                    frequency_penalty: frequency,
                    logit_bias,
                    stop_token_ids,
                    min_tokens,
                    ..SamplingParams::default()
                }
            },
        )
}

fn case() -> impl Strategy<Value = Case> {
    (
        any::<u32>(),
        prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64, 0.9..1.0_f64],
        prop::collection::vec(0..VOCAB as u32, 1..4),
        prop::collection::vec(0..VOCAB as u32, 0..2),
        prop::option::of([0..VOCAB as u32, 0..VOCAB as u32]),
        1..80_usize,
    )
        .prop_map(|(seed, agreement, prompt, eos, stop, max_tokens)| Case {
            seed,
            agreement,
            prompt,
            eos,
            stop,
            max_tokens,
            params: SamplingParams::default(),
            rule: None,
        })
}

fn generate(case: &Case, mode: Mode, gamma: impl FnMut(usize) -> usize) -> (Vec<u32>, Finish) {
    let mut last = None;
    let stop = case.stop.map(|[first, second]| -> fathom_decode::StopCheck {
        Box::new(move |token| Ok(last.replace(token) == Some(first) && token == second))
    });
    let params = SamplingParams {
        max_tokens: case.max_tokens.max(case.params.min_tokens),
        ..case.params.clone()
    };
    let stop_tokens = params.stop_token_ids.clone().into();
    let end =
        EndRules { eos: case.eos.clone().into(), stop_tokens, max_tokens: case.max_tokens, stop };
    let mut text = Completion::new(case.prompt.clone(), end);
    let target = Toy::target(VOCAB, case.seed);
    let sampler = Sampler::new(params, 0, VOCAB).unwrap().with_eos(&case.eos).unwrap();
    let (rule, draft) = (case.rule.clone(), target.draft(case.agreement));
    decode(rule, mode, &mut text, &sampler, target, draft, gamma);
    (text.generated().to_vec(), text.finish().unwrap())
}

/// Reference implementation of greedy decoding: uses the toy model and nothing of this crate.
fn greedy(case: &Case) -> Vec<u32> {
    let target = Toy::target(VOCAB, case.seed);
    let mut tokens = case.prompt.clone();
    let mut text = Vec::new();
    while text.len() < case.max_tokens {
        let mut logits = penalised(case, target.logits(&tokens), &text);
        if let Some(rule) = &case.rule {
            let refused = (0..VOCAB as u32).filter(|&id| !rule.allows(&text, id));
            refused.for_each(|id| logits[id as usize] = f32::NEG_INFINITY);
        }
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let token = logits.iter().position(|&logit| logit == largest).unwrap() as u32;
        tokens.push(token);
        text.push(token);
        let ends = case.eos.contains(&token) || case.params.stop_token_ids.contains(&token);
        if ends || case.stop.is_some_and(|stop| text.ends_with(&stop)) {
            break;
        }
    }
    text
}

/// Reference implementation of vLLM's penalties on the logits after the prompt and `text`.
fn penalised(case: &Case, mut logits: Vec<f32>, text: &[u32]) -> Vec<f32> {
    let params = &case.params;
    for (id, logit) in (0_u32..).zip(&mut logits) {
        let count = text.iter().filter(|&&token| token == id).count();
        if text.len() < params.min_tokens
            && (case.eos.contains(&id) || params.stop_token_ids.contains(&id))
        {
            *logit = f32::NEG_INFINITY;
        }
        *logit += params.logit_bias.get(&id).copied().unwrap_or(0.0);
        if count > 0 || case.prompt.contains(&id) {
            match *logit > 0.0 {
                true => *logit /= params.repetition_penalty,
                false => *logit *= params.repetition_penalty,
            }
        }
        *logit -= params.frequency_penalty * count as f32;
        if count > 0 {
            *logit -= params.presence_penalty;
        }
    }
    logits
}

/// Checks that all modes return `expected`, with fixed γ and with γ that changes at every step.
fn every_mode_gives(case: &Case, schedule: u32, expected: &[u32]) -> Result<(), TestCaseError> {
    let (ar, finish) = generate(case, Mode::Ar, |_| 1);
    prop_assert_eq!(&ar, expected);
    for mode in [Mode::Sd, Mode::Pearl, Mode::Forked, Mode::Suffix] {
        for gamma in 1..=12 {
            prop_assert_eq!(&generate(case, mode, |_| gamma), &(ar.clone(), finish));
        }
        // γ may change at every step, as adaptive γ does. An empty chunk means there was no room to
        // draft.
        let changing = |step| (philox4x32([step as u32, 0, 0, 0], [schedule, 0])[0] % 7) as usize;
        prop_assert_eq!(generate(case, mode, changing), (ar.clone(), finish));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_mode_gives_the_greedy_tokens(case in case(), schedule in any::<u32>()) {
        every_mode_gives(&case, schedule, &greedy(&case))?;
    }

    /// With penalties, bias, stop tokens and min-tokens, a row's logits depend on the drafts before
    /// it.
    #[test]
    fn every_mode_gives_the_penalised_greedy_tokens(
        case in case(),
        params in params(),
        schedule in any::<u32>(),
    ) {
        let case = Case { params, ..case };
        every_mode_gives(&case, schedule, &greedy(&case))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Under a constraint the mask of a row depends on the drafts before it. The text ends when the
    /// constraint allows nothing else.
    #[test]
    fn every_mode_gives_the_constrained_greedy_tokens(
        case in case(),
        params in params(),
        share in 1..4_u32,
        longest in 1..30_usize,
        schedule in any::<u32>(),
    ) {
        let params = SamplingParams { min_tokens: 0, ..params };
        let rule = Rule { longest, end: Some(5), ..Rule::new(VOCAB, share) };
        let eos = vec![5];
        let case = Case { params, rule: Some(rule), eos, ..case };
        let text = greedy(&case);
        prop_assert!(text.len() <= longest + 1);
        every_mode_gives(&case, schedule, &text)?;
    }
}

/// Every end condition occurs inside a PEARL chunk, and the text ends exactly there.
#[test]
fn texts_end_at_eos_stop_and_length_inside_a_chunk() {
    let base = Case {
        seed: 5,
        agreement: 1.0,
        prompt: vec![1],
        eos: vec![],
        stop: None,
        max_tokens: 20,
        params: SamplingParams::default(),
        rule: None,
    };
    let full = greedy(&base);
    for at in 1..full.len() {
        let first_time = !full[..at].contains(&full[at]);
        if first_time {
            let case = Case { eos: vec![full[at]], ..base.clone() };
            let expected = (full[..=at].to_vec(), Finish::Eos);
            assert_eq!(generate(&case, Mode::Pearl, |_| 6), expected);
            let params =
                SamplingParams { stop_token_ids: vec![full[at]], ..SamplingParams::default() };
            let case = Case { params, ..base.clone() };
            let expected = (full[..=at].to_vec(), Finish::StopToken);
            assert_eq!(generate(&case, Mode::Pearl, |_| 6), expected);
        }
        let stop = [full[at - 1], full[at]];
        let case = Case { stop: Some(stop), ..base.clone() };
        let (text, finish) = generate(&case, Mode::Pearl, |_| 6);
        assert!(text.ends_with(&stop) && full.starts_with(&text));
        assert_eq!(finish, Finish::Stop);
        let case = Case { max_tokens: at, ..base.clone() };
        assert_eq!(generate(&case, Mode::Pearl, |_| 6), (full[..at].to_vec(), Finish::Length));
    }
}
