//! What the phases hold that do not count.

use std::collections::BTreeMap;

use fathom_sinks::{Class, Manifest, TraceDetection};

use crate::number::factor;
use crate::plural;

/// Phases of the same layers, in several traces.
#[derive(Default)]
struct Group {
    traces: usize,
    /// Tokens aligned with the reference, itself left out.
    aligned: usize,
    /// Of these, those classed as secondary sinks.
    secondary: usize,
    peak: f32,
}

/// For each run of layers in which the reference is large and whose sinks are not counted, a
/// sentence that says what is there; then one on how to see them. Empty where all are counted.
pub(crate) fn uncounted(manifest: &Manifest, traces: &[TraceDetection]) -> Vec<String> {
    let mut groups: BTreeMap<(usize, usize), Group> = BTreeMap::new();
    for trace in traces {
        let reference = trace.scan.map(|note| note.reference);
        for phase in &trace.other_phases {
            let group = groups.entry((phase.clip.start, phase.clip.end)).or_default();
            let others = phase.sinks.iter().filter(|sink| Some(sink.position) != reference);
            group.traces += 1;
            group.aligned += others.clone().count();
            group.secondary += others.filter(|sink| sink.class == Class::Secondary).count();
            group.peak = group.peak.max(phase.peak);
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
            let traces = match (group.traces, traces.len()) {
                (some, all) if some == all => String::new(),
                (some, all) => format!(" in {some} of {}", plural(all, "trace")),
            };
            let aligned = match group.aligned {
                0 => "no other token is aligned with it there".to_owned(),
                1 => format!("1 other token is aligned with it there ({})", sinks(group.secondary)),
                n => format!(
                    "{} are aligned with it there ({})",
                    plural(n, "other token"),
                    sinks(group.secondary)
                ),
            };
            format!(
                "{layers}, {reference} is large as well{traces}, up to {} times the mean token; \
                 {aligned}.",
                factor(group.peak)
            )
        })
        .collect();
    lines.push(
        "These layers are not the phase of its largest rise, so what is there is stored but not \
         counted here; `--phases all` counts it."
            .to_owned(),
    );
    lines
}

fn sinks(secondary: usize) -> String {
    match secondary {
        0 => "no secondary sink".to_owned(),
        n => plural(n, "secondary sink"),
    }
}
