//! The paper's tables: statistics over many traces, one row per model.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Class, Finding, TokenCount, TraceDetection, token_counts};

/// A row of Table 1 or 2.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SinkRow {
    /// The model.
    pub model: String,
    /// Rotary base θ, if known.
    pub rope_base: Option<f64>,
    /// Number of traces.
    pub traces: usize,
    /// Number of traces per finding, if the detections record it.
    pub findings: BTreeMap<Finding, usize>,
    /// The layer at which most primary sinks start; ties go to the lowest.
    pub primary_layer: Option<usize>,
    /// Primary sinks in all traces.
    pub primary_count: usize,
    /// Every l_start of secondary sinks, by descending frequency, then ascending layer.
    pub secondary_layers: Vec<LayerShare>,
    /// Secondary sinks in all traces.
    pub secondary_count: usize,
    /// Tokens aligned for too few layers to count as sinks, in all traces.
    pub noise_count: usize,
}

/// Number and share of the sinks that start at a layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerShare {
    /// l_start.
    pub layer: usize,
    /// Number of sinks that start there.
    pub count: usize,
    /// Share of all sinks of the class, in percent.
    pub percent: f64,
}

/// A row of Table 3: the tokens of a model's secondary sinks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenRow {
    /// The model.
    pub model: String,
    /// Secondary sinks in all traces.
    pub secondary_count: usize,
    /// Tokens and their shares, by descending frequency, then by id.
    pub tokens: Vec<TokenShare>,
}

/// Number and share of the sinks with a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenShare {
    /// The token and its count.
    #[serde(flatten)]
    pub token: TokenCount,
    /// Share of all sinks of the class, in percent.
    pub percent: f64,
}

impl SinkRow {
    /// Statistics over `traces`.
    pub fn new(model: &str, rope_base: Option<f64>, traces: &[TraceDetection]) -> SinkRow {
        let primary = starts(traces, Class::Primary);
        let secondary = starts(traces, Class::Secondary);
        let secondary_count = secondary.iter().map(|(_, count)| count).sum();
        let mut findings = BTreeMap::new();
        for note in traces.iter().filter_map(|trace| trace.scan) {
            *findings.entry(note.finding).or_default() += 1;
        }
        let share =
            |(layer, count)| LayerShare { layer, count, percent: percent(count, secondary_count) };
        SinkRow {
            model: model.to_owned(),
            rope_base,
            traces: traces.len(),
            findings,
            primary_layer: primary.first().map(|(layer, _)| *layer),
            primary_count: primary.iter().map(|(_, count)| count).sum(),
            secondary_layers: secondary.into_iter().map(share).collect(),
            secondary_count,
            noise_count: traces.iter().map(|trace| trace.of_class(Class::Noise).count()).sum(),
        }
    }
}

impl TokenRow {
    /// Statistics over `traces`.
    pub fn new(model: &str, traces: &[TraceDetection]) -> TokenRow {
        let secondary = || traces.iter().flat_map(|trace| trace.of_class(Class::Secondary));
        let secondary_count = secondary().count();
        let share = |token: TokenCount| TokenShare {
            percent: percent(token.count, secondary_count),
            token,
        };
        TokenRow {
            model: model.to_owned(),
            secondary_count,
            tokens: token_counts(secondary()).into_iter().map(share).collect(),
        }
    }
}

/// (l_start, number of sinks) of a class, by descending frequency, then ascending layer.
fn starts(traces: &[TraceDetection], class: Class) -> Vec<(usize, usize)> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for sink in traces.iter().flat_map(|trace| trace.of_class(class)) {
        *counts.entry(sink.l_start()).or_default() += 1;
    }
    let mut counts: Vec<(usize, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: layers stay ascending
    counts
}

fn percent(count: usize, total: usize) -> f64 {
    if total == 0 { 0.0 } else { 100.0 * count as f64 / total as f64 }
}
