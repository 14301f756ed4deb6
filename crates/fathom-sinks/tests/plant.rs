//! Planted models have exactly the sinks of their truth.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    Access, At, ChatTemplate, Message, Probe, RenderOptions, SequenceOptions, Site, TextEncoder,
    TokenizedTrace, Tokenizer, TraceReader, Transformer,
};
use fathom_sinks::plant::{PlantOptions, PlantedSink, PlantedTruth, plant};
use fathom_sinks::{
    Class, Clip, DetectOptions, Detection, Phase, Preset, ScalarOptions, ScalarProbe, TraceScalars,
    detect,
};
use sha2::{Digest, Sha256};

/// A planted model, loaded.
struct Planted {
    dir: tempfile::TempDir,
    truth: PlantedTruth,
    model: Transformer<Cpu>,
}

/// The default options, but for seed and number of traces.
fn with(seed: u64, traces: usize) -> PlantOptions {
    PlantOptions { seed, traces, ..PlantOptions::default() }
}

/// Options that plant everything.
fn everything(seed: u64) -> PlantOptions {
    PlantOptions { two_phases: true, attention_only: true, massive: true, ..with(seed, 6) }
}

/// Measurements of a trace: norms and cosines, and sink scores `[layer][heads · T]`.
struct Measured {
    scalars: TraceScalars,
    scores: Vec<Vec<f32>>,
}

impl Planted {
    fn new(options: PlantOptions, precision: Precision) -> Planted {
        let dir = tempfile::tempdir().unwrap();
        let truth = plant(dir.path(), &options).unwrap();
        let backend = Cpu::new(CpuOptions { precision, ..CpuOptions::default() }).unwrap();
        let model = Transformer::load(dir.path(), backend).unwrap();
        Planted { dir, truth, model }
    }

    fn seed(seed: u64, precision: Precision) -> Planted {
        Planted::new(PlantOptions { seed, ..PlantOptions::default() }, precision)
    }

    /// The traces, encoded from their texts.
    fn traces(&self) -> Vec<TokenizedTrace> {
        traces(self.dir.path())
    }

    fn measure(&self, ids: &[u32]) -> Measured {
        let layers = self.truth.layers;
        let options = ScalarOptions { candidates: vec![0], final_state: false, massive: false };
        let mut probe = ScalarProbe::new(layers, ids, &options);
        let mut sequence = self.model.new_sequence(SequenceOptions {
            planned_len: Some(ids.len()),
            sink_scores: true,
            ..SequenceOptions::default()
        });
        self.model.prefill(&mut sequence, ids, 128, Some(&mut probe), &mut |_| ()).unwrap();
        let scores =
            (0..layers).map(|l| self.model.sink_score(&sequence, l).unwrap().unwrap()).collect();
        Measured { scalars: probe.finish().unwrap(), scores }
    }

    fn measure_all(&self) -> Vec<Measured> {
        self.traces().iter().map(|trace| self.measure(&trace.ids)).collect()
    }
}

fn text_files(dir: &Path) -> (Tokenizer, ChatTemplate) {
    (Tokenizer::from_dir(dir).unwrap(), ChatTemplate::from_dir(dir).unwrap().unwrap())
}

fn encoder<'a>((tokenizer, template): &'a (Tokenizer, ChatTemplate)) -> TextEncoder<'a> {
    TextEncoder {
        tokenizer: Some(tokenizer),
        template: Some(template),
        render: RenderOptions::default(),
        vocab_size: tokenizer.vocab_size(),
    }
}

fn traces(dir: &Path) -> Vec<TokenizedTrace> {
    let files = text_files(dir);
    let encoder = encoder(&files);
    let traces = TraceReader::open(&dir.join("traces.jsonl")).unwrap();
    traces.map(|trace| trace.unwrap().token_ids(&encoder).unwrap()).collect()
}

/// Counts the components |x| > 100 and > 1000 · median |x| of resid_post: (layer, position) to
/// their indices.
#[derive(Default)]
struct MassiveProbe(BTreeMap<(usize, usize), Vec<usize>>);

impl Probe for MassiveProbe {
    fn access(&self, site: Site, _: usize) -> Access {
        if site == Site::ResidPost { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> fathom_model::Result<()> {
        let width = values.len() / at.positions.len();
        for (position, state) in at.positions.clone().zip(values.chunks_exact(width)) {
            let mut sizes: Vec<f32> = state.iter().map(|x| x.abs()).collect();
            sizes.sort_by(f32::total_cmp);
            let bound = (1000.0 * sizes[width / 2]).max(100.0);
            let dims: Vec<usize> = (0..width).filter(|i| state[*i].abs() > bound).collect();
            if !dims.is_empty() {
                self.0.insert((at.layer, position), dims);
            }
        }
        Ok(())
    }
}

fn detections(measured: &[Measured], options: &DetectOptions) -> Vec<Detection> {
    measured.iter().map(|measured| detect(&measured.scalars, options)).collect()
}

fn assert_recovered(truth: &PlantedTruth, detections: &[Detection]) {
    let mismatches: Vec<String> =
        truth.compare(detections).iter().map(ToString::to_string).collect();
    assert_eq!(mismatches, Vec::<String>::new());
}

#[test]
fn every_planted_sink_is_found_and_nothing_else() {
    for precision in [Precision::F32, Precision::Bf16] {
        for seed in [0, 1, u64::MAX] {
            let planted = Planted::seed(seed, precision);
            let measured = planted.measure_all();
            for threshold in [0.93, 0.95, 0.97] {
                let options = DetectOptions { threshold, ..DetectOptions::new(Preset::Paper) };
                assert_recovered(&planted.truth, &detections(&measured, &options));
            }
        }
    }
}

#[test]
fn phases_and_their_sinks_are_found_exactly() {
    for precision in [Precision::F32, Precision::Bf16] {
        for seed in [0, 1, u64::MAX] {
            let alone = PlantOptions { two_phases: true, ..with(seed, 6) };
            for options in [alone, everything(seed)] {
                let planted = Planted::new(options, precision);
                let truth = &planted.truth;
                let [early, late] = truth.phases[..] else { panic!("{:?}", truth.phases) };
                assert!(early.end < late.start && late == truth.clip);
                let measured = planted.measure_all();
                for threshold in [0.93, 0.95, 0.97] {
                    let options = DetectOptions { threshold, ..DetectOptions::new(Preset::Paper) };
                    assert_recovered(truth, &detections(&measured, &options));
                }
            }
        }
    }
}

/// Every trace has secondary sinks of the early phase only, of the late one only, and of both.
#[test]
fn each_phase_has_secondary_sinks_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let truth = plant(dir.path(), &everything(12)).unwrap();
    let early_levels = [("level2", (4, 4)), ("early2", (5, 3)), ("early1", (6, 2))];
    for sequence in &truth.sequences {
        let mut phases: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // by position
        for sink in sequence.sinks.iter().filter(|sink| sink.class == Class::Secondary) {
            phases.entry(sink.position).or_default().push(sink.phase.unwrap());
        }
        for expected in [&[0][..], &[1], &[0, 1]] {
            assert!(phases.values().any(|phases| phases == expected), "{expected:?}");
        }
        let early = |sink: &&PlantedSink| sink.phase == Some(0) && sink.class == Class::Secondary;
        for sink in sequence.sinks.iter().filter(early) {
            let level = (sink.l_start, sink.lifetime);
            assert!(early_levels.contains(&(sink.kind.as_str(), level)), "{sink:?}");
        }
    }
}

/// No token but these and sinks has a score above 0.3 at any head. The last tokens are left out:
/// only few positions can attend to them.
#[test]
fn attention_only_tokens_are_found_by_their_scores_alone() {
    for precision in [Precision::F32, Precision::Bf16] {
        for seed in [0, 1, u64::MAX] {
            let planted = Planted::new(everything(seed), precision);
            let heads = planted.model.config().heads;
            for sequence in &planted.truth.sequences {
                let Measured { scalars, scores } = planted.measure(&sequence.input_ids);
                let tokens = sequence.input_ids.len();
                let is_sink = |t| sequence.sinks.iter().any(|sink| sink.position == t);
                let mut found = BTreeSet::new(); // (layer, head, position)
                for (l, scores) in scores.iter().enumerate() {
                    let places = (0..heads).flat_map(|h| (0..tokens - 10).map(move |t| (h, t)));
                    let high = places.filter(|(h, t)| scores[h * tokens + t] > 0.3);
                    found.extend(high.filter(|(_, t)| !is_sink(*t)).map(|(h, t)| (l, h, t)));
                }
                let mut expected = BTreeSet::new();
                for token in &sequence.attention_only {
                    for l in &token.layers {
                        expected.extend(token.heads.iter().map(|h| (*l, *h, token.position)));
                    }
                    for l in 0..planted.truth.layers {
                        let norm = scalars.hidden_norm.at(l, token.position);
                        let cosine = scalars.candidates[0].cosine.at(l, token.position);
                        let in_phase =
                            planted.truth.phases.iter().any(|clip| clip.layers().contains(&l));
                        assert!(norm < 15.0, "{}, layer {l}: {norm}", token.kind);
                        assert!(!in_phase || cosine < 0.5, "{}, layer {l}: {cosine}", token.kind);
                    }
                }
                assert_eq!(sequence.attention_only.len(), 2);
                assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn massive_activations_are_found_in_resid_post_alone() {
    for precision in [Precision::F32, Precision::Bf16] {
        for seed in [0, 1, u64::MAX] {
            let planted = Planted::new(everything(seed), precision);
            let heads = planted.model.config().heads;
            for sequence in &planted.truth.sequences {
                let ids = &sequence.input_ids;
                let mut probe = MassiveProbe::default();
                let mut pass = planted.model.new_sequence(SequenceOptions::default());
                planted.model.prefill(&mut pass, ids, 128, Some(&mut probe), &mut |_| ()).unwrap();
                let mut expected = BTreeMap::new();
                for token in &sequence.massive {
                    let at = |l: &usize| ((*l, token.position), token.dims.clone());
                    expected.extend(token.layers.iter().map(at));
                }
                assert!(sequence.massive.iter().any(|token| token.dims.len() == 2));
                assert_eq!(probe.0, expected);

                let Measured { scalars, scores } = planted.measure(ids);
                for token in &sequence.massive {
                    assert!(sequence.sinks.iter().all(|sink| sink.position != token.position));
                    for l in &token.layers {
                        let cosine = scalars.candidates[0].cosine.at(*l, token.position);
                        assert!(cosine.abs() < 0.1, "layer {l}: {cosine}");
                        if token.position + 10 >= ids.len() {
                            continue; // only few positions can attend to it
                        }
                        for h in 0..heads {
                            let score = scores[*l][h * ids.len() + token.position];
                            assert!(score < 0.1, "layer {l}, head {h}: {score}");
                        }
                    }
                }
            }
        }
    }
}

/// Checks the clip and the margins directly on norms and cosines.
#[test]
fn cosines_keep_clear_of_the_threshold() {
    for precision in [Precision::F32, Precision::Bf16] {
        let planted = Planted::seed(3, precision);
        let Clip { start, end } = planted.truth.clip;
        for (sequence, measured) in planted.truth.sequences.iter().zip(planted.measure_all()) {
            let norm = |l| measured.scalars.hidden_norm.at(l, 0);
            assert!(norm(start) > 100.0 * norm(start - 1), "BOS rises");
            assert!(norm(end) < 0.2 * norm(end - 1), "BOS falls");
            let cosine = &measured.scalars.candidates[0].cosine;
            for position in 0..sequence.input_ids.len() {
                let sink = sequence.sinks.iter().find(|sink| sink.position == position);
                for l in start..end {
                    let cosine = cosine.at(l, position);
                    if sink.is_some_and(|sink| sink.layers.contains(&l)) {
                        assert!(cosine > 0.972, "position {position}, layer {l}: {cosine}");
                    } else {
                        assert!(cosine < 0.9, "position {position}, layer {l}: {cosine}");
                    }
                }
            }
        }
    }
}

#[test]
fn decoys_have_their_stated_properties() {
    let planted = Planted::seed(4, Precision::F32);
    let layer = planted.truth.clip.end - 1;
    let mut kinds = BTreeMap::new();
    for (sequence, measured) in planted.truth.sequences.iter().zip(planted.measure_all()) {
        let Measured { scalars, .. } = measured;
        for decoy in &sequence.decoys {
            let cosine = scalars.candidates[0].cosine.at(layer, decoy.position);
            let norm = scalars.hidden_norm.at(layer, decoy.position);
            let holds = match decoy.kind.as_str() {
                "huge" => norm > scalars.hidden_norm.at(layer, 0) && cosine.abs() < 0.05,
                "anti" => cosine < -0.95,
                "oblique" => (0.7..0.9).contains(&cosine),
                "template" | "context" => norm < 12.0 && cosine.abs() < 0.1,
                kind => panic!("unexpected decoy {kind}"),
            };
            assert!(holds, "{} at {}: {cosine}, {norm}", decoy.kind, decoy.position);
            *kinds.entry(decoy.kind.clone()).or_insert(0) += 1;
        }
    }
    assert_eq!(kinds.len(), 5, "{kinds:?}");
}

#[test]
fn norms_are_as_planned_and_lifetimes_grow_with_them() {
    let planted = Planted::seed(5, Precision::F32);
    let mut lifetimes: BTreeMap<u64, Vec<usize>> = BTreeMap::new(); // by planned norm
    for (sequence, measured) in planted.truth.sequences.iter().zip(planted.measure_all()) {
        for sink in &sequence.sinks {
            let kind = planted.truth.kinds.iter().find(|kind| kind.kind == sink.kind).unwrap();
            let norm = measured.scalars.mlp_out_norm.at(kind.layer, sink.position);
            let ratio = f64::from(norm) / kind.mlp_out_norm;
            assert!((0.8..1.2).contains(&ratio), "{} at {}: {norm}", sink.kind, sink.position);
            if sink.class == Class::Secondary {
                lifetimes.entry(kind.mlp_out_norm as u64).or_default().push(sink.lifetime);
            }
        }
    }
    assert!(lifetimes.len() >= 3);
    let levels: Vec<(usize, usize)> = lifetimes
        .values()
        .map(|lifetimes| (*lifetimes.iter().min().unwrap(), *lifetimes.iter().max().unwrap()))
        .collect();
    assert!(levels.windows(2).all(|pair| pair[0].1 < pair[1].0), "{levels:?}");
}

/// Sink scores increase with the norm of a sink, and value norms decrease.
#[test]
fn larger_sinks_draw_more_attention_and_pass_on_less() {
    for precision in [Precision::F32, Precision::Bf16] {
        let planted = Planted::seed(6, precision);
        let layer = 10; // all levels are sinks at the layer before
        let sequence = &planted.truth.sequences[3];
        let measured = planted.measure(&sequence.input_ids);
        let tokens = sequence.input_ids.len();
        let mean = |of: &dyn Fn(usize) -> f32, positions: &[usize]| {
            positions.iter().map(|t| of(*t)).sum::<f32>() / positions.len() as f32
        };
        let heads = planted.model.config().heads;
        let score = |t: usize| {
            (0..heads).map(|h| measured.scores[layer][h * tokens + t]).sum::<f32>() / heads as f32
        };
        let value = |t: usize| measured.scalars.value_norm.at(layer, t);

        // Exclude the last 100 tokens, which only few positions can attend to.
        let of_kind = |kind: &str| -> Vec<usize> {
            let sinks = sequence.sinks.iter().filter(|sink| sink.kind == kind);
            sinks.map(|sink| sink.position).filter(|t| *t < tokens - 100).collect()
        };
        let special: Vec<usize> = sequence
            .sinks
            .iter()
            .map(|sink| sink.position)
            .chain(sequence.decoys.iter().map(|decoy| decoy.position))
            .collect();
        let ordinary: Vec<usize> = (0..tokens - 100).filter(|t| !special.contains(t)).collect();

        let kinds = ["bos", "level3", "level2", "level1"];
        let mut scores: Vec<f32> = kinds.iter().map(|kind| mean(&score, &of_kind(kind))).collect();
        scores.push(mean(&score, &ordinary));
        assert!(scores.windows(2).all(|pair| pair[0] > 1.2 * pair[1]), "{scores:?}");
        assert!(scores[0] > 0.1 && scores[4] < 0.01, "{scores:?}");

        let mut values: Vec<f32> = kinds.iter().map(|kind| mean(&value, &of_kind(kind))).collect();
        values.push(mean(&value, &ordinary));
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "{values:?}");
        assert!(values[0] < 0.02 * values[4], "{values:?}");
    }
}

/// Replacing the trigger before a context sink removes this sink and no other.
#[test]
fn a_context_sink_needs_its_context() {
    let planted = Planted::seed(7, Precision::F32);
    let sequence = &planted.truth.sequences[0];
    let sink = sequence.sinks.iter().find(|sink| sink.kind == "context").unwrap();
    let (tokenizer, _) = text_files(planted.dir.path());
    let mut ids = sequence.input_ids.clone();
    ids[sink.position - 1] = tokenizer.token_to_id("Ġcheck").unwrap();
    let found = detect(&planted.measure(&ids).scalars, &DetectOptions::new(Preset::Paper));
    let positions: Vec<usize> = found.sinks.iter().map(|sink| sink.position).collect();
    let others = sequence.sinks.iter().map(|sink| sink.position).filter(|t| *t != sink.position);
    assert_eq!(positions, others.collect::<Vec<_>>());
}

#[test]
fn the_text_of_the_traces_has_the_ids_of_the_truth() {
    let planted = Planted::new(with(8, 7), Precision::F32);
    let (tokenizer, _) = text_files(planted.dir.path());
    let traces = planted.traces();
    assert_eq!(traces.len(), 7);
    for (trace, sequence) in traces.iter().zip(&planted.truth.sequences) {
        assert_eq!(trace.ids, sequence.input_ids);
        assert_eq!(trace.prompt_len, sequence.prompt_len);
        assert_eq!(trace.ids.iter().filter(|id| Some(**id) == tokenizer.bos_id()).count(), 1);
        let output = tokenizer.decode(&trace.ids[trace.prompt_len..]).unwrap();
        let file = fs::read_to_string(planted.dir.path().join("traces.jsonl")).unwrap();
        assert!(file.contains(&serde_json::to_string(&output).unwrap()), "{output}");
        assert!((200..=700).contains(&trace.ids.len()), "{}", trace.ids.len());
    }
}

/// Any text is encoded and decoded without loss, with one BOS in front.
#[test]
fn any_text_survives_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path(), &PlantOptions::default()).unwrap();
    let files = text_files(dir.path());
    let bos = files.0.bos_id().unwrap();
    for text in ["So x = 12.\n\nWait", "naïve 東京 🙂\t\r\n  \"quoted\"", "  a  "] {
        let bare = files.0.encode(text, false).unwrap();
        assert_eq!(files.0.decode(&bare).unwrap(), text);
        let with_bos = files.0.encode(text, true).unwrap();
        assert_eq!((with_bos[0], &with_bos[1..]), (bos, bare.as_slice()));
        let chat = encoder(&files).chat_ids(&[Message::user(text)]).unwrap();
        assert_eq!(chat.iter().filter(|id| **id == bos).count(), 1);
    }
}

fn bytes(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.map(|entry| (name(&entry), fs::read(entry.path()).unwrap())).collect()
}

/// Options that are off change nothing in what is planted.
#[test]
fn the_default_plant_keeps_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path(), &PlantOptions::default()).unwrap();
    let mut hasher = Sha256::new();
    for (name, bytes) in bytes(dir.path()) {
        hasher.update(name);
        hasher.update(bytes);
    }
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "03e0183ebbfe86ab0386a2a48a645f894c9ef7ce7be283632b36edd02ec04e70");
}

#[test]
fn same_seed_same_bytes() {
    let planted = |seed| {
        let dir = tempfile::tempdir().unwrap();
        plant(&dir.path().join("new/model"), &with(seed, 2)).unwrap();
        bytes(&dir.path().join("new/model"))
    };
    let (first, second, other) = (planted(9), planted(9), planted(10));
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "traces.jsonl",
        "truth.json",
    ];
    assert_eq!(names, expected);
    assert!(first == second);
    for name in ["model.safetensors", "traces.jsonl", "truth.json"] {
        assert!(first[name] != other[name], "{name}");
    }
}

#[test]
fn the_truth_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let truth = plant(dir.path(), &PlantOptions::default()).unwrap();
    let path = dir.path().join("truth.json");
    assert_eq!(PlantedTruth::read(&path).unwrap(), truth);
    fs::write(&path, "{}").unwrap();
    let message = PlantedTruth::read(&path).unwrap_err().to_string();
    assert!(message.contains("truth.json: is not the truth of a planted model"), "{message}");
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let message = plant(dir.path(), &PlantOptions::default()).unwrap_err().to_string();
    assert!(message.contains("is not empty"), "{message}");
    let file = dir.path().join("notes.txt");
    assert!(plant(&file, &PlantOptions::default()).is_err());
    let none = PlantOptions { traces: 0, ..PlantOptions::default() };
    assert!(plant(&dir.path().join("none"), &none).is_err());
    assert_eq!(bytes(dir.path()), BTreeMap::from([("notes.txt".to_owned(), b"mine".to_vec())]));
}

#[test]
fn mismatches_name_the_phases_that_differ() {
    let options = PlantOptions { two_phases: true, ..with(11, 1) };
    let planted = Planted::new(options, Precision::F32);
    let right = detections(&planted.measure_all(), &DetectOptions::new(Preset::Paper));
    let wrong = |change: &dyn Fn(&mut Vec<Phase>)| -> Vec<String> {
        let mut found = right.clone();
        change(&mut found[0].other_phases);
        planted.truth.compare(&found).iter().map(ToString::to_string).collect()
    };
    assert_eq!(wrong(&|_| ()), Vec::<String>::new());
    assert_eq!(wrong(&|found| found.clear()), ["trace 0: no phase at layers 3..8, planted there"]);
    assert_eq!(
        wrong(&|found| found[0].clip.start = 2),
        [
            "trace 0: no phase at layers 3..8, planted there",
            "trace 0: a phase at layers 2..8, not planted"
        ]
    );
    assert_eq!(
        wrong(&|found| found[0].sinks.retain(|sink| sink.position != 1)),
        ["trace 0: `template` at position 1 was not found"]
    );
    assert_eq!(
        wrong(&|found| found[0].sinks[0].class = Class::Secondary),
        ["trace 0: `bos` at position 0 is secondary at layers [3, 4, 5, 6, 7], planted primary \
             at [3, 4, 5, 6, 7]"]
    );
}

/// Every kind of difference is reported.
#[test]
fn mismatches_name_what_differs() {
    let planted = Planted::new(with(11, 2), Precision::F32);
    let right = detections(&planted.measure_all(), &DetectOptions::new(Preset::Paper));
    let wrong = |change: &dyn Fn(&mut Vec<Detection>)| -> Vec<String> {
        let mut found = right.clone();
        change(&mut found);
        planted.truth.compare(&found).iter().map(ToString::to_string).collect()
    };
    assert_eq!(wrong(&|_| ()), Vec::<String>::new());
    assert_eq!(wrong(&|found| _ = found.pop()), ["trace 1: not scanned"]);
    assert_eq!(wrong(&|found| found.push(right[0].clone())), ["trace 2: not planted"]);
    assert_eq!(
        wrong(&|found| found[0].clip = Some(Clip { start: 2, end: 18 })),
        ["trace 0: reference sink at layers 2..18, planted at 3..18"]
    );
    assert_eq!(
        wrong(&|found| found[1].sinks.retain(|sink| sink.position != 1)),
        ["trace 1: `template` at position 1 was not found"]
    );
    assert_eq!(
        wrong(&|found| found[0].sinks[0].class = Class::Secondary),
        ["trace 0: `bos` at position 0 is secondary at layers [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, \
             13, 14, 15, 16, 17], planted primary at [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
             16, 17]"]
    );
    let phase =
        |start, end| Phase { clip: Clip { start, end }, rise: 6.0, peak: 6.0, sinks: Vec::new() };
    assert_eq!(
        wrong(&|found| found[0].other_phases.push(phase(1, 2))),
        ["trace 0: a phase at layers 1..2, not planted"]
    );
    let decoy = planted.truth.sequences[0].decoys[0].position;
    let extra = wrong(&|found| {
        let mut sink = found[0].sinks[0].clone();
        sink.position = decoy;
        found[0].sinks.push(sink);
    });
    assert_eq!(extra.len(), 1);
    assert!(extra[0].contains(&format!("position {decoy} is primary, but a decoy")), "{extra:?}");
}
