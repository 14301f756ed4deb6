//! Temperature, top-k and top-p give the probabilities of HuggingFace's logits warpers.
#![allow(clippy::unwrap_used)]

use fathom_decode::{Distribution, SamplingParams};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    logits: Vec<f32>,
    probs: Vec<f32>,
}

#[test]
fn probabilities_equal_those_of_huggingface() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/hf_sampling.json")).unwrap();
    assert_eq!(cases.len(), 9);
    for Case { temperature, top_k, top_p, logits, mut probs } in cases {
        let params = SamplingParams { temperature, top_k, top_p, ..SamplingParams::default() };
        let p = Distribution::from_logits(&logits, &params, logits.len()).unwrap();
        let mut ours: Vec<f32> = (0..logits.len() as u32).map(|id| p.prob(id)).collect();
        if top_k == 3 {
            // Four equal logits: which two of them top-p keeps depends on the sort.
            ours.sort_by(f32::total_cmp);
            probs.sort_by(f32::total_cmp);
        }
        for (ours, theirs) in ours.iter().zip(&probs) {
            assert!((ours - theirs).abs() < 1e-6, "{params:?}: {ours} {theirs}");
            assert_eq!(*ours > 0.0, *theirs > 0.0, "{params:?}");
        }
    }
}

#[test]
fn ids_beyond_the_limit_are_never_drawn() {
    let logits = [0.0, 1.0, 9.0, f32::NAN];
    let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let p = Distribution::from_logits(&logits, &params, 2).unwrap();
    assert_eq!(p.iter().map(|(id, _)| id).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((p.sample(0.0), p.sample(1.0 - 1e-16)), (0, 1));
}

#[test]
fn logits_that_are_not_numbers_are_refused() {
    let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let refused = Distribution::from_logits(&[f32::NAN; 3], &params, 3).unwrap_err();
    assert!(refused.to_string().contains("logits are not numbers"));
}
