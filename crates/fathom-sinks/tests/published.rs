//! Statistics of the published detections. The expected numbers were counted independently, by a
//! dozen lines of Python over the raw JSON.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fathom_sinks::{
    Class, Level, Preset, SinkRow, TokenRow, TraceDetection, levels, read_detections, reclassify,
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn graded(name: &str, layers: usize, preset: Preset) -> Vec<TraceDetection> {
    let mut traces = read_detections(&data(name)).unwrap();
    reclassify(&data(name), &mut traces, preset, Some(layers)).unwrap();
    traces
}

fn starts(row: &SinkRow) -> Vec<(usize, usize, f64)> {
    row.secondary_layers.iter().map(|share| (share.layer, share.count, share.percent)).collect()
}

#[test]
fn upstream_classes_are_the_published_ones() {
    for (name, layers) in [("deepseek-14b.jsonl", 48), ("qwen3-4b-base.jsonl", 36)] {
        let published = read_detections(&data(name)).unwrap();
        assert_eq!(graded(name, layers, Preset::Upstream), published, "{name}");
    }
}

#[test]
fn deepseek_14b() {
    let upstream = graded("deepseek-14b.jsonl", 48, Preset::Upstream);
    let row = SinkRow::new("deepseek-14b", None, &upstream);
    assert_eq!((row.traces, row.primary_layer, row.primary_count), (30, Some(4), 90));
    assert_eq!((row.secondary_count, row.noise_count), (39, 2));
    assert_eq!(starts(&row), [(22, 39, 100.0)]);

    // The two sinks with three layers are noise in the published scripts and secondary in the
    // paper.
    let paper = graded("deepseek-14b.jsonl", 48, Preset::Paper);
    let row = SinkRow::new("deepseek-14b", None, &paper);
    assert_eq!((row.primary_layer, row.primary_count), (Some(4), 90));
    assert_eq!((row.secondary_count, row.noise_count), (41, 0));
    assert_eq!(starts(&row), [(22, 41, 100.0)]);

    let level = |lifetime, count| Level { l_start: 22, lifetime, count };
    assert_eq!(
        levels(paper.iter().flat_map(|trace| trace.of_class(Class::Secondary))),
        [
            level(3, 2),
            level(6, 1),
            level(20, 1),
            level(21, 1),
            level(22, 16),
            level(23, 16),
            level(24, 4)
        ]
    );
    let gapped = paper.iter().flat_map(|trace| &trace.sinks).find(|sink| !sink.gaps().is_empty());
    assert_eq!(gapped.unwrap().gaps(), [26, 28, 29]);
}

#[test]
fn qwen3_4b_base() {
    for preset in [Preset::Paper, Preset::Upstream] {
        let traces = graded("qwen3-4b-base.jsonl", 36, preset);
        let row = SinkRow::new("qwen3-4b-base", None, &traces);
        assert_eq!((row.traces, row.primary_layer, row.primary_count), (30, Some(6), 30));
        assert_eq!((row.secondary_count, row.noise_count), (21, 0));
        assert_eq!(starts(&row), [(16, 21, 100.0)]);
    }
}

#[test]
fn token_frequencies() {
    let tokens = |name, layers| {
        let row = TokenRow::new(name, &graded(name, layers, Preset::Upstream));
        let share = |share: &fathom_sinks::TokenShare| {
            (share.token.token_id, share.token.count, format!("{:.2}", share.percent))
        };
        row.tokens.iter().map(share).collect::<Vec<_>>()
    };
    let expected =
        [(220, 23, "58.97"), (16, 5, "12.82"), (7, 2, "5.13"), (61, 2, "5.13"), (9, 1, "2.56")];
    let expected = expected.map(|(id, count, percent)| (id, count, percent.to_owned()));
    let deepseek = tokens("deepseek-14b.jsonl", 48);
    assert_eq!((&deepseek[..5], deepseek.len()), (&expected[..], 11));

    let expected = [(220, 16, "76.19"), (15, 1, "4.76"), (16, 1, "4.76"), (24, 1, "4.76")];
    let expected = expected.map(|(id, count, percent)| (id, count, percent.to_owned()));
    let qwen = tokens("qwen3-4b-base.jsonl", 36);
    assert_eq!((&qwen[..4], qwen.len()), (&expected[..], 6));
}

#[test]
fn detections_with_a_wrong_number_of_layers_are_refused() {
    let path = data("deepseek-14b.jsonl");
    let mut traces = read_detections(&path).unwrap();
    let mut error =
        |layers| reclassify(&path, &mut traces, Preset::Paper, layers).unwrap_err().to_string();
    assert!(error(Some(46)).ends_with(
        "deepseek-14b.jsonl: trace 0 has a sink at layer 46, but the model has 46 layers (0 to 45)"
    ));
    assert!(error(None).ends_with("does not say how many layers the model has: give `--layers`"));
}
