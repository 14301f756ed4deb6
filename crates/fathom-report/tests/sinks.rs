//! The paper's tables and the summary, from published detections and made-up runs.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fathom_report::{Format, level_table, position_table, sink_table, summary, token_table};
use fathom_sinks::{
    Class, Clip, Finding, Fingerprints, Manifest, ModelNote, Phase, Phases, Preset, ScanNote,
    ScanOptions, Sink, SinkRow, TokenRow, TraceDetection, TracesNote, levels, position_histogram,
    read_detections, reclassify,
};

fn published(name: &str, layers: usize, preset: Preset) -> Vec<TraceDetection> {
    let path: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fathom-sinks/tests/data").join(name);
    let mut traces = read_detections(&path).unwrap();
    reclassify(&path, &mut traces, preset, Some(layers)).unwrap();
    traces
}

#[test]
fn table_1_of_the_published_detections() {
    let deepseek = published("deepseek-14b.jsonl", 48, Preset::Paper);
    let qwen = published("qwen3-4b-base.jsonl", 36, Preset::Paper);
    let rows = [
        SinkRow::new("deepseek-14b", Some(1e6), &deepseek),
        SinkRow::new("qwen3-4b-base", None, &qwen),
        SinkRow::new("nothing", Some(500_000.0), &[]),
    ];
    let expected = "
| Model         | RoPE base | Primary sink layer | Primary sink count | Top 3 secondary sink layers | Secondary sink count |
|---------------|----------:|-------------------:|-------------------:|-----------------------------|---------------------:|
| deepseek-14b  |   1000000 |                  4 |                 90 | 22: 100%                    |                   41 |
| qwen3-4b-base |         ? |                  6 |                 30 | 16: 100%                    |                   21 |
| nothing       |    500000 |                  X |                  X | X                           |                    X |
";
    assert_eq!(sink_table(&rows).render(Format::Markdown), expected.trim_start());

    let json = sink_table(&rows).to_json();
    assert_eq!(json[0]["top_secondary_sink_layers"][0]["count"], 41);
    assert_eq!(json[1]["rope_base"], serde_json::Value::Null);
    assert_eq!(json[2]["secondary_sink_count"], 0);
}

#[test]
fn table_3_of_the_published_detections() {
    let deepseek = published("deepseek-14b.jsonl", 48, Preset::Upstream);
    let rows = [TokenRow::new("deepseek-14b", &deepseek), TokenRow::new("nothing", &[])];
    let expected = "
Model,Token,Token id,Secondary sinks,Share\r
deepseek-14b,?,220,23,58.97%\r
deepseek-14b,?,16,5,12.82%\r
deepseek-14b,?,7,2,5.13%\r
nothing,X,X,X,X\r
";
    assert_eq!(token_table(&rows, 3).render(Format::Csv), expected.trim_start());
}

#[test]
fn levels_and_positions_of_the_published_detections() {
    let qwen = published("qwen3-4b-base.jsonl", 36, Preset::Paper);
    let secondary = || qwen.iter().flat_map(|trace| trace.of_class(Class::Secondary));
    let table = level_table(&[("qwen", levels(secondary()))]).to_json();
    assert_eq!(
        table,
        serde_json::json!([
            { "model": "qwen", "l_start": 16, "lifetime": 18, "count": 21, "percent": 100.0 }
        ])
    );
    let bins = position_histogram(secondary(), 9000, 3);
    let table = position_table(&[("qwen", bins)]).to_json();
    assert_eq!((&table[0]["from"], &table[2]["to"]), (&0.into(), &8999.into()));
    let total: u64 =
        table.as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!(total, 21);
}

fn manifest() -> Manifest {
    let fingerprints = Fingerprints {
        config_sha256: String::new(),
        weights_sha256: String::new(),
        tokenizer_sha256: String::new(),
    };
    let model = ModelNote {
        id: "some/model".to_owned(),
        architecture: "LlamaForCausalLM".to_owned(),
        layers: 12,
        heads: 4,
        hidden: 64,
        rope_base: 1e4,
        fingerprints,
        adapter: None,
    };
    let traces =
        TracesNote { file: String::new(), sha256: String::new(), read: None, grown: Vec::new() };
    Manifest::new(model, traces, "cpu".to_owned(), ScanOptions::new(Preset::Paper))
}

fn trace(index: u64, finding: Finding, rise: f32, sinks: Vec<Sink>) -> TraceDetection {
    let note = ScanNote {
        finding,
        reference: 0,
        clip: (finding != Finding::TooShort).then_some(Clip { start: 2, end: 11 }),
        rise,
        layers: 12,
        tokens: 1000,
        preset: Preset::Paper,
    };
    TraceDetection {
        sample_index: index,
        prompt_len: 10,
        response_len: 990,
        full_text_len: 1000,
        sinks,
        other_phases: Vec::new(),
        scan: Some(note),
    }
}

fn sink(position: usize, class: Class, layers: std::ops::Range<usize>, text: &str) -> Sink {
    Sink {
        position,
        token_id: 5,
        token_text: Some(text.to_owned()),
        layers: layers.collect(),
        class,
        measures: None,
        sink_score: None,
    }
}

#[test]
fn a_summary_says_what_is_not_counted_and_how_to_see_it() {
    let phase = |sinks| Phase { clip: Clip { start: 2, end: 9 }, rise: 6.0, peak: 9.63, sinks };
    let primary = |range| sink(0, Class::Primary, range, "<s>");
    let mut traces = [
        trace(0, Finding::PrimaryOnly, 9.0, vec![primary(11..28)]),
        trace(1, Finding::PrimaryOnly, 9.0, vec![primary(11..28)]),
    ];
    let the = sink(19, Class::Secondary, 3..9, " the");
    traces[1].other_phases = vec![phase(vec![primary(2..9), the])];
    let text = summary(&manifest(), &traces);
    assert!(
        text.contains(
            "At layers 2 to 8, the norm of the token at position 0 is large as well in 1 of 2 \
             traces, up to 9.63 times the mean of the other tokens; 1 other token is aligned with \
             it there (1 secondary).\n"
        ),
        "{text}"
    );
    assert!(text.contains("`--phases all` lists them."), "{text}");

    let all = traces.map(|trace| trace.with_phases(Phases::All));
    let text = summary(&manifest(), &all);
    assert!(text.contains("1 secondary sink in 1 trace"), "{text}");
    assert!(!text.contains("--phases"), "{text}");
}

#[test]
fn a_summary_is_worth_reading_without_a_primary_sink() {
    let traces = [
        trace(7, Finding::NoPrimarySink, 1.25, vec![]),
        trace(8, Finding::NoPrimarySink, 1.8, vec![]),
    ];
    let expected = "\
some/model: 2 traces, 2 000 tokens, 12 layers; a sink is a token whose cosine with the reference is above 0.95 (preset paper).
None of 2 traces has a primary sink: the norm of the token at position 0 never rises by 5 times that of the mean token. The largest rise is by 1.8 times, at layer 2, in trace 8. Without one there is nothing for secondary sinks to be aligned with.
";
    assert_eq!(summary(&manifest(), &traces), expected);
    let one = summary(&manifest(), &traces[..1]);
    assert!(one.contains("The trace has no primary sink: "), "{one}");
}

#[test]
fn a_summary_of_every_kind_of_trace() {
    let bos = || sink(0, Class::Primary, 2..11, "<s>");
    let traces = [
        trace(0, Finding::NoPrimarySink, 2.0, vec![]),
        trace(1, Finding::TooShort, 0.0, vec![]),
        trace(2, Finding::PrimaryOnly, 40.0, vec![bos(), sink(1, Class::Noise, 5..6, "x")]),
        trace(
            3,
            Finding::SecondarySinks,
            40.0,
            vec![
                bos(),
                sink(90, Class::Secondary, 6..9, " \n"),
                sink(91, Class::Secondary, 6..8, " \n"),
            ],
        ),
    ];
    let text = summary(&manifest(), &traces);
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert!(lines[0].starts_with("1 of 4 traces has no primary sink: "), "{}", lines[0]);
    assert_eq!(
        lines[1..],
        [
            "1 trace is too short to tell: a sink shows against other tokens and over several layers.",
            "2 primary sinks in 2 traces, layers 2 to 10, at position 0.",
            "2 secondary sinks in 1 trace: starting at layer 6, lasting 2 to 3 layers, 2 levels; \
             positions 90 to 91; tokens \" \\n\" 100%.",
            "1 token aligned with the primary sink too briefly to count.",
        ]
    );

    // Attention of layer l + 1 reads the output of layer l, so the scores that count are those one
    // layer after each layer at which the token is a sink.
    let mut measured = sink(0, Class::Primary, 2..4, "<s>");
    measured.sink_score = Some((0..12).map(|l| if l == 3 { 0.5 } else { 0.25 }).collect());
    let text = summary(&manifest(), &[trace(0, Finding::PrimaryOnly, 40.0, vec![measured])]);
    let last = text.lines().last();
    assert_eq!(
        last,
        Some(
            "Of the attention of later tokens, a primary sink draws 37.5% on average at the layers \
             that see it."
        )
    );

    let primary_only = summary(&manifest(), &traces[2..3]);
    assert!(primary_only.contains("\nNo secondary sinks.\n"), "{primary_only}");
}
