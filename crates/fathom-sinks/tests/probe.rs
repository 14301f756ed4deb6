//! Streaming measurements equal the definition, for any chunking.
#![allow(clippy::unwrap_used)]

use std::ops::Range;

use fathom_model::{At, Dots, Measured, Probe, Site};
use fathom_sinks::{ScalarOptions, ScalarProbe, TraceScalars};
use proptest::prelude::*;

const LAYERS: usize = 2;
const WIDTH: usize = 37; // neither a multiple of a vector register nor shorter than one
const SITES: [Site; 4] = [Site::K, Site::V, Site::MlpOut, Site::ResidPost];

/// A synthetic activation; some rows are zero.
fn value(site: Site, layer: usize, t: usize, i: usize) -> f32 {
    let x = (site as usize * 7919 + layer * 104_729 + t * 1299 + i * 31) as f32;
    if (t + layer) % 5 == 3 { 0.0 } else { (x.sin() + 0.3) * 10.0 }
}

fn row(site: Site, layer: usize, t: usize) -> Vec<f32> {
    (0..WIDTH).map(|i| value(site, layer, t, i)).collect()
}

fn run(tokens: usize, chunks: &[usize], candidates: &[usize]) -> TraceScalars {
    let options =
        ScalarOptions { candidates: candidates.to_vec(), final_state: true, massive: true };
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut probe = ScalarProbe::new(LAYERS, &ids, &options);
    let mut start = 0;
    for chunk in chunks.iter().copied().cycle() {
        let positions = start..(start + chunk).min(tokens);
        feed_all(&mut probe, positions.clone(), 0.0);
        start = positions.end;
        if start == tokens {
            break;
        }
    }
    probe.finish().unwrap()
}

/// A pass over `positions`, with `noise` added to the activations.
fn feed_all(probe: &mut ScalarProbe, positions: Range<usize>, noise: f32) {
    let layers = (0..LAYERS).flat_map(|layer| SITES.map(|site| (site, layer)));
    for (site, layer) in layers.chain([(Site::FinalNorm, 0)]) {
        let rows = positions.clone().flat_map(|t| row(site, layer, t));
        let values: Vec<f32> = rows.map(|x| x + noise).collect();
        let at = At { site, layer, sequence: 0, positions: positions.clone() };
        probe.read(&at, &values).unwrap();
    }
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let norms = norm(a) * norm(b);
    if norms > 0.0 { dot / norms } else { 0.0 }
}

#[test]
fn norms_and_cosines_match_the_definition() {
    let tokens = 11;
    let scalars = run(tokens, &[4], &[0, 2, 7]);
    let close = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-5 * want.max(1.0));
    for t in 0..tokens {
        for l in 0..LAYERS {
            close(scalars.hidden_norm.at(l, t), norm(&row(Site::ResidPost, l, t)));
            close(scalars.mlp_out_norm.at(l, t), norm(&row(Site::MlpOut, l, t)));
            close(scalars.key_norm.at(l, t), norm(&row(Site::K, l, t)));
            close(scalars.value_norm.at(l, t), norm(&row(Site::V, l, t)));
            for candidate in &scalars.candidates {
                let reference = row(Site::ResidPost, l, candidate.position);
                close(candidate.cosine.at(l, t), cosine(&row(Site::ResidPost, l, t), &reference));
            }
        }
        let state = scalars.final_state.as_ref().unwrap();
        close(state.norm[t], norm(&row(Site::FinalNorm, 0, t)));
        for (candidate, cosines) in scalars.candidates.iter().zip(&state.cosine) {
            let reference = row(Site::FinalNorm, 0, candidate.position);
            close(cosines[t], cosine(&row(Site::FinalNorm, 0, t), &reference));
        }
    }
}

proptest! {
    #[test]
    fn chunking_changes_no_bit(
        tokens in 1usize..30,
        chunks in prop::collection::vec(1usize..9, 1..6),
        candidates in prop::collection::vec(0usize..12, 1..4),
    ) {
        prop_assert_eq!(run(tokens, &chunks, &candidates), run(tokens, &[tokens], &candidates));
    }

    /// Each step measures tokens that stay, and rejected drafts with other activations. Some steps
    /// restart at an earlier position.
    #[test]
    fn rejected_positions_leave_nothing_behind(
        steps in prop::collection::vec((1usize..6, 0usize..6, any::<bool>()), 1..8),
        candidates in prop::collection::vec(0usize..20, 1..4),
    ) {
        let options =
            ScalarOptions { candidates: candidates.clone(), final_state: true, massive: true };
        let mut probe = ScalarProbe::growing(LAYERS, &options);
        let mut len = 0;
        for (accepted, rejected, restart) in steps {
            if restart {
                len /= 2;
                probe.truncate(len);
            }
            feed_all(&mut probe, len..len + accepted, 0.0);
            len += accepted;
            if rejected > 0 {
                feed_all(&mut probe, len..len + rejected, 3.5);
                probe.truncate(len);
            }
            let ids: Vec<u32> = (0..len as u32).collect();
            prop_assert_eq!(probe.so_far(&ids).unwrap(), run(len, &[len], &candidates));
            prop_assert!(probe.so_far(&[0; 99]).is_err());
            let half = len / 2;
            prop_assert_eq!(probe.so_far(&ids[..half]).unwrap(), measured(half, &candidates));
        }
    }
}

/// A pass over `positions` that measures the activations, `noise` added from `parting` on.
fn feed_measured(probe: &mut ScalarProbe, positions: Range<usize>, parting: usize, noise: f32) {
    let candidates = probe.reference_positions(0);
    let layers = (0..LAYERS).flat_map(|layer| SITES.map(|site| (site, layer)));
    for (site, layer) in layers.chain([(Site::FinalNorm, 0)]) {
        let row = |t: usize| -> Vec<f32> {
            let noise = if t < parting { 0.0 } else { noise };
            row(site, layer, t).into_iter().map(|x| x + noise).collect()
        };
        let norms: Vec<f32> = positions.clone().map(|t| fathom_vector::norm(&row(t))).collect();
        let dots = |at: Range<usize>, candidate: usize| -> Vec<f32> {
            at.map(|t| fathom_vector::dot(&row(t), &row(candidate))).collect()
        };
        let with = |&candidate: &usize| match candidate {
            later if later >= positions.end => (Vec::new(), Vec::new()),
            now if now >= positions.start => {
                (dots(0..positions.start, now), dots(positions.clone(), now))
            }
            before => (Vec::new(), dots(positions.clone(), before)),
        };
        let dots: Vec<_> = candidates.iter().map(with).collect();
        let dots = dots.iter().map(|(before, these)| Dots { before, these }).collect();
        let massive = positions.clone().map(|t| fathom_vector::massive(&row(t))).enumerate();
        let massive = massive.filter(|(_, massive)| massive.count > 0).collect();
        let at = At { site, layer, sequence: 0, positions: positions.clone() };
        probe.measured(&at, &Measured { norms: &norms, dots, massive }).unwrap();
    }
}

proptest! {
    /// Texts of 40 tokens that part from this one at different positions left their pages. What is
    /// taken of them, and measured after that, is what one pass measures.
    #[test]
    fn adopted_rows_are_those_of_a_pass(
        page in 1usize..9,
        partings in prop::collection::vec(1usize..40, 1..4),
        taken in 0usize..30,
        own in 1usize..9,
        candidates in prop::collection::vec(0usize..34, 1..4),
    ) {
        let options =
            ScalarOptions { candidates: candidates.clone(), final_state: true, massive: true };
        let mut others: Vec<(usize, ScalarProbe)> = Vec::new();
        for &parting in &partings {
            let mut other = ScalarProbe::growing(LAYERS, &options);
            feed_measured(&mut other, 0..17, parting, 2.5);
            feed_measured(&mut other, 17..40, parting, 2.5);
            others.push((parting, other));
        }
        let mut probe = ScalarProbe::growing(LAYERS, &options);
        let mut len = 0;
        while len < taken {
            // Any text that agrees so far, and as far as it agrees.
            let agrees = |(parting, _): &&mut (usize, ScalarProbe)| *parting > len;
            let Some((parting, other)) = others.iter_mut().rev().find(agrees) else { break };
            let rows = other.rows(len..(len + page).min(40)).unwrap();
            prop_assert!(probe.accepts(&rows));
            let count = page.min(taken - len).min(*parting - len);
            probe.adopt(&rows, count).unwrap();
            len += count;
            if count < page {
                break;
            }
        }
        let ids: Vec<u32> = (0..len as u32).collect();
        prop_assert_eq!(probe.so_far(&ids).unwrap(), measured(len, &candidates));
        feed_measured(&mut probe, len..len + own, 99, 0.0);
        let ids: Vec<u32> = (0..(len + own) as u32).collect();
        prop_assert_eq!(probe.so_far(&ids).unwrap(), measured(len + own, &candidates));
    }
}

#[test]
fn rows_that_do_not_continue_the_text_are_refused() {
    let options = |candidates: &[usize]| ScalarOptions {
        candidates: candidates.to_vec(),
        final_state: false,
        massive: false,
    };
    let mut other = ScalarProbe::growing(LAYERS, &options(&[0]));
    feed_measured(&mut other, 0..10, 99, 0.0);
    assert!(other.rows(5..11).is_err(), "not measured yet");
    let rows = other.rows(5..10).unwrap();
    let mut probe = ScalarProbe::growing(LAYERS, &options(&[0]));
    let error = probe.adopt(&rows, 5).unwrap_err().to_string();
    assert_eq!(error, "measurements at positions 5..10 do not continue those of 0 tokens");
    probe.adopt(&other.rows(0..5).unwrap(), 5).unwrap();
    assert!(probe.adopt(&rows, 6).is_err(), "there are 5");
    assert!(!ScalarProbe::growing(LAYERS, &options(&[1])).accepts(&rows));
    assert!(!ScalarProbe::growing(LAYERS + 1, &options(&[0])).accepts(&rows));
}

/// Like [`run`], but also accepts 0 tokens.
fn measured(tokens: usize, candidates: &[usize]) -> TraceScalars {
    match tokens {
        0 => {
            let options =
                ScalarOptions { candidates: candidates.to_vec(), final_state: true, massive: true };
            ScalarProbe::new(LAYERS, &[], &options).finish().unwrap()
        }
        tokens => run(tokens, &[tokens], candidates),
    }
}

#[test]
fn non_finite_values_are_refused() {
    let options = ScalarOptions { candidates: vec![0], final_state: false, massive: false };
    let mut probe = ScalarProbe::new(1, &[5, 6], &options);
    let at = At { site: Site::ResidPost, layer: 0, sequence: 0, positions: 0..2 };
    let error = probe.read(&at, &[1.0, 2.0, f32::NAN, 4.0]).unwrap_err();
    assert_eq!(error.to_string(), "`resid_post` of layer 0 is not finite at position 1");
}

#[test]
fn an_incomplete_trace_is_refused() {
    let options = ScalarOptions { candidates: vec![0], final_state: false, massive: false };
    let error = ScalarProbe::new(1, &[5, 6], &options).finish().unwrap_err();
    assert_eq!(error.to_string(), "0 of 2 tokens were measured");
}
