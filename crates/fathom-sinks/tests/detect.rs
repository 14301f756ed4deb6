//! Detection on synthetic measurements, for every possible finding.
#![allow(clippy::unwrap_used)]

use fathom_sinks::{
    CandidateCosines, Class, Clip, DetectOptions, Detection, FinalState, Finding, Grid, Phases,
    Preset, TraceScalars, detect, norm_curves,
};

/// Measurements from norms and cosines, both `[layers][tokens]`. The reference is at position 0.
fn scalars<const T: usize>(norms: &[[f32; T]], cosines: &[[f32; T]]) -> TraceScalars {
    let fill = |rows: &[[f32; T]]| {
        let mut grid = Grid::zeros(rows.len(), T);
        for (l, row) in rows.iter().enumerate() {
            grid.row_mut(l).copy_from_slice(row);
        }
        grid
    };
    TraceScalars {
        token_ids: (100..100 + T as u32).collect(),
        hidden_norm: fill(norms),
        mlp_out_norm: fill(norms),
        key_norm: fill(norms),
        value_norm: fill(norms),
        candidates: vec![CandidateCosines { position: 0, cosine: fill(cosines) }],
        final_state: None,
        massive: None,
    }
}

fn paper(scalars: &TraceScalars) -> Detection {
    detect(scalars, &DetectOptions::new(Preset::Paper))
}

fn found(detection: &Detection) -> Vec<(usize, Class, Vec<usize>)> {
    detection.sinks.iter().map(|sink| (sink.position, sink.class, sink.layers.clone())).collect()
}

/// The reference rises at layer 1 and falls at layer 5. The positions are: 1 a second primary sink,
/// 2 a primary that ends a layer early, 3 a secondary from layer 2 with a gap, 4 a secondary that
/// ends early, 5 noise, 6 an ordinary token, 7 anti-aligned, 8 aligned only outside the clip.
fn six_layers() -> TraceScalars {
    let norms = [
        [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [50.0, 9.0, 9.0, 1.0, 9.0, 1.0, 1.0, 9.0, 1.0],
        [51.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 9.0, 1.0],
        [52.0, 9.0, 9.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0],
        [53.0, 9.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ];
    let cosines = [
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.99],
        [1.0, 0.99, 0.98, 0.0, 0.96, 0.0, 0.95, -0.99, 0.0],
        [1.0, 0.99, 0.98, 0.97, 0.96, 0.0, 0.1, -0.99, 0.0],
        [1.0, 0.97, 0.98, 0.94, 0.0, 0.96, 0.1, -0.99, 0.0],
        [1.0, 0.99, 0.0, 0.99, 0.0, 0.0, 0.1, 0.0, 0.0],
        [1.0, 0.99, 0.98, 0.99, 0.0, 0.0, 0.1, 0.0, 0.99],
    ];
    scalars(&norms, &cosines)
}

#[test]
fn every_class() {
    let detection = paper(&six_layers());
    assert_eq!(detection.finding, Finding::SecondarySinks);
    assert_eq!(detection.clip, Some(Clip { start: 1, end: 5 }));
    assert_eq!(
        found(&detection),
        [
            (0, Class::Primary, vec![1, 2, 3, 4]),
            (1, Class::Primary, vec![1, 2, 3, 4]),
            (2, Class::Primary, vec![1, 2, 3]),
            (3, Class::Secondary, vec![2, 4]),
            (4, Class::Secondary, vec![1, 2]),
            (5, Class::Noise, vec![3]),
        ]
    );
    let gapped = &detection.sinks[3];
    assert_eq!((gapped.l_start(), gapped.lifetime(), gapped.gaps()), (2, 2, vec![3]));
    let measures = gapped.measures.unwrap();
    assert_eq!((measures.min_cosine, measures.mean_cosine), (0.97, 0.98));
    assert_eq!((measures.hidden_norm, measures.mlp_out_norm), (9.0, 9.0));
    // The mean norm of unaligned tokens at layer 1 is (1 + 1 + 1 + 9 + 1) / 5 = 2.6.
    assert!((detection.rise - (50.0 - 2.0) / 2.6).abs() < 1e-4);
}

/// The reference is large at layers 1 to 3, and larger still from layer 5 on. Position 1 is aligned
/// with it at every layer except 4, position 2 only in the first phase, position 3 only in the
/// second.
fn two_phases() -> TraceScalars {
    let norms = [
        [2.0, 1.0, 1.0, 1.0, 1.0],
        [8.0, 1.0, 1.0, 1.0, 1.0],
        [20.0, 1.0, 1.0, 1.0, 1.0],
        [18.0, 1.0, 1.0, 1.0, 1.0],
        [3.0, 1.0, 1.0, 1.0, 1.0],
        [90.0, 1.0, 1.0, 1.0, 1.0],
        [91.0, 1.0, 1.0, 1.0, 1.0],
        [4.0, 1.0, 1.0, 1.0, 1.0],
    ];
    let cosines = [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 0.99, 0.0, 0.0, 0.0],
        [1.0, 0.99, 0.99, 0.0, 0.0],
        [1.0, 0.99, 0.99, 0.0, 0.0],
        [1.0, 0.0, 0.99, 0.0, 0.0],
        [1.0, 0.99, 0.0, 0.0, 0.0],
        [1.0, 0.99, 0.0, 0.99, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0],
    ];
    scalars(&norms, &cosines)
}

#[test]
fn every_phase_is_found_and_sinks_are_classed_within_theirs() {
    let detection = paper(&two_phases());
    assert_eq!(detection.clip, Some(Clip { start: 5, end: 7 }));
    assert_eq!(
        found(&detection),
        [
            (0, Class::Primary, vec![5, 6]),
            (1, Class::Primary, vec![5, 6]),
            (3, Class::Noise, vec![6]),
        ]
    );
    let [phase] = &detection.other_phases[..] else { panic!("{:?}", detection.other_phases) };
    // Large from layer 1 on, but its largest step is into layer 2; it falls most into layer 4.
    assert_eq!((phase.clip, phase.rise, phase.peak), (Clip { start: 2, end: 4 }, 12.0, 20.0));
    let sinks: Vec<_> = phase.sinks.iter().map(|sink| (sink.position, sink.class)).collect();
    assert_eq!(sinks, [(0, Class::Primary), (1, Class::Primary), (2, Class::Primary)]);

    let starts = |phases| {
        let sinks = detection.sinks_of(phases);
        sinks.iter().map(|sink| (sink.position, sink.l_start())).collect::<Vec<_>>()
    };
    assert_eq!(starts(Phases::Largest), [(0, 5), (1, 5), (3, 6)]);
    assert_eq!(starts(Phases::All), [(0, 2), (0, 5), (1, 2), (1, 5), (2, 2), (3, 6)]);
    assert_eq!(detection.sink_positions(Phases::All), [0, 1, 2, 3]);
}

#[test]
fn a_phase_that_never_falls_ends_with_its_run_and_one_of_the_first_layer_has_no_step() {
    let mut scalars = two_phases();
    // Large at layer 0 already; then at layers 2 to 4, rising all the way.
    for (l, norm) in [6.0, 1.0, 7.0, 8.0, 9.0, 90.0, 91.0, 4.0].into_iter().enumerate() {
        scalars.hidden_norm.row_mut(l)[0] = norm;
    }
    scalars.hidden_norm.row_mut(5)[1..].fill(30.0); // 90 is three times the mean: no phase
    let options = DetectOptions { rise_factor: 5.0, ..DetectOptions::new(Preset::Paper) };
    let detection = detect(&scalars, &options);
    assert_eq!(detection.finding, Finding::NoPrimarySink);
    let clips: Vec<Clip> = detection.other_phases.iter().map(|phase| phase.clip).collect();
    assert_eq!(
        clips,
        [Clip { start: 0, end: 1 }, Clip { start: 2, end: 5 }, Clip { start: 6, end: 7 }]
    );
    assert!(detection.sinks.is_empty());
    assert!(!detection.sinks_of(Phases::All).is_empty());
}

#[test]
fn upstream_counts_both_signs_and_grades_by_layers() {
    let detection = detect(&six_layers(), &DetectOptions::new(Preset::Upstream));
    // With six layers every lifetime is at least L - 15.
    let positions: Vec<usize> = detection.sinks.iter().map(|sink| sink.position).collect();
    assert_eq!(positions, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(detection.sinks.iter().all(|sink| sink.class == Class::Primary));
    assert_eq!(detection.sinks[3].layers, [2, 3, 4]);
    assert_eq!(detection.finding, Finding::PrimaryOnly);
}

#[test]
fn upstream_takes_the_last_layer_after_the_final_norm() {
    let mut scalars = six_layers();
    scalars.final_state = Some(FinalState { norm: vec![60.0; 9], cosine: vec![vec![0.0; 9]] });
    let upstream = detect(&scalars, &DetectOptions::new(Preset::Upstream));
    // The norms are 2, 50, 51, 52, 53, 60. There is no fall, so the clip ends at the first of the
    // smallest rises.
    assert_eq!(upstream.clip, Some(Clip { start: 1, end: 2 }));
    assert_eq!(paper(&scalars).clip, Some(Clip { start: 1, end: 5 }));
}

#[test]
fn a_reference_that_never_rises_is_no_sink() {
    // It rises from 1 to 5.5, which is not enough above the others' norm of 1.
    let flat = scalars(&[[1.0, 1.0, 1.2], [5.5, 1.0, 1.0]], &[[1.0, 0.1, 0.1], [1.0, 0.1, 0.1]]);
    let detection = paper(&flat);
    assert_eq!((detection.finding, detection.rise), (Finding::NoPrimarySink, 4.5));
    assert!(detection.sinks.is_empty());
    // The norm curves still include it.
    assert_eq!(norm_curves(&flat, &detection, Phases::Largest).tokens[0].1.hidden, [1.0, 5.5]);

    // It is large from the first layer, and only falls.
    let falling = scalars(&[[90.0, 1.0], [80.0, 1.0]], &[[1.0, 0.0], [1.0, 0.0]]);
    let detection = paper(&falling);
    assert_eq!((detection.finding, detection.rise), (Finding::NoPrimarySink, -10.0));
}

/// Norms measured on a small trained model: position 0 is large from the first layer, more than
/// doubles at the second, and is then more than five times as large as the others. Yet it receives
/// only a hundredth of the attention. What counts is the rise, not the norm.
#[test]
fn being_large_is_not_rising() {
    let norms = [[849.0, 420.0, 420.0], [2147.0, 388.0, 388.0], [2258.0, 824.0, 824.0]];
    let detection = paper(&scalars(&norms, &[[1.0, 0.2, 0.1]; 3]));
    assert_eq!(detection.finding, Finding::NoPrimarySink);
    assert!((detection.rise - 1298.0 / 388.0).abs() < 1e-5);
}

#[test]
fn if_all_tokens_are_aligned_the_reference_is_compared_with_itself() {
    let ones = [[1.0; 4]; 3];
    let risen = scalars(&[[1.0; 4], [8.0; 4], [2.0; 4]], &ones);
    let detection = paper(&risen);
    assert_eq!((detection.finding, detection.rise), (Finding::PrimaryOnly, 7.0));
    assert_eq!(detection.sinks.len(), 4);
    assert_eq!(norm_curves(&risen, &detection, Phases::Largest).average, None);

    let flat = paper(&scalars(&[[1.0; 4]; 3], &ones));
    assert_eq!((flat.finding, flat.rise), (Finding::NoPrimarySink, 0.0));
}

#[test]
fn too_short_to_tell() {
    let one_token = scalars(&[[1.0], [90.0], [1.0]], &[[1.0]; 3]);
    let one_layer = scalars(&[[90.0, 1.0, 1.0]], &[[1.0, 0.0, 0.0]]);
    for short in [one_token, one_layer] {
        let detection = paper(&short);
        assert_eq!(detection.finding, Finding::TooShort);
        assert_eq!((detection.clip, detection.sinks.len()), (None, 0));
    }
    let empty = TraceScalars {
        token_ids: Vec::new(),
        hidden_norm: Grid::zeros(3, 0),
        mlp_out_norm: Grid::zeros(3, 0),
        key_norm: Grid::zeros(3, 0),
        value_norm: Grid::zeros(3, 0),
        candidates: vec![CandidateCosines { position: 0, cosine: Grid::zeros(3, 0) }],
        final_state: None,
        massive: None,
    };
    let detection = paper(&empty);
    assert_eq!(detection.finding, Finding::TooShort);
    assert!(norm_curves(&empty, &detection, Phases::Largest).tokens.is_empty());
    // Every candidate is beyond the end.
    let mut unreached = scalars(&[[1.0, 1.0], [9.0, 1.0]], &[[0.0; 2]; 2]);
    unreached.candidates[0].position = 2;
    let detection = paper(&unreached);
    assert_eq!((detection.finding, detection.clip), (Finding::TooShort, None));
    assert!(norm_curves(&unreached, &detection, Phases::Largest).tokens.is_empty());
}

#[test]
fn two_layers_and_two_tokens_are_enough() {
    let detection = paper(&scalars(&[[1.0, 1.0], [9.0, 1.0]], &[[1.0, 0.0]; 2]));
    assert_eq!(detection.clip, Some(Clip { start: 1, end: 2 }));
    assert_eq!(found(&detection), [(0, Class::Primary, vec![1])]);
    assert_eq!(detection.finding, Finding::PrimaryOnly);
}

#[test]
fn zero_vectors_are_not_sinks() {
    // All other tokens are zero, so the rise is unbounded.
    let detection = paper(&scalars(&[[1.0, 0.0], [9.0, 0.0]], &[[1.0, 0.0]; 2]));
    assert_eq!((detection.finding, detection.rise), (Finding::PrimaryOnly, f32::MAX));
    // All tokens are zero, including the reference.
    let detection = paper(&scalars(&[[0.0, 0.0]; 2], &[[0.0, 0.0]; 2]));
    assert_eq!((detection.finding, detection.rise), (Finding::NoPrimarySink, 0.0));
}

#[test]
fn the_reference_is_the_candidate_with_the_highest_mean_norm() {
    let norms = [[1.0, 1.0, 1.0, 1.0], [8.0, 90.0, 1.0, 1.0], [8.0, 90.0, 1.0, 1.0]];
    let mut scalars = scalars(&norms, &[[1.0, 0.99, 0.0, 0.0]; 3]);
    let mut cosine = Grid::zeros(3, 4);
    for l in 0..3 {
        cosine.row_mut(l).copy_from_slice(&[0.99, 1.0, 0.0, 0.0]);
    }
    scalars.candidates.push(CandidateCosines { position: 1, cosine });
    // A candidate beyond the end of the trace is ignored.
    scalars.candidates.push(CandidateCosines { position: 9, cosine: Grid::zeros(3, 4) });

    let detection = paper(&scalars);
    assert_eq!(detection.reference, 1);
    assert_eq!(detection.sinks.len(), 2);
    // The published scripts only search for sinks from the reference on.
    let upstream = detect(&scalars, &DetectOptions::new(Preset::Upstream));
    assert_eq!((upstream.reference, upstream.sinks.len()), (1, 1));
}
