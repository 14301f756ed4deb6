//! Phases whose sinks are not listed.

use std::collections::BTreeMap;

use fathom_sinks::{Class, Manifest, TraceDetection};

use crate::number::factor;
use crate::plural;

/// Phases of the same layers, in several traces.
#[derive(Default)]
struct Group {
    traces: usize,
    /// Tokens other than the reference that are aligned with it, by class.
    aligned: BTreeMap<Class, usize>,
    peak: f32,
}

/// A sentence for each phase whose sinks are not listed, and one on how to list them. Empty if all
/// are.
pub(crate) fn unlisted(manifest: &Manifest, traces: &[TraceDetection]) -> Vec<String> {
    let mut groups: BTreeMap<(usize, usize), Group> = BTreeMap::new();
    for trace in traces {
        let reference = trace.scan.map(|note| note.reference);
        for phase in &trace.other_phases {
            let group = groups.entry((phase.clip.start, phase.clip.end)).or_default();
            group.traces += 1;
            group.peak = group.peak.max(phase.peak);
            for sink in phase.sinks.iter().filter(|sink| Some(sink.position) != reference) {
                *group.aligned.entry(sink.class).or_default() += 1;
            }
        }
    }
    if groups.is_empty() {
        return Vec::new();
    }
    let reference = match manifest.options.reference[..] {
        [position] => format!("the token at position {position}"),
        _ => "the reference".to_owned(),
    };
    let mut lines: Vec<String> = groups
        .iter()
        .map(|((start, end), group)| {
            let layers = match end - start {
                1 => format!("At layer {start}"),
                _ => format!("At layers {start} to {}", end - 1),
            };
            let some = match (group.traces, traces.len()) {
                (some, all) if some == all => String::new(),
                (some, all) => format!(" in {some} of {}", plural(all, "trace")),
            };
            let (peak, aligned) = (factor(group.peak), aligned(&group.aligned));
            format!(
                "{layers}, the norm of {reference} is large as well{some}, up to {peak} times the \
                 mean of the other tokens; {aligned}."
            )
        })
        .collect();
    lines.push(
        "Its largest rise is elsewhere, so the sinks of these layers are stored but not listed \
         here; `--phases all` lists them."
            .to_owned(),
    );
    lines
}

/// `3 tokens are aligned with it there (2 primary, 1 noise)`
fn aligned(by_class: &BTreeMap<Class, usize>) -> String {
    let classes: Vec<String> =
        by_class.iter().map(|(class, count)| format!("{count} {}", class.name())).collect();
    match by_class.values().sum() {
        0 => "no other token is aligned with it there".to_owned(),
        1 => format!("1 other token is aligned with it there ({})", classes.join("")),
        n => format!("{n} other tokens are aligned with it there ({})", classes.join(", ")),
    }
}
