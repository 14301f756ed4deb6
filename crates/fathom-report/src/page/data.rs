//! The script's data, as compact JSON: the tokens of the traces and their sinks, and the positions
//! of dots in each frame of moving figures.
//!
//! The tokens of a trace are base64 of little-endian indices, of two or four bytes each, into the
//! list of the texts that occur. Another byte per token is the attention it receives. With two-byte
//! indices, 16 000 tokens take 64 KB.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fathom_sinks::{Class, Sink, TraceText};
use serde_json::{Map, Value, json};

use super::Section;
use crate::figure::{Figure, place};
use crate::figures::MaybeFigure;
use crate::run_data::RunData;

/// Maximum number of tokens in the page, over all runs: about 8 MB.
const MOST_TOKENS: usize = 2_000_000;

/// The data of the page, with the first `texts` traces of each run.
pub(super) fn page_data(sections: &[Section<'_>], compared: &[MaybeFigure], texts: usize) -> Value {
    let mut left = MOST_TOKENS;
    let runs: Vec<Value> =
        sections.iter().map(|section| run_json(section.run, texts, &mut left)).collect();
    let mut figures = Map::new();
    for section in sections {
        moving(&mut figures, &section.figures, &section.run.anchor);
    }
    moving(&mut figures, compared, "all");
    json!({ "runs": runs, "figures": figures })
}

fn moving(out: &mut Map<String, Value>, figures: &[MaybeFigure], anchor: &str) {
    for figure in figures.iter().flatten() {
        if let Some(frames) = frames(figure) {
            out.insert(format!("{anchor}-{}", figure.head.name), frames);
        }
    }
}

/// Frames in the panels' units, rounded to a tenth.
fn frames(figure: &Figure) -> Option<Value> {
    let moving = figure.moving.as_ref()?;
    let tenth = |x: f64| if x.is_finite() { (10.0 * x).round() / 10.0 } else { -999.0 };
    let frame = |frame: &crate::figure::Frame| {
        let dots: Vec<Vec<f64>> = frame
            .dots
            .iter()
            .zip(&moving.panels)
            .map(|(dots, panel)| {
                let places = dots.iter().map(|dot| place(panel, *dot));
                places.flat_map(|(x, y)| [tenth(x), tenth(y)]).collect()
            })
            .collect();
        let lines: Vec<Option<String>> = frame
            .lines
            .iter()
            .zip(&moving.panels)
            .map(|(line, panel)| {
                let [a, b] =
                    (*line)?.map(|end| place(panel, end)).map(|(x, y)| (tenth(x), tenth(y)));
                Some(format!("M{} {}L{} {}", a.0, a.1, b.0, b.1))
            })
            .collect();
        let titles: Vec<String> = frame
            .dots
            .iter()
            .zip(&moving.panels)
            .map(|(_, panel)| match panel.title.rsplit_once(", ") {
                Some((site, _)) => format!("{site}, {}", frame.label),
                None => panel.title.clone(),
            })
            .collect();
        json!({
            "label": frame.label,
            "notes": frame.notes,
            "titles": titles,
            "dots": dots,
            "lines": lines,
        })
    };
    Some(moving.frames.iter().map(frame).collect())
}

fn run_json(run: &RunData, texts: usize, left: &mut usize) -> Value {
    let mut vocabulary = Vocabulary::default();
    let mut traces = Vec::new();
    if let Some(text) = &run.text {
        for t in 0..run.traces.len().min(texts) {
            let tokens = text.ids[t].len();
            if tokens > *left {
                break;
            }
            *left -= tokens;
            traces.push(trace(run, text, t, &mut vocabulary));
        }
    }
    let levels: Vec<Value> = run
        .levels
        .entries()
        .iter()
        .map(|e| json!([e.letter, e.level.l_start, e.level.lifetime, e.level.count, e.group]))
        .collect();
    json!({
        "anchor": run.anchor,
        "all": run.traces.len(),
        "vocabulary": vocabulary.texts,
        "levels": levels,
        "traces": traces,
    })
}

/// The texts of the tokens that occur, numbered in the order of first occurrence.
#[derive(Default)]
struct Vocabulary {
    numbers: HashMap<u32, u32>,
    texts: Vec<String>,
}

impl Vocabulary {
    fn number(&mut self, id: u32, text: &TraceText) -> u32 {
        *self.numbers.entry(id).or_insert_with(|| {
            let unknown = || format!("⟨{id}⟩");
            self.texts.push(text.texts.get(&id).cloned().unwrap_or_else(unknown));
            u32::try_from(self.texts.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

fn trace(run: &RunData, text: &TraceText, t: usize, vocabulary: &mut Vocabulary) -> Value {
    let detection = &run.traces[t];
    let numbers: Vec<u32> = text.ids[t].iter().map(|id| vocabulary.number(*id, text)).collect();
    // Two bytes per token if that suffices, four otherwise.
    let wide = numbers.iter().any(|n| *n > u32::from(u16::MAX));
    let bytes: Vec<u8> = match wide {
        true => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
        false => numbers.iter().flat_map(|n| [n.to_le_bytes()[0], n.to_le_bytes()[1]]).collect(),
    };
    let heat = run.attention.as_ref().and_then(|traces| traces.get(t)).map(|received| {
        // A byte spans six decades of attention.
        let byte = |x: &f32| (255.0 * (x.max(1e-6).log10() + 6.0) / 6.0).round() as u8;
        STANDARD.encode(received.iter().map(byte).collect::<Vec<u8>>())
    });
    json!({
        "index": detection.sample_index,
        "prompt": detection.prompt_len.min(numbers.len()),
        "of": detection.full_text_len,
        "wide": wide,
        "ids": STANDARD.encode(bytes),
        "heat": heat,
        "sinks": detection.sinks.iter().map(|s| sink(run, s)).collect::<Vec<_>>(),
    })
}

/// Position, class, level, first and last layer, number of layers, norms, cosine, mean attention
/// received in the layers after those at which it is a sink.
fn sink(run: &RunData, sink: &Sink) -> Value {
    let class = match sink.class {
        Class::Primary => 0,
        Class::Secondary => 1,
        Class::Noise => 2,
    };
    let level = match sink.class {
        Class::Secondary => run.levels.of(sink.l_start(), sink.lifetime()).map(|(i, _)| i),
        _ => None,
    };
    let digits = |x: f32| (x.is_finite()).then(|| short_float(x));
    let m = sink.measures;
    let seen = sink.layers.iter().map(|l| l + 1);
    let scores = sink.sink_score.as_deref().unwrap_or_default();
    let seen: Vec<f32> = seen.filter_map(|l| scores.get(l).copied()).collect();
    let score = (!seen.is_empty()).then(|| seen.iter().sum::<f32>() / seen.len() as f32);
    json!([
        sink.position,
        class,
        level,
        sink.l_start(),
        sink.layers.last(),
        sink.lifetime(),
        m.and_then(|m| digits(m.hidden_norm)),
        m.and_then(|m| digits(m.mlp_out_norm)),
        m.and_then(|m| digits(m.min_cosine)),
        score.and_then(digits),
    ])
}

/// A number rounded to four significant digits, so that it is short in JSON.
fn short_float(x: f32) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(f64::from(x))
}
