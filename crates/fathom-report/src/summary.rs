//! What a scan found, in sentences.

use fathom_sinks::{
    Agreement, Class, Finding, Manifest, Preset, Sink, SinkRow, TraceDetection, levels,
    token_counts,
};
use serde_json::json;

use crate::number::{factor, grouped};
use crate::{percent, phases, plural};

/// The number of most frequent tokens that are named.
const TOP_TOKENS: usize = 5;

/// What the scan of a run found, one sentence or two per line, whether there are sinks or not.
pub fn summary(manifest: &Manifest, traces: &[TraceDetection]) -> String {
    let row = SinkRow::new(&manifest.model.name(), Some(manifest.model.rope_base), traces);
    let found = |finding| row.findings.get(&finding).copied().unwrap_or(0);
    let mut lines = vec![scanned(manifest, traces)];

    let (none, short) = (found(Finding::NoPrimarySink), found(Finding::TooShort));
    if none > 0 {
        lines.push(no_primary(manifest, traces, none));
    }
    if short > 0 {
        let are = if short == 1 { "is" } else { "are" };
        lines.push(format!(
            "{} {are} too short to tell: a sink shows against other tokens and over several \
             layers.",
            plural(short, "trace")
        ));
    }
    let with_primary = traces.len() - none - short;
    if with_primary > 0 {
        lines.push(primary(traces, row.primary_count, with_primary));
        lines.push(secondary(traces, &row, found(Finding::SecondarySinks)));
    }
    lines.extend(phases::unlisted(manifest, traces));
    lines.extend(attention(manifest, traces));
    if row.noise_count > 0 {
        lines.push(format!(
            "{} aligned with the primary sink too briefly to count.",
            plural(row.noise_count, "token")
        ));
    }
    lines.join("\n") + "\n"
}

fn scanned(manifest: &Manifest, traces: &[TraceDetection]) -> String {
    let options = &manifest.options;
    let tokens: usize = traces.iter().filter_map(|trace| trace.scan).map(|note| note.tokens).sum();
    let cosine = match options.preset {
        Preset::Paper => "cosine",
        Preset::Upstream => "|cosine|",
    };
    format!(
        "{}: {}, {}, {}; a sink is a token whose {cosine} with the reference is above {} \
         (preset {}).",
        manifest.model.name(),
        plural(traces.len(), "trace"),
        plural(tokens, "token"),
        plural(manifest.model.layers, "layer"),
        options.threshold,
        options.preset.name(),
    )
}

fn no_primary(manifest: &Manifest, traces: &[TraceDetection], count: usize) -> String {
    let nearest = traces
        .iter()
        .filter_map(|trace| Some((trace, trace.scan?)))
        .filter(|(_, note)| note.finding == Finding::NoPrimarySink)
        .max_by(|(_, a), (_, b)| a.rise.total_cmp(&b.rise));
    let nearest = nearest.map_or(String::new(), |(trace, note)| {
        let layer = note.clip.map_or(String::new(), |clip| format!(", at layer {}", clip.start));
        let (rise, index) = (factor(note.rise.max(0.0)), trace.sample_index);
        format!(" The largest rise is by {rise} times{layer}, in trace {index}.")
    });
    let which = match (count, traces.len()) {
        (1, 1) => "The trace has no".to_owned(),
        (count, all) if count == all => format!("None of {} has a", plural(all, "trace")),
        (1, all) => format!("1 of {} has no", plural(all, "trace")),
        (count, all) => format!("{} of {} have no", grouped(count), plural(all, "trace")),
    };
    let reference = match manifest.options.reference[..] {
        [position] => format!("the token at position {position}"),
        _ => "the strongest candidate".to_owned(),
    };
    format!(
        "{which} primary sink: the norm of {reference} never rises by {} times that of the \
         mean token.{nearest} Without one there is nothing for secondary sinks to be aligned with.",
        factor(manifest.options.rise_factor),
    )
}

fn primary(traces: &[TraceDetection], count: usize, with_primary: usize) -> String {
    let sinks = || traces.iter().flat_map(|trace| trace.of_class(Class::Primary));
    let positions = counted(sinks().map(|sink| sink.position), "position");
    format!(
        "{} in {}, {}, at {positions}.",
        plural(count, "primary sink"),
        plural(with_primary, "trace"),
        span(sinks().flat_map(|sink| sink.layers.iter().copied()), "layer"),
    )
}

fn secondary(traces: &[TraceDetection], row: &SinkRow, with_secondary: usize) -> String {
    let sinks = || traces.iter().flat_map(|trace| trace.of_class(Class::Secondary));
    if row.secondary_count == 0 {
        return "No secondary sinks.".to_owned();
    }
    let tokens = token_counts(sinks());
    let named: Vec<String> = tokens
        .iter()
        .take(TOP_TOKENS)
        .map(|token| {
            let id = || format!("id {}", token.token_id);
            let text = token.token_text.as_ref().map_or_else(id, |text| json!(text).to_string());
            let share = 100.0 * token.count as f64 / row.secondary_count as f64;
            format!("{text} {}", percent(share))
        })
        .collect();
    let more = if tokens.len() > TOP_TOKENS { ", …" } else { "" };
    format!(
        "{} in {}: starting at {}, lasting {} layers, {}; {}; tokens {}{more}.",
        plural(row.secondary_count, "secondary sink"),
        plural(with_secondary, "trace"),
        span(sinks().map(Sink::l_start), "layer"),
        span(sinks().map(Sink::lifetime), ""),
        plural(levels(sinks()).len(), "level"),
        span(sinks().map(|sink| sink.position), "position"),
        named.join(", "),
    )
}

/// How much attention sinks receive, if the scan measured it: alignment with the reference does not
/// imply attention.
fn attention(manifest: &Manifest, traces: &[TraceDetection]) -> Option<String> {
    let received = |class: Class| {
        let scores = traces.iter().flat_map(|trace| trace.of_class(class)).flat_map(|sink| {
            // Attention of layer l reads the output of layer l-1.
            let seen = sink.layers.iter().map(|l| l + 1).filter(|l| *l < manifest.model.layers);
            let scores = sink.sink_score.as_deref().unwrap_or_default();
            seen.filter_map(|l| scores.get(l).copied())
        });
        let (sum, count) = scores.fold((0.0, 0), |(sum, n), x| (sum + f64::from(x), n + 1));
        let mean = (count > 0).then(|| percent(100.0 * sum / f64::from(count)))?;
        Some(format!("a {} sink draws {mean}", class.name()))
    };
    let received: Vec<String> =
        [Class::Primary, Class::Secondary].into_iter().filter_map(received).collect();
    (!received.is_empty()).then(|| {
        format!(
            "Of the attention of later tokens, {} on average at the layers that see it.",
            received.join(", ")
        )
    })
}

/// How many tokens draw attention at layers at which they are not aligned, if any do.
pub fn unaligned_sentence(agreement: &Agreement) -> Option<String> {
    let (count, never) = (agreement.unaligned_count, agreement.never_aligned_count);
    let (draw, they_are) = if count == 1 { ("draws", "it is") } else { ("draw", "they are") };
    let never = match never {
        0 => String::new(),
        1 => "; 1 is aligned at no layer".to_owned(),
        never => format!("; {} are aligned at no layer", grouped(never)),
    };
    (count > 0).then(|| {
        format!(
            "{} {draw} attention (a sink score above 0.3 at some head) at layers at which \
             {they_are} not aligned with the reference{never}.",
            plural(count, "token"),
        )
    })
}

/// `position 0`, `positions 0, 1, 2`, or their number if there are too many to name.
fn counted(values: impl Iterator<Item = usize>, what: &str) -> String {
    const NAMED: usize = 6;
    let values: std::collections::BTreeSet<usize> = values.collect();
    if values.len() > NAMED {
        return plural(values.len(), &format!("different {what}"));
    }
    let s = if values.len() == 1 { "" } else { "s" };
    let named: Vec<String> = values.iter().map(usize::to_string).collect();
    format!("{what}{s} {}", named.join(", "))
}

/// `layer 4`, `layers 4 to 7`.
fn span(values: impl Iterator<Item = usize>, what: &str) -> String {
    let (min, max) = values.fold((usize::MAX, 0), |(min, max), x| (min.min(x), max.max(x)));
    let s = if what.is_empty() || min == max { "" } else { "s" };
    let range = if min >= max { max.to_string() } else { format!("{min} to {max}") };
    format!("{what}{s} {range}").trim_start().to_owned()
}
