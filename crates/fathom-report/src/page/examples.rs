//! The list of levels: counts, tokens, and examples in context.

use std::fmt::Write;

use fathom_sinks::{Class, Sink, token_counts};

use crate::escape::{escape, token_label};
use crate::figures::level_anchor;
use crate::number::percent;
use crate::plural;
use crate::run_data::RunData;
use crate::run_phases::range_of;

/// The number of examples of a level, and of tokens before and after each.
const EXAMPLES: usize = 4;
const BEFORE: usize = 14;
const AFTER: usize = 8;
/// The number of tokens of a level that are named.
const TOKENS: usize = 6;

/// A card for the primary sinks, then one per level.
pub(super) fn levels(out: &mut String, run: &RunData) {
    let primary = || {
        let traces = run.traces.iter().enumerate();
        traces.flat_map(|(t, trace)| trace.of_class(Class::Primary).map(move |sink| (t, sink)))
    };
    if primary().next().is_none() {
        out.push_str("<p class=\"absent\">There are no sinks of any level in this run.</p>");
        return;
    }
    out.push_str("<div class=\"cards\">");
    let all: Vec<(usize, &Sink)> = primary().collect();
    card(out, run, &format!("{}-primary", run.anchor), "primary", "P", "Primary sinks", &all);
    for (index, entry) in run.levels.entries().iter().enumerate() {
        let level = entry.level;
        let phase = entry.phase.map_or(String::new(), |clip| format!(", phase {}", range_of(clip)));
        let title = format!("From layer {}, {} layers{phase}", level.l_start, level.lifetime);
        let of: Vec<(usize, &Sink)> = run
            .secondary()
            .filter(|(_, s)| (s.l_start(), s.lifetime()) == (level.l_start, level.lifetime))
            .collect();
        let class = format!("secondary g{}", entry.group);
        card(out, run, &level_anchor(run, index), &class, &entry.letter, &title, &of);
    }
    out.push_str("</div>");
    if run.levels.entries().is_empty() {
        out.push_str("<p class=\"absent\">There are no secondary sinks in this run.</p>");
    }
}

fn card(
    out: &mut String,
    run: &RunData,
    anchor: &str,
    class: &str,
    letter: &str,
    title: &str,
    sinks: &[(usize, &Sink)],
) {
    let _ = write!(
        out,
        "<div class=\"card\" id=\"{anchor}\"><h3><span class=\"chip {class}\">{}</span> {} \
         <small>{}</small></h3>",
        escape(letter),
        escape(title),
        plural(sinks.len(), "sink")
    );
    let counts = token_counts(sinks.iter().map(|(_, sink)| *sink));
    let named = counts.iter().take(TOKENS).map(|token| {
        let share = percent(100.0 * token.count as f64 / sinks.len() as f64);
        let label = token_label(token.token_text.as_deref(), token.token_id);
        format!("<code>{}</code> {share}", escape(&label))
    });
    let more = if counts.len() > TOKENS { ", …" } else { "" };
    let _ =
        write!(out, "<p class=\"tokens\">{}{more}</p><ol>", named.collect::<Vec<_>>().join(", "));
    // Examples are spread over the run, not the first few of the first trace. Levels without a
    // letter of their own have one example.
    let wanted = if letter == "·" { 1 } else { EXAMPLES.min(sinks.len()) };
    for i in 0..wanted {
        let (trace, sink) = sinks[i * sinks.len() / wanted];
        example(out, run, trace, sink);
    }
    out.push_str("</ol></div>");
}

fn example(out: &mut String, run: &RunData, trace: usize, sink: &Sink) {
    let a = &run.anchor;
    let index = run.traces[trace].sample_index;
    let ids = run.text.as_ref().and_then(|text| text.ids.get(trace));
    let token = match &sink.token_text {
        Some(text) if !text.trim().is_empty() => text.clone(),
        text => token_label(text.as_deref(), sink.token_id),
    };
    let (before, after) = match (ids, &run.text) {
        (Some(ids), Some(text)) => {
            let join = |range: &[u32]| -> String {
                let texts = range.iter().filter_map(|id| text.texts.get(id));
                texts.map(String::as_str).collect()
            };
            let at = sink.position.min(ids.len());
            let (from, to) = (at.saturating_sub(BEFORE), (at + 1 + AFTER).min(ids.len()));
            (join(&ids[from..at]), join(ids.get(at + 1..to).unwrap_or_default()))
        }
        _ => (String::new(), String::new()),
    };
    let _ = write!(
        out,
        "<li><a href=\"#{a}-t{trace}-p{}\">trace {index}, position {}</a> <span \
         class=\"context\">{}<b>{}</b>{}</span></li>",
        sink.position,
        sink.position,
        escape(&before),
        escape(&token),
        escape(&after)
    );
}
