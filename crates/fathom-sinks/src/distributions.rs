//! Distributions of sinks over tokens (paper Table 3) and positions (paper Fig. 5).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Sink;

/// How often a token is a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenCount {
    /// The token.
    pub token_id: u32,
    /// Its text, if known.
    pub token_text: Option<String>,
    /// Number of sinks with this token.
    pub count: usize,
}

/// Tokens of the given sinks, by descending frequency, then by id.
pub fn token_counts<'a>(sinks: impl IntoIterator<Item = &'a Sink>) -> Vec<TokenCount> {
    let mut counts: BTreeMap<u32, TokenCount> = BTreeMap::new();
    for sink in sinks {
        let token_id = sink.token_id;
        let entry = counts.entry(token_id);
        let entry = entry.or_insert(TokenCount { token_id, token_text: None, count: 0 });
        entry.count += 1;
        if entry.token_text.is_none() {
            entry.token_text.clone_from(&sink.token_text);
        }
    }
    let mut counts: Vec<TokenCount> = counts.into_values().collect();
    counts.sort_by_key(|token| std::cmp::Reverse(token.count)); // stable: ids stay ascending
    counts
}

/// A bin of consecutive positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// First position.
    pub start: usize,
    /// One past the last position.
    pub end: usize,
    /// Number of sinks in the bin.
    pub count: usize,
}

/// Histogram of sink positions with `bins` equal bins over `0..longest`, the length of the longest
/// trace. Empty if either is 0; positions beyond `longest` are counted in the last bin.
pub fn position_histogram<'a>(
    sinks: impl IntoIterator<Item = &'a Sink>,
    longest: usize,
    bins: usize,
) -> Vec<Bin> {
    if longest == 0 || bins == 0 {
        return Vec::new();
    }
    let width = longest.div_ceil(bins);
    let starts = (0..longest).step_by(width);
    let mut histogram: Vec<Bin> =
        starts.map(|start| Bin { start, end: (start + width).min(longest), count: 0 }).collect();
    let last = histogram.len() - 1;
    for sink in sinks {
        histogram[(sink.position / width).min(last)].count += 1;
    }
    histogram
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Class;

    fn sink(position: usize, token_id: u32, text: Option<&str>) -> Sink {
        Sink {
            position,
            token_id,
            token_text: text.map(str::to_owned),
            layers: vec![3],
            class: Class::Secondary,
            measures: None,
            sink_score: None,
        }
    }

    #[test]
    fn tokens_come_by_frequency_then_id() {
        let sinks = [sink(1, 9, None), sink(2, 4, None), sink(3, 9, Some("a")), sink(4, 2, None)];
        let counts = token_counts(&sinks);
        let short: Vec<(u32, usize)> = counts.iter().map(|c| (c.token_id, c.count)).collect();
        assert_eq!(short, [(9, 2), (2, 1), (4, 1)]);
        assert_eq!(counts[0].token_text.as_deref(), Some("a"));
    }

    #[test]
    fn bins_cover_every_position_once() {
        let sinks = [sink(0, 1, None), sink(3, 1, None), sink(4, 1, None), sink(99, 1, None)];
        let bins = position_histogram(&sinks, 10, 3);
        let bin = |start, end, count| Bin { start, end, count };
        assert_eq!(bins, [bin(0, 4, 2), bin(4, 8, 1), bin(8, 10, 1)]);
        // More bins than positions: one each.
        assert_eq!(position_histogram(&sinks, 2, 5), [bin(0, 1, 1), bin(1, 2, 3)]);
        assert!(position_histogram(&sinks, 0, 5).is_empty());
        assert!(position_histogram(&sinks, 5, 0).is_empty());
    }
}
