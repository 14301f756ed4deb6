//! The four measures: what is planted is found exactly, and every row is what the definitions say
//! when they are computed from captured states by brute force.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fathom_backend::{Backend, Precision};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Access, At, Probe, SequenceOptions, Site, TokenizedTrace, Transformer};
use fathom_sinks::plant::{PlantOptions, PlantedSequence, PlantedTruth, plant};
use fathom_sinks::{
    Agreement, DetectOptions, LayerScores, Manifest, Measure, ModelNote, Preset, RunWriter,
    ScalarOptions, ScalarProbe, ScanOptions, SinkRates, TokenMeasures, TraceScores, TracesNote,
    detect, scan, scan_trace, token_measures,
};
use foreign_backend::Foreign;
use proptest::prelude::*;

fn everything(seed: u64) -> PlantOptions {
    PlantOptions { seed, traces: 3, two_phases: true, attention_only: true, massive: true }
}

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(CpuOptions { precision, threads: Some(2), ..CpuOptions::default() }).unwrap()
}

fn with_attention() -> ScanOptions {
    ScanOptions { attention: true, ..ScanOptions::new(Preset::Paper) }
}

fn traces(truth: &PlantedTruth) -> Vec<TokenizedTrace> {
    let trace = |(index, sequence): (u64, &PlantedSequence)| TokenizedTrace {
        index,
        line: 1,
        ids: sequence.input_ids.clone(),
        prompt_len: sequence.prompt_len,
        remarks: Vec::new(),
    };
    (0..).zip(&truth.sequences).map(trace).collect()
}

fn measured<B: Backend>(
    model: &Transformer<B>,
    trace: &TokenizedTrace,
    options: &ScanOptions,
) -> Vec<TokenMeasures> {
    scan_trace(model, trace, &|_| None, options, &mut ()).unwrap().measures
}

/// (layer, position) at which a sink, token or activation is planted.
type Places = BTreeSet<(usize, usize)>;

fn places(rows: &[TokenMeasures], measure: Measure) -> Places {
    let rows = rows.iter().filter(|row| row.holds().contains(measure));
    rows.map(|row| (row.layer, row.position)).collect()
}

#[test]
fn planted_tokens_have_exactly_their_measures() {
    for precision in [Precision::F32, Precision::Bf16] {
        for seed in [0, 1, u64::MAX] {
            let dir = tempfile::tempdir().unwrap();
            let truth = plant(dir.path(), &everything(seed)).unwrap();
            let model = Transformer::load(dir.path(), cpu(precision)).unwrap();
            for (sequence, trace) in truth.sequences.iter().zip(traces(&truth)) {
                let rows = measured(&model, &trace, &with_attention());
                let sinks = sequence.sinks.iter();
                let aligned: Places =
                    sinks.flat_map(|s| s.layers.iter().map(|l| (*l, s.position))).collect();
                assert_eq!(places(&rows, Measure::Alignment), aligned);

                let massive = sequence.massive.iter().flat_map(|token| {
                    token.layers.iter().map(|l| ((*l, token.position), token.dims.clone()))
                });
                let massive: BTreeMap<(usize, usize), Vec<usize>> = massive.collect();
                let found = rows.iter().filter(|row| row.massive.count > 0).map(|row| {
                    let dims = row.massive.largest.iter().map(|(dim, _)| *dim);
                    ((row.layer, row.position), dims.collect())
                });
                assert_eq!(found.collect::<BTreeMap<_, Vec<usize>>>(), massive);
                assert!(!massive.is_empty());

                // Few positions attend to the last tokens.
                let end = trace.ids.len() - Agreement::FEW_LATER;
                let is_sink = |t| sequence.sinks.iter().any(|sink| sink.position == t);
                let drawing =
                    rows.iter().filter(|row| row.position < end && !is_sink(row.position));
                let drawing = drawing.filter_map(|row| {
                    let heads = &row.scores.as_ref()?.heads_above;
                    (!heads.is_empty()).then(|| ((row.layer, row.position), heads.clone()))
                });
                let planted = sequence.attention_only.iter().flat_map(|token| {
                    token.layers.iter().map(|l| ((*l, token.position), token.heads.clone()))
                });
                let planted: BTreeMap<(usize, usize), Vec<usize>> = planted.collect();
                assert_eq!(drawing.collect::<BTreeMap<_, _>>(), planted);
                assert!(!planted.is_empty());
            }
        }
    }
}

#[test]
fn a_device_with_its_own_memory_measures_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let truth = plant(dir.path(), &everything(2)).unwrap();
    let trace = &traces(&truth)[0];
    let on_cpu = Transformer::load(dir.path(), cpu(Precision::F32)).unwrap();
    let foreign = Foreign::new(cpu(Precision::F32));
    let on_device = Transformer::load(dir.path(), foreign).unwrap();
    let rows = measured(&on_cpu, trace, &with_attention());
    assert_eq!(measured(&on_device, trace, &with_attention()), rows);

    // Without attention the other measures are the same, and scores are absent.
    let without = measured(&on_cpu, trace, &ScanOptions::new(Preset::Paper));
    assert!(!without.is_empty() && without.iter().all(|row| row.scores.is_none()));
    let others = [Measure::Alignment, Measure::Massive, Measure::Norm];
    for measure in others {
        assert_eq!(places(&without, measure), places(&rows, measure), "{measure:?}");
    }
}

/// The states of every layer, `[layers][T][width]`.
#[derive(Default)]
struct States(BTreeMap<usize, Vec<Vec<f32>>>);

impl Probe for States {
    fn access(&self, site: Site, _: usize) -> Access {
        if site == Site::ResidPost { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> fathom_model::Result<()> {
        let width = values.len() / at.positions.len();
        let rows = values.chunks_exact(width).map(<[f32]>::to_vec);
        self.0.entry(at.layer).or_default().extend(rows);
        Ok(())
    }
}

/// What the definitions say of a token at a layer, as they are written.
struct Definition {
    massive: Vec<usize>,
    norm_ratio: f64,
    mean_score: f64,
    heads_above: Vec<usize>,
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// `scores` are `[heads][T]`.
fn definition(states: &[Vec<f32>], scores: &[Vec<f32>], t: usize) -> Definition {
    let x = &states[t];
    let mut sizes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let median = (sizes[(x.len() - 1) / 2] + sizes[x.len() / 2]) / 2.0;
    let is_massive = |i: &usize| x[*i].abs() > 100.0 && x[*i].abs() > 1000.0 * median;
    let others = states.iter().enumerate().filter(|(other, _)| *other != t);
    let (sum, count) = others.fold((0.0, 0.0), |(sum, n), (_, x)| (sum + norm(x), n + 1.0));
    let heads = 0..scores.len();
    Definition {
        massive: (0..x.len()).filter(is_massive).collect(),
        norm_ratio: if count > 0.0 { norm(x) / (sum / count) } else { 0.0 },
        mean_score: scores.iter().map(|s| f64::from(s[t])).sum::<f64>() / scores.len() as f64,
        heads_above: heads.filter(|head| scores[*head][t] > 0.3).collect(),
    }
}

/// Compares `rows` with the definitions at every token and layer. Returns how many rows had each
/// measure.
fn assert_by_definition(
    rows: &[TokenMeasures],
    states: &[Vec<Vec<f32>>],
    scores: &[Vec<Vec<f32>>],
    aligned: &Places,
) -> [usize; 4] {
    let by_place: BTreeMap<(usize, usize), &TokenMeasures> =
        rows.iter().map(|row| ((row.layer, row.position), row)).collect();
    assert_eq!(by_place.len(), rows.len());
    assert!(rows.is_sorted_by_key(|row| (row.position, row.layer)));
    let mut counts = [0; 4];
    for (l, (states, scores)) in states.iter().zip(scores).enumerate() {
        for t in 0..states.len() {
            let want = definition(states, scores, t);
            let is_aligned = aligned.contains(&(l, t));
            let large = want.norm_ratio >= 5.0;
            let holds = [is_aligned, !want.heads_above.is_empty(), !want.massive.is_empty(), large];
            (0..4).for_each(|i| counts[i] += usize::from(holds[i]));
            let Some(row) = by_place.get(&(l, t)) else {
                let close = (want.norm_ratio / 5.0 - 1.0).abs() < 1e-5;
                assert!(!holds.contains(&true) || close, "layer {l}, position {t}: {holds:?}");
                continue;
            };
            assert_eq!(row.aligned, is_aligned);
            let dims: Vec<usize> = row.massive.largest.iter().map(|(dim, _)| *dim).collect();
            assert_eq!(row.massive.count, want.massive.len());
            assert!(want.massive.len() > 8 || dims == want.massive);
            for (dim, value) in &row.massive.largest {
                assert_eq!(states[t][*dim], *value);
            }
            let ratio = f64::from(row.norm_ratio);
            // With zero vectors only around it, the ratio is infinite, and stored as the largest.
            let wanted = want.norm_ratio.min(f64::from(f32::MAX));
            assert!((ratio - wanted).abs() <= 1e-5 * wanted, "{ratio} {wanted}");
            assert!(row.large_norm == large || (ratio / 5.0 - 1.0).abs() < 1e-5);
            let found = row.scores.as_ref().unwrap();
            assert_eq!(found.heads_above, want.heads_above);
            assert!((f64::from(found.mean) - want.mean_score).abs() < 1e-6);
            let max = scores.iter().map(|head| head[t]).fold(f32::NEG_INFINITY, f32::max);
            assert_eq!((found.max, scores[found.max_head][t]), (max, max));
        }
    }
    counts
}

fn heads(scores: &[f32], tokens: usize) -> Vec<Vec<f32>> {
    scores.chunks_exact(tokens).map(<[f32]>::to_vec).collect()
}

#[test]
fn rows_are_those_of_the_definitions_on_captured_states() {
    for (seed, precision) in [(5, Precision::F32), (6, Precision::Bf16)] {
        let dir = tempfile::tempdir().unwrap();
        let truth = plant(dir.path(), &everything(seed)).unwrap();
        let model = Transformer::load(dir.path(), cpu(precision)).unwrap();
        let trace = &traces(&truth)[1];
        let options = SequenceOptions { sink_scores: true, ..SequenceOptions::default() };
        let mut sequence = model.new_sequence(options);
        let mut states = States::default();
        model.prefill(&mut sequence, &trace.ids, 60, Some(&mut states), &mut |_| ()).unwrap();
        let states: Vec<Vec<Vec<f32>>> = states.0.into_values().collect();
        let scores = (0..truth.layers).map(|l| model.sink_score(&sequence, l).unwrap().unwrap());
        let scores: Vec<_> = scores.map(|scores| heads(&scores, trace.ids.len())).collect();
        let sinks = truth.sequences[1].sinks.iter();
        let aligned = sinks.flat_map(|s| s.layers.iter().map(|l| (*l, s.position))).collect();
        let rows = measured(&model, trace, &with_attention());
        let counts = assert_by_definition(&rows, &states, &scores, &aligned);
        assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    }
}

const LAYERS: usize = 3;
const HEADS: usize = 2;

/// Random states `[layers][T][width]`, some rows of which are large, aligned with row 0, or have
/// massive components; and random scores `[layers][heads][T]`.
fn random(tokens: usize, width: usize, seed: u64) -> [Vec<Vec<Vec<f32>>>; 2] {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut states = Vec::new();
    for layer in 0..LAYERS {
        let mut rows: Vec<Vec<f32>> =
            (0..tokens).map(|_| (0..width).map(|_| next() - 0.5).collect()).collect();
        let first = rows[0].clone();
        for row in &mut rows {
            match (next() * 10.0) as u32 {
                0 => row.iter_mut().for_each(|x| *x *= 40.0),
                1 => row.iter_mut().zip(&first).for_each(|(x, first)| *x = 0.1 * *x + 30.0 * first),
                2 => row.iter_mut().step_by(5).for_each(|x| *x *= 3000.0),
                3 => row.iter_mut().for_each(|x| *x = 0.0),
                _ => {}
            }
        }
        if layer > 0 {
            rows[0].iter_mut().for_each(|x| *x *= 200.0);
        }
        states.push(rows);
    }
    let head = |next: &mut dyn FnMut() -> f32| (0..tokens).map(|_| next().powi(3)).collect();
    let scores = (0..LAYERS).map(|_| (0..HEADS).map(|_| head(&mut next)).collect()).collect();
    [states, scores]
}

proptest! {
    #[test]
    fn rows_are_those_of_the_definitions_on_random_states(
        tokens in 1_usize..25, width in 1_usize..40, chunk in 1_usize..9, seed: u64,
    ) {
        let [states, scores] = random(tokens, width, seed);
        let options = ScalarOptions { candidates: vec![0], final_state: false, massive: true };
        let mut probe = ScalarProbe::new(LAYERS, &vec![7; tokens], &options);
        for start in (0..tokens).step_by(chunk) {
            let positions = start..(start + chunk).min(tokens);
            for (layer, rows) in states.iter().enumerate() {
                let at = At {
                    site: Site::ResidPost, layer, sequence: 0, positions: positions.clone()
                };
                probe.read(&at, &rows[positions.clone()].concat()).unwrap();
            }
        }
        let scalars = probe.finish().unwrap();
        let options = DetectOptions::new(Preset::Paper);
        let detection = detect(&scalars, &options);
        let all = detection.sinks.iter();
        let all = all.chain(detection.other_phases.iter().flat_map(|phase| &phase.sinks));
        let aligned = all.flat_map(|s| s.layers.iter().map(|l| (*l, s.position))).collect();
        let layer = |heads: &Vec<Vec<f32>>| LayerScores::new(&heads.concat(), HEADS, 0..0);
        let of_layers = TraceScores { layers: scores.iter().map(layer).collect() };
        let rows = token_measures(&scalars, &detection, Some(&of_layers), options.rise_factor);
        assert_by_definition(&rows, &states, &scores, &aligned);
    }
}

fn written(model: &Transformer<Cpu>, dir: &Path, truth: &PlantedTruth) -> fathom_sinks::RunDir {
    let note = ModelNote::new("planted", dir, model.config()).unwrap();
    let file = TracesNote::new(&dir.join("traces.jsonl")).unwrap();
    let manifest = Manifest::new(note, file, "cpu".to_owned(), with_attention());
    let writer = RunWriter::create(&dir.join("run"), manifest).unwrap();
    scan(model, &traces(truth), &|id| Some(format!("<{id}>")), writer, &mut ()).unwrap()
}

#[test]
fn a_run_counts_where_the_measures_agree() {
    let dir = tempfile::tempdir().unwrap();
    let truth = plant(dir.path(), &everything(9)).unwrap();
    let model = Transformer::load(dir.path(), cpu(Precision::F32)).unwrap();
    let run = written(&model, dir.path(), &truth);
    let found = Agreement::of_run(&run, 50).unwrap().unwrap();
    let config = model.config();

    // Counted again from the rows of each trace.
    let mut pairs = BTreeMap::new();
    let mut tokens_of = BTreeMap::new();
    let mut reference = vec![vec![0.0; config.heads]; config.layers];
    let mut anywhere = reference.clone();
    let (mut pairs_in_all, mut tokens_in_all) = (0, 0);
    let traces = traces(&truth);
    for trace in &traces {
        let rows = measured(&model, trace, &with_attention());
        pairs_in_all += trace.ids.len() * config.layers;
        tokens_in_all += trace.ids.len();
        for t in 0..trace.ids.len() {
            let of_token = rows.iter().filter(|row| row.position == t);
            let all: BTreeSet<Measure> = of_token.flat_map(|row| row.holds().iter()).collect();
            *tokens_of.entry(all.into_iter().collect::<Vec<_>>()).or_insert(0) += 1;
        }
        for row in &rows {
            *pairs.entry(row.holds().iter().collect::<Vec<_>>()).or_insert(0) += 1;
        }
        for (l, (reference, anywhere)) in reference.iter_mut().zip(&mut anywhere).enumerate() {
            for head in 0..config.heads {
                let above = |row: &&TokenMeasures| {
                    row.layer == l && row.scores.as_ref().unwrap().heads_above.contains(&head)
                };
                let one = 1.0 / traces.len() as f64;
                let at_reference = rows.iter().filter(above).any(|row| row.position == 0);
                reference[head] += if at_reference { one } else { 0.0 };
                let end = trace.ids.len() - 10;
                let somewhere = rows.iter().filter(above).any(|row| row.position < end);
                anywhere[head] += if somewhere { one } else { 0.0 };
            }
        }
    }
    pairs.insert(Vec::new(), pairs_in_all - pairs.values().sum::<usize>());
    assert_eq!((found.pairs(), found.tokens), (pairs_in_all, tokens_in_all));
    for combination in &found.combinations {
        let measures: Vec<Measure> = combination.set.iter().collect();
        assert_eq!(combination.pairs, pairs.remove(&measures).unwrap_or(0), "{measures:?}");
        assert_eq!(combination.tokens, tokens_of.remove(&measures).unwrap_or(0), "{measures:?}");
        assert!(combination.near_end <= combination.pairs);
    }
    assert!(pairs.is_empty() && tokens_of.is_empty());
    let rates = found.rates.as_ref().unwrap();
    let close = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-9)
    };
    assert!(close(&rates.reference, &reference) && close(&rates.anywhere, &anywhere));
    assert!(SinkRates::mean(&rates.reference) > 0.1);

    // The planted dimensions, and the planted tokens, first of all that draw without alignment.
    let dims: Vec<usize> = found.massive.iter().map(|dim| dim.dim).collect();
    let planted = truth.sequences.iter().flat_map(|sequence| &sequence.massive);
    let planted: BTreeSet<usize> = planted.flat_map(|token| token.dims.clone()).collect();
    assert_eq!(dims.iter().copied().collect::<BTreeSet<_>>(), planted);
    let mut expected = BTreeSet::new();
    for (trace, sequence) in truth.sequences.iter().enumerate() {
        expected.extend(
            sequence
                .attention_only
                .iter()
                .map(|token| (trace, token.position, token.layers.clone())),
        );
    }
    assert_eq!(found.never_aligned_count, expected.len());
    let first = found.unaligned.iter().take(expected.len()).map(|token| {
        assert_eq!(token.token_text, Some(format!("<{}>", token.token_id)));
        (token.trace, token.position, token.layers_where(TokenMeasures::draws_unaligned))
    });
    assert_eq!(first.collect::<BTreeSet<_>>(), expected);

    // Fewer tokens are the first of these.
    let few = Agreement::of_run(&run, 2).unwrap().unwrap();
    assert_eq!(few.unaligned[..], found.unaligned[..2]);
    assert_eq!(few.strongest[..], found.strongest[..2]);
    assert_eq!(few.unaligned_count, found.unaligned_count);
}

#[test]
fn runs_of_earlier_versions_have_no_measures() {
    let dir = tempfile::tempdir().unwrap();
    let truth = plant(dir.path(), &PlantOptions { traces: 1, ..everything(1) }).unwrap();
    let model = Transformer::load(dir.path(), cpu(Precision::F32)).unwrap();
    let run = written(&model, dir.path(), &truth);
    let table = run.dir().join("measures.parquet");
    std::fs::remove_file(&table).unwrap();
    assert_eq!(Agreement::of_run(&run, 5).unwrap(), None);
    std::fs::copy(run.dir().join("norms.parquet"), &table).unwrap();
    let error = Agreement::of_run(&run, 5).unwrap_err().to_string();
    assert!(error.contains("measures.parquet: has no column"), "{error}");
    std::fs::write(&table, "no table").unwrap();
    let error = Agreement::of_run(&run, 5).unwrap_err().to_string();
    assert!(error.contains("measures.parquet"), "{error}");
}
