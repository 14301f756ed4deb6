//! Explaining planted sinks finds the causes that were planted.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use common::{Tokens, planted, traces};
use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    Change, Checkpoint, Edit, EditProbe, Edits, LogitRows, SequenceOptions, Site, Step,
    TokenizedTrace, Transformer,
};
use fathom_sinks::explain::{
    Analysis, AnalysisResult, Clusters, Decision, Effect, Entropy, ExplainOptions, ExplainProgress,
    Explanation, Inputs, KeyOptions, LevelChange, Neurons, Pca, Scope, SinkStages, Stage, Stages,
    Suppress, Swap, SweepPoint, read, result_file,
};
use fathom_sinks::plant::{PlantOptions, PlantedSequence, PlantedTruth, plant};
use fathom_sinks::{
    Class, Manifest, ModelNote, Preset, RunDir, RunWriter, ScanOptions, TracesNote, scan,
};
use serde_json::Value;
use tempfile::TempDir;

const OPTIONS: ExplainOptions =
    ExplainOptions { seed: 0, max_sinks: 100, keys: KeyOptions::DEFAULT };

/// A planted model, and a run of it.
struct Planted {
    model: Transformer<Cpu>,
    model_dir: PathBuf,
    traces: Vec<TokenizedTrace>,
    dir: TempDir,
    run: RunDir,
}

impl Planted {
    /// The planted model of the fixtures.
    fn basic(attention: bool) -> Planted {
        Planted::new(tempfile::tempdir().unwrap(), planted(), traces(), attention)
    }

    /// A newly planted model.
    fn fresh(seed: u64, traces: usize) -> (Planted, PlantedTruth) {
        let dir = tempfile::tempdir().unwrap();
        let model_dir = dir.path().join("model");
        let options = PlantOptions { seed, traces, ..PlantOptions::default() };
        let truth = plant(&model_dir, &options).unwrap();
        let trace = |(index, sequence): (usize, &PlantedSequence)| TokenizedTrace {
            index: index as u64,
            line: index + 1,
            ids: sequence.input_ids.clone(),
            prompt_len: sequence.prompt_len,
            remarks: Vec::new(),
        };
        let traces = truth.sequences.iter().enumerate().map(trace).collect();
        (Planted::new(dir, model_dir, traces, true), truth)
    }

    fn new(
        dir: TempDir,
        model_dir: PathBuf,
        traces: Vec<TokenizedTrace>,
        attention: bool,
    ) -> Planted {
        let options =
            CpuOptions { precision: Precision::F32, threads: Some(2), ..CpuOptions::default() };
        let model = Transformer::load(&model_dir, Cpu::new(options).unwrap()).unwrap();
        let note = ModelNote::new("planted", &model_dir, model.config()).unwrap();
        let file = TracesNote::new(&model_dir.join("traces.jsonl")).unwrap();
        let options = ScanOptions { attention, ..ScanOptions::new(Preset::Paper) };
        let manifest = Manifest::new(note, file, "cpu".to_owned(), options);
        let writer = RunWriter::create(&dir.path().join("run"), manifest).unwrap();
        let run = scan(&model, &traces, &|_| None, writer, &mut ()).unwrap();
        Planted { model, model_dir, traces, dir, run }
    }

    /// With all analyses done; shared by the tests that only read.
    fn explained() -> &'static Planted {
        static PLANTED: OnceLock<Planted> = OnceLock::new();
        PLANTED.get_or_init(|| {
            let planted = Planted::basic(true);
            planted.explain(&Analysis::ALL);
            planted
        })
    }

    /// As [`Planted::explained`], for a newly planted model.
    fn explained_fresh() -> &'static (Planted, PlantedTruth) {
        static PLANTED: OnceLock<(Planted, PlantedTruth)> = OnceLock::new();
        PLANTED.get_or_init(|| {
            let (planted, truth) = Planted::fresh(5, 3);
            planted.explain(&Analysis::ALL);
            (planted, truth)
        })
    }

    fn explain(&self, analyses: &[Analysis]) {
        let explanation = Explanation::new(&self.run, analyses, OPTIONS).unwrap();
        self.run_on(&explanation, &self.traces, &mut ()).unwrap();
    }

    fn run_on(
        &self,
        explanation: &Explanation<'_>,
        traces: &[TokenizedTrace],
        progress: &mut dyn ExplainProgress,
    ) -> fathom_model::Result<()> {
        let checkpoint = Checkpoint::open(&self.model_dir).unwrap();
        let inputs = Inputs {
            model: &self.model,
            checkpoint: &checkpoint,
            traces,
            text: &|ids| Some(format!("{ids:?}")),
            engine: "cpu",
        };
        explanation.with_model(&inputs, progress)
    }

    fn result<T: AnalysisResult>(&self) -> T {
        read::<T>(self.run.dir()).unwrap().unwrap().result
    }
}

/// The cosine at a stage of a layer.
fn at(sink: &SinkStages, layer: usize, stage: Stage) -> f32 {
    sink.layers.iter().find(|place| place.layer == layer).unwrap().cosines[stage as usize]
}

#[test]
fn stages_rise_to_the_sink_direction_in_the_layer_that_was_planted() {
    let (fresh, _) = Planted::explained_fresh();
    // The cosines of `basic` in HuggingFace are 0.9897 to 0.9998: its sinks also carry something
    // besides the direction.
    for (planted, least) in [(Planted::explained(), 0.9895), (fresh, 0.99)] {
        let stages: Stages = planted.result();
        assert!(stages.sinks.len() > 20);
        for sink in &stages.sinks {
            let l_start = sink.sink.l_start;
            assert!(at(sink, l_start, Stage::MlpOutToState) >= least, "{sink:?}");
            assert!(at(sink, l_start, Stage::MlpIn) < 0.9, "{sink:?}");
            assert!(at(sink, l_start - 1, Stage::MlpOutToState) < 0.9, "{sink:?}");
            assert!(at(sink, l_start + 1, Stage::MlpOutToState) < 0.9, "{sink:?}");
        }
        // The template token becomes a sink at the same layer as the reference, by the same MLP
        // output.
        let primary = stages.sinks.iter().filter(|sink| sink.sink.class == Class::Primary);
        let together: Vec<f32> =
            primary.map(|sink| at(sink, sink.sink.l_start, Stage::MlpOut)).collect();
        assert!(!together.is_empty() && together.iter().all(|cosine| *cosine >= 0.99));
        let at_start = stages.summaries.iter().filter(|s| s.layer == s.l_start);
        let mut written = at_start.filter(|s| s.stage == Stage::MlpOutToState);
        assert!(written.all(|s| s.cosine.min >= f64::from(least)));
    }
}

/// `mlp_out_cos_bos` of the truth was measured with HuggingFace.
#[test]
fn what_the_mlp_writes_is_as_aligned_as_in_huggingface() {
    let text = fs::read_to_string(planted().join("truth.json")).unwrap();
    let truth: Value = serde_json::from_str(&text).unwrap();
    let stages: Stages = Planted::explained().result();
    for sink in &stages.sinks {
        let sinks = truth["sequences"][sink.sink.trace]["sinks"].as_array().unwrap();
        let known = sinks.iter().find(|known| known["position"] == sink.sink.position).unwrap();
        let cosine = f64::from(at(sink, sink.sink.l_start, Stage::MlpOutToState));
        assert!((cosine - known["mlp_out_cos_bos"].as_f64().unwrap()).abs() < 1e-3, "{sink:?}");
    }
}

#[test]
fn swapping_before_the_planted_cause_suppresses_and_after_l_start_does_not() {
    let swap: Swap = Planted::explained().result();
    assert_eq!(swap.sinks, swap.sinks_of);
    assert!(swap.cells.iter().any(|cell| cell.l_start == 5));
    for cell in &swap.cells {
        let share = cell.suppressed.share;
        match cell.site.as_str() {
            // Everything a sink needs is in the state, until the MLP of l_start has written the
            // sink direction.
            "resid_post" => assert_eq!(share, f64::from(cell.layer <= cell.l_start), "{cell:?}"),
            // `early` needs the feature that the MLP of layer 3 writes. Replacing that layer's
            // output may affect other sinks too: the mean includes `huge`, a decoy that gets its
            // norm of 900 there.
            "mlp_out" if cell.layer == 3 => assert!(share == 1.0 || cell.l_start != 7, "{cell:?}"),
            "mlp_out" => assert_eq!(share, f64::from(cell.layer == cell.l_start), "{cell:?}"),
            // `context` needs what attention copies at layer 4. Its l_start is 6, as that of
            // `level1`.
            "attn_out" => {
                let some = (cell.l_start, cell.layer) == (6, 4);
                assert_eq!(share > 0.0, some, "{cell:?}");
                assert!(share < 1.0, "{cell:?}");
            }
            other => panic!("{other}"),
        }
        assert!(cell.suppressed.low <= share && share <= cell.suppressed.high);
    }
}

#[test]
fn larger_norms_draw_more_attention_and_last_longer() {
    let effect: Effect = Planted::explained().result();
    assert_eq!(effect.layers.len(), 16);
    for layer in &effect.layers {
        if let Some(line) = layer.line {
            assert!(line.slope > 0.0, "{layer:?}");
        }
    }
    assert!(effect.layers.iter().filter(|layer| layer.line.is_some()).count() >= 5);
    assert!(effect.lifetime_rho.unwrap() > 0.8, "{:?}", effect.lifetime_rho);
    // A token converted at l_start first receives attention at l_start + 1: the first l_start is 5.
    assert!(effect.layers[..6].iter().all(|layer| layer.alive == 0 && layer.secondary.is_none()));
    let layer = &effect.layers[9];
    assert!(layer.secondary.unwrap() < layer.reference.unwrap());
}

/// The planted causes are also found with other seeds, and so with other bases and texts.
#[test]
fn every_seed_gives_back_its_causes() {
    for seed in [1, 2, 3] {
        let (planted, truth) = Planted::fresh(seed, 2);
        planted.explain(&[Analysis::Stages, Analysis::Swap, Analysis::Effect, Analysis::Neurons]);
        let stages: Stages = planted.result();
        let sinks = stages.sinks.iter().filter(|sink| sink.sink.class == Class::Secondary);
        for sink in sinks {
            let l_start = sink.sink.l_start;
            assert!(at(sink, l_start, Stage::MlpOutToState) >= 0.99, "{seed} {sink:?}");
        }
        let swap: Swap = planted.result();
        for cell in swap.cells.iter().filter(|cell| cell.site == "resid_post") {
            let expected = f64::from(cell.layer <= cell.l_start);
            assert_eq!(cell.suppressed.share, expected, "{seed} {cell:?}");
        }
        let effect: Effect = planted.result();
        assert!(effect.lifetime_rho.unwrap() > 0.8, "{seed} {:?}", effect.lifetime_rho);
        // Up to layer 16 sinks of several levels are alive, whose norms differ by more than chance.
        for layer in &effect.layers[8..=16] {
            assert!(layer.line.unwrap().slope > 0.0, "{seed} {layer:?}");
        }
        let neurons: Neurons = planted.result();
        for layer in &neurons.layers {
            assert_only_those_of(layer.layer, &layer.ablation.levels, layer.ablation.appeared);
            let kinds = truth.kinds.iter().filter(|kind| kind.layer == layer.layer);
            let sinks = kinds.enumerate().filter(|(_, kind)| kind.class.is_some());
            let planned: Vec<usize> = sinks.map(|(neuron, _)| neuron).collect();
            let found = &layer.ablation.neurons;
            assert!(found.iter().all(|neuron| planned.contains(neuron)), "{seed} {found:?}");
        }
    }
}

#[test]
fn an_explanation_that_was_stopped_does_only_what_is_left() {
    let planted = Planted::basic(true);
    let analyses = [Analysis::Stages, Analysis::Entropy];
    let explanation = Explanation::new(&planted.run, &analyses, OPTIONS).unwrap();
    let mut broken = planted.traces.clone();
    let ordinary =
        |t: &usize| !planted.run.detections().unwrap()[4].sinks.iter().any(|s| s.position == *t);
    let last = (0..broken[4].ids.len()).rev().find(ordinary).unwrap();
    broken[4].ids[last] = 300; // beyond the vocabulary
    planted.run_on(&explanation, &broken, &mut ()).unwrap_err();

    let mut tokens = Tokens::default();
    planted.run_on(&explanation, &planted.traces, &mut tokens).unwrap();
    let of = |traces: &[TokenizedTrace]| traces.iter().map(|trace| trace.ids.len()).sum::<usize>();
    assert_eq!(tokens.0, of(&planted.traces[4..]));
    for analysis in analyses {
        let bytes = |planted: &Planted| fs::read(result_file(planted.run.dir(), analysis)).unwrap();
        assert!(bytes(&planted) == bytes(Planted::explained()), "{}", analysis.name());
    }
    assert!(!planted.dir.path().join("run/explain/parts").exists());
}

#[test]
fn what_the_scan_measured_needs_no_model_and_is_the_same_as_measuring_it() {
    let measured: Effect = Planted::explained().result();
    let planted = Planted::basic(false);
    planted.explain(&[Analysis::Effect, Analysis::Swap]);
    let again: Effect = planted.result();
    assert_eq!(again.layers.len(), measured.layers.len());
    for (a, b) in again.layers.iter().zip(&measured.layers) {
        assert_eq!(a.alive, b.alive);
        let close = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-4,
            (a, b) => a.is_none() && b.is_none(),
        };
        assert!(close(a.reference, b.reference) && close(a.secondary, b.secondary));
        assert!(close(a.line.map(|line| line.slope), b.line.map(|line| line.slope)));
    }
}

#[test]
fn a_stored_result_is_kept_until_something_it_depends_on_changes() {
    let planted = Planted::basic(true);
    let left = |options| {
        Explanation::new(&planted.run, &[Analysis::Effect], options).unwrap().analyses().to_vec()
    };
    assert_eq!(left(OPTIONS), [Analysis::Effect]);
    let explanation = Explanation::new(&planted.run, &[Analysis::Effect], OPTIONS).unwrap();
    assert!(!explanation.needs_model());
    explanation.without_model().unwrap();
    assert_eq!(left(OPTIONS), []);
    assert_eq!(left(ExplainOptions { seed: 1, ..OPTIONS }), [Analysis::Effect]);

    let file = planted.dir.path().join("run/explain/effect.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"format\":1", "\"format\":2", 1)).unwrap();
    let error = read::<Effect>(planted.run.dir()).unwrap_err().to_string();
    assert!(error.ends_with("`format` is 2, but this version of Fathom reads 1"), "{error}");
    assert_eq!(left(OPTIONS), [Analysis::Effect]);
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    let error = read::<Effect>(planted.run.dir()).unwrap_err().to_string();
    assert!(error.contains("is not the result of `fathom explain --effect`"), "{error}");
}

/// Checks that the sinks created at `layer` are gone and all others are unchanged.
fn assert_only_those_of(layer: usize, levels: &[LevelChange], appeared: usize) {
    assert_eq!(appeared, 0, "{layer}");
    assert!(levels.iter().any(|level| level.l_start == layer && level.before > 0));
    for level in levels {
        let (gone, kept) =
            if level.l_start == layer { (level.before, 0) } else { (0, level.before) };
        assert_eq!((level.gone, level.kept, level.changed), (gone, kept, 0), "{layer} {level:?}");
    }
}

#[test]
fn the_planted_neurons_are_found_and_ablating_them_removes_exactly_their_level() {
    let (fresh, truth) = Planted::explained_fresh();
    for planted in [Planted::explained(), fresh] {
        let neurons: Neurons = planted.result();
        assert_eq!(neurons.layers.len(), 3);
        for layer in &neurons.layers {
            assert_only_those_of(layer.layer, &layer.ablation.levels, layer.ablation.appeared);
            assert!(layer.ablation.share > 0.9, "{layer:?}");
            assert!(layer.ablation.neurons.len() <= 2, "one neuron a kind: {layer:?}");
            let shares: f64 = layer.neurons.iter().map(|neuron| neuron.share).sum();
            assert!(shares > 0.9 && layer.projection > 30.0, "{layer:?}");
            assert!(layer.ablation.perplexity_before.is_finite());
            assert!(layer.ablation.perplexity_after != layer.ablation.perplexity_before);
        }
        // The planted heads read sinks far more than other tokens.
        let head = neurons.heads.first().unwrap();
        assert!(head.sinks > 5.0 * head.others && head.reference > head.sinks, "{head:?}");
    }
    // A layer's converting neurons come first in its MLP, in the order of the kinds.
    let neurons: Neurons = fresh.result();
    for layer in &neurons.layers {
        let kinds = truth.kinds.iter().filter(|kind| kind.layer == layer.layer);
        let sinks = kinds.enumerate().filter(|(_, kind)| kind.class.is_some());
        let planted: Vec<usize> = sinks.map(|(neuron, _)| neuron).collect();
        assert_eq!(layer.ablation.neurons, planted, "layer {}", layer.layer);
        assert_eq!(layer.neurons[0].index, planted[0]);
    }
}

#[test]
fn clamping_a_layer_suppresses_its_sinks_and_changes_what_follows() {
    let (fresh, _) = Planted::explained_fresh();
    for planted in [Planted::explained(), fresh] {
        let suppress: Suppress = planted.result();
        assert_eq!(suppress.layers.len(), 3);
        for layer in &suppress.layers {
            assert_only_those_of(layer.layer, &layer.levels, layer.appeared);
            let created = layer.levels.iter().filter(|level| level.l_start == layer.layer);
            assert_eq!(layer.clamped, created.map(|level| level.before).sum::<usize>());
            let first = layer.later[0];
            assert_eq!(first.layer, layer.layer);
            assert!(first.cosine_before > 0.95 && first.cosine_after < 0.9, "{first:?}");
            assert!(first.norm_after < first.norm_before / 2.0, "{first:?}");
            let kl = layer.kl.unwrap();
            assert!(kl.min >= 0.0 && kl.max > 0.0 && kl.max.is_finite(), "{kl:?}");
            assert!(layer.nll_before > 0.0 && layer.nll_after > 0.0);
        }
    }
}

/// The most likely tokens after `ids`, each from a fresh pass over all tokens before it.
fn written(model: &Transformer<Cpu>, ids: &[u32], edits: &Edits, tokens: usize) -> Vec<u32> {
    let mut text = ids.to_vec();
    for _ in 0..tokens {
        let mut sequence = model.new_sequence(SequenceOptions::default());
        let mut step = [Step { sequence: &mut sequence, tokens: &text, logits: LogitRows::Last }];
        let logits = model.forward(&mut step, Some(&mut EditProbe::new(edits))).unwrap();
        let logits = logits.step(model.backend(), 0).unwrap();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        text.push(best as u32);
    }
    text.split_off(ids.len())
}

#[test]
fn what_the_model_writes_with_a_layer_clamped_is_what_it_writes_from_scratch() {
    let planted = Planted::explained();
    let suppress: Suppress = planted.result();
    let mut differ = 0;
    for layer in &suppress.layers {
        assert!(!layer.continuations.is_empty());
        for continuation in &layer.continuations {
            let ids = &planted.traces[continuation.trace].ids;
            assert!(continuation.from <= ids.len() && continuation.clamped > 0);
            let (before, after) = (&continuation.before, &continuation.after);
            assert_eq!((before.ids.len(), after.ids.len()), (48, 48));
            assert_eq!(before.text.as_deref(), Some(format!("{:?}", before.ids).as_str()));
            let first = before.ids.iter().zip(&after.ids).position(|(a, b)| a != b);
            assert_eq!(continuation.differs_at, first);
            differ += usize::from(first.is_some());
        }
    }
    assert!(differ > 0);

    let (layer, continuation) = suppress
        .layers
        .iter()
        .flat_map(|layer| layer.continuations.iter().map(move |one| (layer, one)))
        .find(|(_, one)| one.differs_at.is_some())
        .unwrap();
    let ids = &planted.traces[continuation.trace].ids[..continuation.from];
    let plain = written(&planted.model, ids, &Edits::default(), 12);
    assert_eq!(plain, continuation.before.ids[..12]);
    // The sinks of that layer, by position rather than by alignment.
    let sinks: Vec<usize> = planted.run.detections().unwrap()[continuation.trace]
        .sinks
        .iter()
        .filter(|sink| sink.l_start() == layer.layer && sink.position < continuation.from)
        .map(|sink| sink.position)
        .collect();
    let clamp = |position| {
        let (site, change) = (Site::MlpOut, Change::Clamp(layer.norm));
        Edit::new(site, layer.layer, position, change)
    };
    let clamps: Vec<Edit> = sinks.into_iter().map(clamp).collect();
    assert_eq!(clamps.len(), continuation.clamped);
    let clamps = Edits::new(clamps, planted.model.config(), None).unwrap();
    let until = continuation.differs_at.unwrap() + 1;
    assert_eq!(written(&planted.model, ids, &clamps, until), continuation.after.ids[..until]);
}

#[test]
fn the_residual_stream_is_compressed_where_the_reference_is_a_sink() {
    let (planted, truth) = Planted::explained_fresh();
    let entropy: Entropy = planted.result();
    assert_eq!(entropy.traces.len(), 3);
    for (trace, sequence) in entropy.traces.iter().zip(&truth.sequences) {
        let [with, without] = trace.series.as_slice() else { panic!("{trace:?}") };
        assert_eq!((with.scope, with.first), (Scope::WithPrompt, 0));
        assert_eq!((without.scope, without.first), (Scope::WithoutPrompt, sequence.prompt_len));
        let whole = with.windows.last().unwrap();
        assert_eq!(whole.tokens, sequence.input_ids.len());
        assert_eq!(whole.entropy.len(), truth.layers);
        let before = whole.entropy[truth.clip.start - 1];
        for l in truth.clip.start..truth.clip.end {
            assert!(whole.entropy[l] < 0.5 * before, "{l}: {:?}", whole.entropy);
        }
        let first = without.windows.first().unwrap();
        assert_eq!((first.tokens, first.rows), (16, 16));
        assert!(first.entropy.iter().all(|e| *e > 0.0 && f64::from(*e) <= 16f64.ln()));
    }
}

/// The planted neurons read a marker. For the component that contains the marker, the MLP writes
/// the sink direction with much of the sinks' own norm; for the other components it writes almost
/// nothing.
#[test]
fn the_mlp_s_input_is_low_rank_and_the_planted_key_drives_the_output() {
    let (fresh, _) = Planted::explained_fresh();
    for planted in [Planted::explained(), fresh] {
        let pca: Pca = planted.result();
        assert_eq!(pca.layers.len(), 3);
        for layer in &pca.layers {
            assert!(layer.sinks > 0 && layer.others == layer.sinks);
            assert!(layer.explained.is_sorted_by(|a, b| a >= b));
            assert!(layer.explained.iter().sum::<f64>() <= 1.0 + 1e-6);
            let first: f64 = layer.explained[..8].iter().sum();
            assert!(first > 0.75, "8 of 96: {first}");

            let points = || layer.components.iter().flat_map(|component| &component.points);
            let strong =
                |share: f64| points().filter(move |p| f64::from(p.norm) > share * layer.sink_norm);
            assert!(strong(0.25).count() > 0, "{layer:?}");
            assert!(strong(0.1).all(|point| point.cosine_to_state > 0.98), "{layer:?}");
            let driven = |points: &[SweepPoint]| {
                points.iter().any(|point| f64::from(point.norm) > 0.1 * layer.sink_norm)
            };
            let driving = layer.components.iter().filter(|c| driven(&c.points)).count();
            assert!((1..=2).contains(&driving), "one key a kind of token: {layer:?}");
            for component in &layer.components {
                assert!(component.sink_projection >= 0.0);
                assert_eq!(component.points.len(), 41);
                assert_eq!(component.points[20].norm, 0.0, "nothing in, nothing out");
            }
        }
    }
}

#[test]
fn future_sinks_stand_apart_before_they_are_sinks() {
    let clusters: Clusters = Planted::explained().result();
    let at = |site: &str, layer: usize| {
        clusters.places.iter().find(|p| p.site == site && p.layer == layer).unwrap()
    };
    let sinks = clusters.points.iter().filter(|point| point.l_start.is_some()).count();
    assert_eq!(clusters.points.len(), 2 * sinks);
    for place in &clusters.places {
        assert_eq!(place.tsne.len(), clusters.points.len());
        assert!(place.tsne.iter().flatten().all(|x| x.is_finite()));
        assert!((-1.0..=1.0).contains(&place.silhouette));
    }
    // What attention copies at layer 4 separates `context` from its decoys. At 8 all are sinks.
    let separability = |layer| at("resid_post", layer).separability;
    assert!(separability(3) < 0.9 && separability(4) > 0.92 && separability(8) > 0.95);
    assert!(at("resid_post", 8).silhouette > 0.4 && at("resid_post", 0).silhouette < 0.2);
    // Of the sinks of layer 6, some (`context`) become different from tokens of the same id by what
    // attention copies at layer 4; those made at other layers have ids of their own.
    let decided = |l_start: usize, site: &str| {
        let of = |d: &&Decision| d.l_start == l_start && d.site == site;
        clusters.decisions.iter().find(of).unwrap()
    };
    assert_eq!(decided(6, "resid_post").layer, Some(4), "{:?}", decided(6, "resid_post"));
    for decision in &clusters.decisions {
        let layers: Vec<usize> = decision.curve.iter().map(|place| place.layer).collect();
        assert!(layers.into_iter().eq(0..=decision.l_start + 1));
        if let Some(layer) = decision.layer {
            let after = decision.curve[layer..=decision.l_start].iter();
            assert!(after.clone().all(|p| p.separability >= Decision::SEPARABLE));
            assert!(layer == 0 || decision.curve[layer - 1].separability < Decision::SEPARABLE);
        }
    }
    // Attention writes nothing that most sinks have in common.
    assert!((0..10).all(|layer| at("attn_out", layer).separability < 0.8));
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let planted = Planted::basic(true);
    let analyses = [Analysis::Clusters, Analysis::Pca];
    planted.explain(&analyses);
    for analysis in analyses {
        let bytes = |planted: &Planted| fs::read(result_file(planted.run.dir(), analysis)).unwrap();
        assert!(bytes(&planted) == bytes(Planted::explained()), "{}", analysis.name());
    }
}

/// A run without any sink, of a single short trace.
#[test]
fn where_there_is_nothing_to_explain_the_results_say_so() {
    let mut trace = traces().swap_remove(0);
    trace.ids = vec![30; 6]; // no BOS, no marker
    let dir = tempfile::tempdir().unwrap();
    let planted = Planted::new(dir, planted(), vec![trace], false);
    assert!(planted.run.detections().unwrap()[0].sinks.is_empty());
    planted.explain(&Analysis::ALL);
    assert!(planted.result::<Stages>().sinks.is_empty());
    assert!(planted.result::<Pca>().layers.is_empty());
    assert!(planted.result::<Clusters>().places.is_empty());
    assert!(planted.result::<Swap>().cells.is_empty());
    let effect: Effect = planted.result();
    assert!(effect.layers.len() == 16 && effect.sinks.is_empty() && effect.lifetime_rho.is_none());
    assert!(planted.result::<Suppress>().layers.is_empty());
    let neurons: Neurons = planted.result();
    assert!(neurons.layers.is_empty() && neurons.heads.is_empty());
    assert_eq!(planted.result::<Entropy>().traces.len(), 1);
}

#[test]
fn traces_of_another_run_are_refused() {
    let planted = Planted::explained();
    let explanation =
        Explanation::new(&planted.run, &[Analysis::Stages], ExplainOptions { seed: 9, ..OPTIONS });
    let explained = |traces: &[TokenizedTrace]| {
        let explanation = explanation.as_ref().unwrap();
        planted.run_on(explanation, traces, &mut ()).unwrap_err().to_string()
    };
    let error = explained(&planted.traces[..2]);
    assert_eq!(error, "the run scanned 6 traces, but there are only 2");
    let mut other = planted.traces.clone();
    other[3].ids.reverse();
    let error = explained(&other);
    assert_eq!(error, "the detections of trace 3 do not belong to the tokens of its text");
}
