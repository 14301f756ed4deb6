//! Run directories: after an interruption in any state, resuming gives the same bytes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type};
use arrow_array::{Array, RecordBatch};
use fathom_backend::Massive;
use fathom_sinks::{
    Class, Clip, Finding, Fingerprints, LayerScores, Manifest, Measures, ModelNote, NormCurve,
    NormCurves, Preset, RunDir, RunTable, RunWriter, ScanNote, ScanOptions, Sink, TokenMeasures,
    TokenScores, TraceDetection, TraceResult, TraceScores, TracesNote,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

const TRACES: usize = 3;
const LAYERS: usize = 4;
const TOKENS: usize = 6;
const HEADS: usize = 2;

/// File contents by path relative to the run.
type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

fn manifest(attention: bool) -> Manifest {
    let model = ModelNote {
        id: "some/model".to_owned(),
        architecture: "LlamaForCausalLM".to_owned(),
        layers: LAYERS,
        heads: HEADS,
        hidden: 8,
        rope_base: 1e4,
        fingerprints: Fingerprints {
            config_sha256: "aa".to_owned(),
            weights_sha256: "bb".to_owned(),
            tokenizer_sha256: "cc".to_owned(),
        },
        adapter: None,
    };
    let traces = TracesNote {
        file: "traces.jsonl".to_owned(),
        sha256: "dd".to_owned(),
        read: None,
        grown: Vec::new(),
    };
    let options = ScanOptions { attention, ..ScanOptions::new(Preset::Paper) };
    Manifest::new(model, traces, "cpu portable".to_owned(), options)
}

fn detection(trace: usize) -> TraceDetection {
    let sink = |position, class, layers: Vec<usize>| Sink {
        position,
        token_id: 7 + position as u32,
        token_text: (position > 0).then(|| "\"a\"\n".to_owned()),
        class,
        measures: Some(Measures {
            min_cosine: 0.97,
            mean_cosine: 0.98,
            hidden_norm: 12.5,
            mlp_out_norm: 0.1 + trace as f32,
            key_norm: (layers[0] + 1 < LAYERS).then_some(3.0),
            value_norm: None,
        }),
        sink_score: Some(vec![0.25; LAYERS]),
        layers,
    };
    let note = ScanNote {
        finding: Finding::SecondarySinks,
        reference: 0,
        clip: Some(Clip { start: 1, end: 4 }),
        rise: 31.0,
        layers: LAYERS,
        tokens: TOKENS,
        preset: Preset::Paper,
    };
    TraceDetection {
        sample_index: 60 + trace as u64,
        prompt_len: 2,
        response_len: 4,
        full_text_len: 6,
        sinks: vec![sink(0, Class::Primary, vec![1, 2, 3]), sink(4, Class::Secondary, vec![2, 3])],
        other_phases: Vec::new(),
        scan: Some(note),
    }
}

fn record(writer: &mut RunWriter) {
    let trace = writer.recorded();
    let detection = detection(trace);
    let curve = |x: f32| NormCurve {
        hidden: vec![x; LAYERS],
        key: vec![x + 1.0; LAYERS],
        value: vec![x + 2.0; LAYERS],
    };
    let curves = NormCurves {
        tokens: vec![(0, curve(90.0)), (4, curve(50.0))],
        average: Some(curve(trace as f32)),
    };
    let scores: Vec<f32> = (0..HEADS * TOKENS).map(|i| i as f32 / 16.0).collect();
    let layer = LayerScores::new(&scores, HEADS, [0, 4].into_iter());
    let scores = TraceScores { layers: vec![layer; LAYERS] };
    let scores = writer.manifest().options.attention.then_some(&scores);
    let measures = &measures(trace, scores.is_some());
    let texts = BTreeMap::from([(7, "a".to_owned()), (8, " b".to_owned())]);
    let ids = &[7, 8, 7, 9, 7, 8][..TOKENS];
    let (detection, curves, texts) = (&detection, &curves, &texts);
    writer.record(&TraceResult { detection, curves, measures, scores, ids, texts }).unwrap();
}

/// Rows with and without massive activations and heads above ε.
fn measures(trace: usize, attention: bool) -> Vec<TokenMeasures> {
    let row = |position, layer, aligned, massive: Massive| TokenMeasures {
        position,
        layer,
        aligned,
        scores: attention.then(|| TokenScores {
            mean: 0.2,
            max: 0.25 * (1 + position) as f32,
            max_head: 1,
            heads_above: if position > 0 { vec![0, 1] } else { Vec::new() },
        }),
        massive,
        norm_ratio: 7.5 + trace as f32,
        large_norm: true,
    };
    let massive = Massive { count: 11, largest: vec![(3, -120.5), (1700, 4e3)] };
    vec![
        row(0, 1, true, Massive::default()),
        row(0, 2, true, massive),
        row(4, 0, false, Massive::default()),
    ]
}

fn complete(mut writer: RunWriter) -> RunDir {
    while !writer.is_complete() && writer.recorded() < TRACES {
        record(&mut writer);
    }
    writer.finish().unwrap()
}

fn snapshot(dir: &Path) -> Snapshot {
    let mut files = Snapshot::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            files.extend(
                snapshot(&path).into_iter().map(|(inner, bytes)| (name.join(inner), bytes)),
            );
        } else {
            files.insert(name, fs::read(path).unwrap());
        }
    }
    files
}

fn restore(files: &Snapshot) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// The files of an uninterrupted run, and their state after the manifest and after each trace.
fn uninterrupted(attention: bool) -> (Snapshot, Vec<Snapshot>) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = RunWriter::create(dir.path(), manifest(attention)).unwrap();
    let mut states = vec![snapshot(dir.path())];
    for _ in 0..TRACES {
        record(&mut writer);
        states.push(snapshot(dir.path()));
    }
    writer.finish().unwrap();
    (snapshot(dir.path()), states)
}

fn assert_resumes(state: &Snapshot, expected: &Snapshot, attention: bool, what: &str) {
    let dir = restore(state);
    complete(RunWriter::resume(dir.path(), manifest(attention)).unwrap());
    let got = snapshot(dir.path());
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    assert!(got == *expected, "{what}: bytes differ");
}

#[test]
fn every_interruption_resumes_to_the_same_bytes() {
    for attention in [false, true] {
        let (expected, states) = uninterrupted(attention);
        let resumes = |state: &Snapshot, what: &str| {
            assert_resumes(state, &expected, attention, what);
        };
        let detections = PathBuf::from("detections.jsonl");
        let manifest = PathBuf::from("run.json");

        // Before the manifest was written.
        resumes(&Snapshot::new(), "an empty directory");
        let half = states[0][&manifest][..20].to_vec();
        resumes(&Snapshot::from([("run.json.tmp".into(), half)]), "half a manifest");
        resumes(
            &Snapshot::from([(manifest.clone(), states[0][&manifest].clone())]),
            "a manifest only",
        );

        for (done, state) in states.iter().enumerate() {
            resumes(state, &format!("after {done} traces"));
            let Some(next) = states.get(done + 1) else { continue };

            // The parts of the next trace are written one by one, first under a temporary name.
            let mut growing = state.clone();
            for (name, bytes) in next.iter().filter(|(name, _)| !state.contains_key(*name)) {
                let temporary = PathBuf::from(format!("{}.tmp", name.display()));
                growing.insert(temporary.clone(), bytes[..bytes.len() / 2].to_vec());
                resumes(&growing, &format!("half of {}", name.display()));
                growing.remove(&temporary);
                growing.insert(name.clone(), bytes.clone());
                resumes(&growing, &format!("{} without its line", name.display()));
            }
            // The line is truncated.
            let (start, end) = (state[&detections].len(), next[&detections].len());
            for cut in [start + 1, (start + end) / 2, end - 1] {
                growing.insert(detections.clone(), next[&detections][..cut].to_vec());
                resumes(&growing, &format!("a line cut after {} bytes", cut - start));
            }
            // A part of the line's trace is missing.
            let mut lost = next.clone();
            let last_part = lost.keys().rfind(|name| name.starts_with("parts")).unwrap().clone();
            lost.remove(&last_part);
            resumes(&lost, "a line without a part");
        }

        // Interrupted while the tables and then the manifest are written, and while parts are
        // removed.
        let mut finishing = states[TRACES].clone();
        for (name, bytes) in expected.iter().filter(|(name, _)| **name != manifest) {
            finishing.insert(PathBuf::from(format!("{}.tmp", name.display())), vec![1, 2, 3]);
            let what = format!("before {}", name.display());
            if name.extension().is_some_and(|extension| extension == "parquet") {
                resumes(&finishing, &what);
            }
            finishing.remove(&PathBuf::from(format!("{}.tmp", name.display())));
            finishing.insert(name.clone(), bytes.clone());
            resumes(&finishing, &what);
        }
        finishing.insert(manifest.clone(), expected[&manifest].clone());
        resumes(&finishing, "before the parts were removed");
        let parts: Vec<PathBuf> =
            finishing.keys().filter(|name| name.starts_with("parts")).cloned().collect();
        for part in parts {
            finishing.remove(&part);
            resumes(&finishing, "while the parts were removed");
        }
    }
}

#[test]
fn nothing_is_overwritten() {
    let refused = |files: &Snapshot, resume: bool, expected: &str| {
        let dir = restore(files);
        let result = match resume {
            true => RunWriter::resume(dir.path(), manifest(false)),
            false => RunWriter::create(dir.path(), manifest(false)),
        };
        let message = result.unwrap_err().to_string();
        assert!(message.ends_with(expected), "{message}");
        assert!(snapshot(dir.path()) == *files);
    };
    let (finished, states) = uninterrupted(false);
    let another = "already holds a run: give another directory, or `--resume` to continue it";
    refused(&finished, false, another);
    refused(&states[1], false, another);
    refused(&Snapshot::from([("run.json.tmp".into(), vec![])]), false, another);
    let thesis = Snapshot::from([("thesis.tex".into(), b"chapter 1".to_vec())]);
    refused(&thesis, false, "is not empty and holds no run: give another directory");
    refused(&thesis, true, "is not empty and holds no run.json: there is no run to resume");

    let foreign = |text: &str| Snapshot::from([("run.json".into(), text.as_bytes().to_vec())]);
    refused(&foreign("{"), true, "run.json: is not valid JSON (line 1, column 1)");
    refused(&foreign("{}"), true, "run.json: `format` is missing: not the manifest of a run");
    refused(
        &foreign(r#"{"format": 9}"#),
        true,
        "run.json: `format` is 9, but this version of Fathom reads 1",
    );
}

#[test]
fn another_run_is_not_resumed() {
    let (finished, states) = uninterrupted(false);
    let refused = |change: &dyn Fn(&mut Manifest), expected: &str| {
        for state in [&finished, &states[2]] {
            let dir = restore(state);
            let mut asked = manifest(false);
            change(&mut asked);
            let message = RunWriter::resume(dir.path(), asked).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.ends_with("now: it cannot be resumed"), "{message}");
            assert!(snapshot(dir.path()) == *state);
        }
    };
    refused(
        &|asked| asked.options.max_tokens = Some(9),
        "run.json: `options.max_tokens` is null in this run, but 9 now",
    );
    refused(
        &|asked| asked.options.preset = Preset::Upstream,
        "`options.preset` is \"paper\" in this run, but \"upstream\" now",
    );
    refused(
        &|asked| asked.traces.sha256 = "ee".to_owned(),
        "`traces.sha256` is \"dd\" in this run, but \"ee\" now",
    );
    refused(
        &|asked| asked.model.fingerprints.weights_sha256 = "ff".to_owned(),
        "`model.weights_sha256` is \"bb\" in this run, but \"ff\" now",
    );
    refused(&|asked| asked.fathom = "9.9.9".to_owned(), "`fathom` is ");

    // The names of the model and the traces may differ.
    let dir = restore(&states[2]);
    let mut renamed = manifest(false);
    renamed.model.id = "./elsewhere".to_owned();
    renamed.traces.file = "moved.jsonl".to_owned();
    complete(RunWriter::resume(dir.path(), renamed).unwrap());
    assert!(snapshot(dir.path()) == finished);
}

#[test]
fn two_processes_do_not_write_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let writer = RunWriter::create(dir.path(), manifest(false)).unwrap();
    let message = RunWriter::resume(dir.path(), manifest(false)).unwrap_err().to_string();
    assert!(
        message.ends_with("detections.jsonl: is being written by another process"),
        "{message}"
    );
    drop(writer);
    RunWriter::resume(dir.path(), manifest(false)).unwrap();
}

#[test]
fn a_damaged_line_in_the_middle_is_refused() {
    let (_, states) = uninterrupted(false);
    let mut state = states[2].clone();
    state.get_mut(Path::new("detections.jsonl")).unwrap()[5] = b'!';
    let dir = restore(&state);
    let message = RunWriter::resume(dir.path(), manifest(false)).unwrap_err().to_string();
    assert!(message.contains("detections.jsonl: line 1: "), "{message}");
}

#[test]
fn an_unfinished_run_is_not_opened() {
    let (_, states) = uninterrupted(false);
    let message = RunDir::open(restore(&states[2]).path()).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "run.json: `status` is `running`: the scan did not finish; finish it with `--resume`"
        ),
        "{message}"
    );
    let message = RunDir::open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(message.ends_with("holds no run: there is no run.json"), "{message}");
}

#[test]
fn recorded_data_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let run = complete(RunWriter::create(dir.path(), manifest(true)).unwrap());
    let without = tempfile::tempdir().unwrap();
    let without = complete(RunWriter::create(without.path(), manifest(false)).unwrap());
    let mut unmeasured = Vec::new();
    assert!(without.measures(TRACES, &mut |row| unmeasured.push(row.measures)).unwrap());
    assert_eq!(unmeasured, (0..TRACES).flat_map(|t| measures(t, false)).collect::<Vec<_>>());

    let expected: Vec<TraceDetection> = (0..TRACES).map(detection).collect();
    assert_eq!(run.detections().unwrap(), expected);
    let counts = run.manifest().counts.unwrap();
    assert_eq!((counts.traces, counts.tokens), (TRACES, TRACES * TOKENS));
    assert_eq!((counts.primary, counts.secondary, counts.noise), (TRACES, TRACES, 0));

    let table = |table| {
        let file = fs::File::open(run.table(table).unwrap()).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        assert_eq!(batches.len(), 1);
        batches.into_iter().next().unwrap()
    };
    let sinks = table(RunTable::Sinks);
    assert_eq!(sinks.num_rows(), 2 * TRACES);
    let column = |name| sinks.column_by_name(name).unwrap();
    assert_eq!(column("class").as_string::<i32>().value(3), "secondary");
    assert_eq!(column("mlp_out_norm").as_primitive::<Float32Type>().value(5), 2.1);
    let layers = column("layers").as_list::<i32>().value(1);
    assert_eq!(layers.as_primitive::<UInt32Type>().values(), &[2, 3]);

    let norms = table(RunTable::Norms);
    assert_eq!(norms.num_rows(), TRACES * 3 * LAYERS);
    let position = norms.column_by_name("position").unwrap();
    assert_eq!(position.null_count(), TRACES * LAYERS);
    let read = run.norms(TRACES, &|trace| trace == 1).unwrap();
    assert_eq!(read.len(), 3 * LAYERS);
    assert_eq!((read[0].trace, read[0].position, read[0].layer), (1, Some(0), 0));
    assert_eq!((read[0].hidden, read[0].key, read[0].value), (90.0, 91.0, 92.0));
    assert_eq!((read[2 * LAYERS].position, read[2 * LAYERS].hidden), (None, 1.0));

    let text = run.text(TRACES).unwrap().unwrap();
    assert_eq!(text.ids, vec![vec![7, 8, 7, 9, 7, 8]; TRACES]);
    assert_eq!(text.texts, BTreeMap::from([(7, "a".to_owned()), (8, " b".to_owned())]));

    let mut rows = Vec::new();
    assert!(run.measures(TRACES, &mut |row| rows.push(row)).unwrap());
    let expected = (0..TRACES).flat_map(|trace| measures(trace, true).into_iter().zip([trace; 3]));
    assert_eq!(rows.len(), 3 * TRACES);
    for (row, (measures, trace)) in rows.iter().zip(expected) {
        assert_eq!((row.trace, &row.measures), (trace, &measures));
    }
    assert_eq!((rows[2].token_id, rows[2].token_text.as_deref()), (7, Some("a")));

    // Mean over heads of 4/16 and 10/16, the same at every layer.
    let drawn = run.attention_received(&[TOKENS; TRACES]).unwrap().unwrap();
    assert!((drawn[2][4] - 7.0 / 16.0).abs() < 1e-6, "{drawn:?}");

    let scores = table(RunTable::Scores);
    assert_eq!(scores.num_rows(), TRACES * LAYERS * TOKENS);
    let column = |name| scores.column_by_name(name).unwrap();
    // Position 4 has 4/16 at head 0 and 10/16 at head 1.
    assert_eq!(column("mean").as_primitive::<Float32Type>().value(4), 7.0 / 16.0);
    assert_eq!(column("max").as_primitive::<Float32Type>().value(4), 10.0 / 16.0);
    assert_eq!(column("max_head").as_primitive::<UInt32Type>().value(4), 1);
    let heads = column("heads").as_list::<i32>();
    assert_eq!(heads.value(4).as_primitive::<Float32Type>().values(), &[0.25, 0.625]);
    assert!(heads.is_null(3));
}

#[test]
fn an_unfinished_run_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let mut writer = RunWriter::create(&path, manifest(true)).unwrap();
    record(&mut writer);
    record(&mut writer);
    drop(writer);
    // Writing of the third line was interrupted.
    let detections = path.join("detections.jsonl");
    let mut lines = fs::read(&detections).unwrap();
    lines.extend_from_slice(b"{\"candidate_sin");
    fs::write(&detections, lines).unwrap();

    assert!(RunDir::open(&path).is_err());
    let run = RunDir::open_unfinished(&path).unwrap();
    assert!(!run.is_complete());
    assert_eq!(run.detections().unwrap(), [detection(0), detection(1)]);
    assert_eq!(run.norms(2, &|_| true).unwrap().len(), 2 * 3 * LAYERS);
    assert_eq!(run.text(2).unwrap().unwrap().ids.len(), 2);
    assert!(run.attention_received(&[TOKENS; 2]).unwrap().is_some());

    // Runs of earlier versions have no tokens file.
    fs::remove_file(path.join("parts/000001.tokens.parquet")).unwrap();
    assert_eq!(run.text(2).unwrap(), None);
}
