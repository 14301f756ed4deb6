//! Detection files: written detections are read back, and errors in a file are named.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fathom_sinks::{
    Class, Clip, Finding, Measures, Phase, Preset, ScanNote, Sink, TraceDetection, read_detections,
    reclassify,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(text: &str) -> Result<TraceDetection, String> {
    TraceDetection::parse(Path::new("d.jsonl"), 3, text).map_err(|error| error.to_string())
}

fn published() -> Value {
    json!({
        "candidate_sinks": {
            "0": { "layer": [1, 2, 3], "token_id": 9, "sink_type": "bos_sink" },
            "17": { "layer": [2], "token_id": 5, "sink_type": "noise" },
        },
        "sample_index": 4, "prompt_len": 2, "response_len": 30, "full_text_len": 32,
    })
}

#[test]
fn every_mistake_is_named() {
    let expect = |change: &dyn Fn(&mut Value), problem: &str| {
        let mut value = published();
        change(&mut value);
        assert_eq!(parse(&value.to_string()).unwrap_err(), format!("d.jsonl: line 3: {problem}"));
    };
    let sink = |value: &mut Value, field: &str, wrong: Value| {
        value["candidate_sinks"]["17"][field] = wrong;
    };
    let layers =
        "`candidate_sinks.17.layer` must be a list of layer numbers, ascending and not empty";
    for wrong in
        [json!([]), json!([3, 2]), json!([2, 2]), json!([-1]), json!([1.5]), json!([1 << 16])]
    {
        expect(&|value| sink(value, "layer", wrong.clone()), layers);
    }
    expect(&|value| sink(value, "layer", json!("2")), layers);
    let token = "`candidate_sinks.17.token_id` must be a token id";
    for wrong in [json!(-1), json!("5"), json!(1u64 << 32), json!(null)] {
        expect(&|value| sink(value, "token_id", wrong.clone()), token);
    }
    expect(
        &|value| sink(value, "sink_type", json!("main")),
        "`candidate_sinks.17.sink_type` must be `bos_sink`, `secondary` (or `cliff`) or `noise`",
    );
    expect(
        &|value| sink(value, "token_text", json!(1)),
        "`candidate_sinks.17.token_text` must be a string",
    );
    expect(
        &|value| sink(value, "sink_score", json!(["a"])),
        "`candidate_sinks.17.sink_score` must be a list of numbers",
    );
    expect(
        &|value| sink(value, "min_cosine", json!(0.9)),
        "`candidate_sinks.17` cannot be read: missing field `mean_cosine`",
    );
    expect(
        &|value| value["candidate_sinks"]["17"] = json!([]),
        "`candidate_sinks.17` must be an object",
    );
    for key in ["-1", "+1", "01", "x", "99999999999999999999999"] {
        expect(
            &|value| value["candidate_sinks"][key] = json!({}),
            &format!("`candidate_sinks` has a key `{key}` that is not a position"),
        );
    }
    expect(
        &|value| value["full_text_len"] = json!(17),
        "`candidate_sinks` has position 17, beyond `full_text_len` 17",
    );
    expect(
        &|value| value["candidate_sinks"] = json!([]),
        "`candidate_sinks` must be an object keyed by position",
    );
    for field in ["candidate_sinks", "sample_index", "prompt_len", "response_len", "full_text_len"]
    {
        expect(
            &|value| drop(value.as_object_mut().unwrap().remove(field)),
            &format!("`{field}` is missing"),
        );
    }
    expect(&|value| value["prompt_len"] = json!(2.5), "`prompt_len` must be a whole number ≥ 0");
    expect(
        &|value| value["fathom"] = json!({ "finding": "nothing" }),
        "`fathom` cannot be read: unknown variant `nothing`, expected one of `too_short`, \
         `no_primary_sink`, `primary_only`, `secondary_sinks`",
    );
    expect(&|value| *value = json!([1]), "must be a JSON object, `{...}`");
    assert_eq!(parse("{\"a\": ").unwrap_err(), "d.jsonl: line 3: is not valid JSON (column 6)");
}

#[test]
fn files_are_read_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        read_detections(&path).unwrap_err().to_string()
    };
    assert!(error(b"\n\n").ends_with("d.jsonl: holds no detections"));
    assert!(error(b"\n{}\n").ends_with("d.jsonl: line 2: `prompt_len` is missing"));
    assert!(error(b"\xff\n").ends_with("d.jsonl: line 1: is not UTF-8 text"));
    fs::write(&path, format!("\n{}\r\n\n{}", published(), published())).unwrap();
    assert_eq!(read_detections(&path).unwrap().len(), 2);
    let missing = read_detections(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("none: cannot be opened: "), "{missing}");
}

/// Class, finding and the noted preset follow the new rules.
#[test]
fn lines_written_by_fathom_can_be_reclassified() {
    let mut value = published();
    value["fathom"] = json!({
        "finding": "primary_only", "reference": 0, "rise": 9.0, "layers": 20, "tokens": 32,
        "preset": "upstream", "clip": { "start": 1, "end": 4 },
    });
    value["candidate_sinks"]["17"]["layer"] = json!([2, 3]);
    let mut trace = parse(&value.to_string()).unwrap();
    trace.reclassify(Preset::Paper, 20);
    assert_eq!(trace.sinks[1].class, Class::Secondary);
    let note = trace.scan.unwrap();
    assert_eq!((note.finding, note.preset), (Finding::SecondarySinks, Preset::Paper));
}

fn any_sink() -> impl Strategy<Value = Sink> {
    let measures =
        (any::<f32>(), any::<f32>(), prop::option::of(any::<f32>())).prop_map(|(a, b, c)| {
            Measures {
                min_cosine: a,
                mean_cosine: b,
                hidden_norm: a,
                mlp_out_norm: b,
                key_norm: c,
                value_norm: None,
            }
        });
    let scores = prop::collection::vec(any::<f32>(), 0..5);
    let layers = prop::collection::btree_set(0usize..65536, 1..6);
    let class = prop::sample::select(Class::ALL.to_vec());
    let text = prop::option::of(any::<String>());
    (
        0usize..9999,
        any::<u32>(),
        class,
        layers,
        prop::option::of(measures),
        text,
        prop::option::of(scores),
    )
        .prop_map(|(position, token_id, class, layers, measures, token_text, sink_score)| {
            Sink {
                position,
                token_id,
                token_text,
                layers: layers.into_iter().collect(),
                class,
                measures,
                sink_score,
            }
        })
}

fn any_trace() -> impl Strategy<Value = TraceDetection> {
    let note =
        (any::<f32>(), 0usize..100, any::<bool>()).prop_map(|(rise, layers, upstream)| ScanNote {
            finding: Finding::PrimaryOnly,
            reference: 0,
            clip: upstream.then_some(Clip { start: 1, end: layers }),
            rise,
            layers,
            tokens: 5,
            preset: if upstream { Preset::Upstream } else { Preset::Paper },
        });
    let sinks = || {
        prop::collection::vec(any_sink(), 0..4).prop_map(|mut sinks| {
            sinks.sort_by_key(|sink| sink.position);
            sinks.dedup_by_key(|sink| sink.position);
            sinks
        })
    };
    let phase = (sinks(), 0usize..99, 1usize..9, any::<f32>(), any::<f32>()).prop_map(
        |(sinks, start, layers, rise, peak)| Phase {
            clip: Clip { start, end: start + layers },
            rise,
            peak,
            sinks,
        },
    );
    let phases = prop::collection::vec(phase, 0..3);
    (sinks(), phases, prop::option::of(note), any::<u32>()).prop_map(
        |(sinks, other_phases, scan, index)| TraceDetection {
            sample_index: u64::from(index),
            prompt_len: 3,
            response_len: 9996,
            full_text_len: 9999,
            sinks,
            other_phases,
            scan,
        },
    )
}

proptest! {
    #[test]
    fn written_detections_are_read_back(trace in any_trace()) {
        let line = trace.to_json();
        prop_assert!(!line.contains('\n'));
        prop_assert_eq!(parse(&line).unwrap(), trace);
    }

    #[test]
    fn no_line_panics(text in any::<String>(), cut in 0usize..200, noise in any::<char>()) {
        let _ = parse(&text);
        let mut line = published().to_string();
        let at = cut % line.len();
        line.replace_range(at..=at, &noise.to_string());
        if let Ok(mut trace) = parse(&line) {
            trace.reclassify(Preset::Upstream, 20);
        }
    }
}

/// Sinks of other phases are checked like those of the largest rise.
#[test]
fn a_phase_beyond_the_models_layers_is_refused() {
    let sink = r#"{"layer": [11, 12], "token_id": 7, "sink_type": "secondary"}"#;
    let line = |phases: &str| {
        format!(
            r#"{{"candidate_sinks": {{}}, "sample_index": 0, "prompt_len": 1, "response_len": 3,
            "full_text_len": 4, "phases": [{phases}]}}"#
        )
    };
    let read = |phases: &str| TraceDetection::parse(Path::new("f"), 1, &line(phases));
    let phase =
        format!(r#"{{"start": 11, "end": 13, "rise": 6, "peak": 7, "sinks": {{"2": {sink}}}}}"#);
    let trace = read(&phase).unwrap();
    assert_eq!(trace.other_phases[0].sinks[0].layers, [11, 12]);
    let error = reclassify(Path::new("f"), &mut [trace], Preset::Paper, Some(12)).unwrap_err();
    assert!(error.to_string().contains("has a sink at layer 12, but the model has 12 layers"));

    for (wrong, expected) in [
        (r#"{"start": 3, "end": 3, "rise": 6, "peak": 7, "sinks": {}}"#, "`end` must be above"),
        (r#"{"start": 3, "rise": 6, "peak": 7, "sinks": {}}"#, "`end` is missing"),
        (
            r#"{"start": 3, "end": 70000, "rise": 6, "peak": 7, "sinks": {}}"#,
            "`end` must be a layer",
        ),
        (
            r#"{"start": 3, "end": 4, "rise": "x", "peak": 7, "sinks": {}}"#,
            "`rise` must be a number",
        ),
        (
            r#"{"start": 3, "end": 4, "rise": 6, "peak": 7, "sinks": []}"#,
            "`sinks` must be an object",
        ),
        ("7", "`start` is missing"),
    ] {
        let error = read(wrong).unwrap_err().to_string();
        assert!(error.contains("`phases` cannot be read") && error.contains(expected), "{error}");
    }
}
