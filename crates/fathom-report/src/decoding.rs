//! Where the time of a generation was spent, and what speculation gained.

use fathom_decode::engine::EngineMetrics;
use fathom_decode::{Mode, Placement, ThreadSplit};
use serde_json::{Value, json};

use crate::number::grouped;
use crate::plural;

/// The metrics of a generation.
#[derive(Clone, Copy, Debug)]
pub struct Decoding<'a> {
    /// Metrics of the engine.
    pub metrics: &'a EngineMetrics,
    /// Texts that are finished.
    pub texts: usize,
    /// Mean accepted tokens (MAT), averaged over those texts.
    pub mat: Option<f64>,
    /// Wall-clock seconds, prefill included.
    pub seconds: f64,
    /// The threads it ran on, if they are to be reported.
    pub placement: Option<Placement>,
}

impl Decoding<'_> {
    fn decode_seconds(&self) -> f64 {
        (self.seconds - self.metrics.prefill_seconds).max(f64::MIN_POSITIVE)
    }

    fn steps(&self) -> usize {
        self.metrics.steps.values().sum()
    }

    fn speculated(&self) -> bool {
        self.metrics.steps.keys().any(|mode| mode.drafts())
    }

    /// A summary of a few lines.
    pub fn summary(&self) -> String {
        let m = self.metrics;
        let mut lines = vec![format!(
            "{}, {} in {:.2} s: {:.1} tokens/s, after {:.2} s for the prompts",
            plural(self.texts, "text"),
            plural(m.tokens, "token"),
            self.decode_seconds(),
            m.tokens as f64 / self.decode_seconds(),
            m.prefill_seconds,
        )];
        let steps = m.steps.iter().map(|(mode, n)| format!("{} of {mode}", grouped(*n)));
        let steps = steps.collect::<Vec<_>>().join(", ");
        if self.speculated() {
            lines.push(format!(
                "steps: {steps}; MAT {}, {} of the drafts accepted, {} wasted, last γ {}",
                self.mat.map_or("unknown".to_owned(), |mat| format!("{mat:.2}")),
                m.acceptance.rate().map_or("none".to_owned(), |r| format!("{:.1} %", 100.0 * r)),
                grouped(m.wasted),
                m.gamma,
            ));
            if m.branches.drafted > 0 {
                lines.push(format!(
                    "branches: taken at {} of {}; {} drafted in them",
                    grouped(m.branches.taken),
                    plural(m.branches.rejections, "rejection"),
                    plural(m.branches.drafted, "token"),
                ));
            }
            lines.push(format!(
                "seconds: target {:.2}, draft {:.2}, target waiting for the draft {:.2}, \
                 sampling {:.2}",
                m.verify_seconds, m.draft_seconds, m.wait_seconds, m.judge_seconds
            ));
        } else {
            lines.push(format!("steps: {steps}"));
        }
        lines.extend(self.placement.map(|placement| self.threads(placement)));
        if m.preemptions > 0 {
            let times = plural(m.preemptions, "time");
            lines.push(format!(
                "requests were sent back to wait for cache memory {times}; the caches held {} at \
                 most",
                plural(m.kv_pages, "page")
            ));
        }
        lines.join("\n")
    }

    fn threads(&self, Placement { alone, together, pinned }: Placement) -> String {
        let places = if pinned { ", each on a core of its own" } else { "" };
        let threads = if self.speculated() {
            let of = |alone: usize, together: usize| match alone == together {
                true => alone.to_string(),
                false => format!("{together} while co-running, {alone} alone"),
            };
            let (target, draft) =
                (of(alone.target, together.target), of(alone.draft, together.draft));
            format!("threads: target {target}; draft {draft}")
        } else {
            format!("threads: {}", alone.target)
        };
        threads + places
    }

    /// The same as JSON, with the acceptance by position.
    pub fn to_json(&self) -> Value {
        let m = self.metrics;
        let steps: serde_json::Map<_, _> =
            m.steps.iter().map(|(mode, n): (&Mode, _)| (mode.to_string(), json!(n))).collect();
        json!({
            "texts": self.texts,
            "tokens": m.tokens,
            "seconds": self.decode_seconds(),
            "tokens_per_second": m.tokens as f64 / self.decode_seconds(),
            "steps": steps,
            "tokens_per_step": m.tokens as f64 / self.steps().max(1) as f64,
            "mat": self.mat,
            "acceptance": m.acceptance.rate(),
            "acceptance_by_position": m.acceptance.by_position(),
            "wasted_drafts": m.wasted,
            "bubbles": m.bubbles,
            "rejections": m.branches.rejections,
            "branches_taken": m.branches.taken,
            "gamma": self.speculated().then_some(m.gamma),
            "preemptions": m.preemptions,
            "kv_pages": m.kv_pages,
            "threads": self.placement.as_ref().map(placement_json),
            "prefill_seconds": m.prefill_seconds,
            "target_seconds": m.verify_seconds,
            "draft_seconds": m.draft_seconds,
            "wait_seconds": m.wait_seconds,
            "judge_seconds": m.judge_seconds,
        })
    }
}

/// The threads of target and draft, as JSON.
pub fn placement_json(placement: &Placement) -> Value {
    let split = |split: ThreadSplit| json!({ "target": split.target, "draft": split.draft });
    let Placement { alone, together, pinned } = *placement;
    json!({ "in_turns": split(alone), "together": split(together), "pinned": pinned })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACEMENT: Placement = Placement {
        alone: ThreadSplit { target: 2, draft: 2 },
        together: ThreadSplit { target: 1, draft: 1 },
        pinned: true,
    };

    #[test]
    fn plain_decoding_reports_nothing_about_drafts() {
        let metrics = EngineMetrics {
            steps: [(Mode::Ar, 1500)].into(),
            tokens: 1500,
            prefill_seconds: 1.0,
            ..EngineMetrics::default()
        };
        let decoding = Decoding {
            metrics: &metrics,
            texts: 1,
            mat: Some(1.0),
            seconds: 4.0,
            placement: Some(PLACEMENT),
        };
        let summary = decoding.summary();
        assert_eq!(
            summary,
            "1 text, 1 500 tokens in 3.00 s: 500.0 tokens/s, after 1.00 s for the prompts\n\
             steps: 1 500 of ar\n\
             threads: 2, each on a core of its own"
        );
        assert_eq!(decoding.to_json()["tokens_per_second"], 500.0);
        assert_eq!(decoding.to_json()["gamma"], Value::Null);
    }

    #[test]
    fn speculation_is_reported_by_mode() {
        let metrics = EngineMetrics {
            steps: [(Mode::Ar, 2), (Mode::Pearl, 8)].into(),
            tokens: 30,
            gamma: 5,
            preemptions: 1,
            ..EngineMetrics::default()
        };
        let decoding = Decoding {
            metrics: &metrics,
            texts: 3,
            mat: None,
            seconds: 1.0,
            placement: Some(PLACEMENT),
        };
        let summary = decoding.summary();
        assert!(summary.contains("steps: 2 of ar, 8 of pearl; MAT unknown"), "{summary}");
        assert!(summary.contains("cache memory 1 time; the caches held 0 pages"), "{summary}");
        let threads = "target 1 while co-running, 2 alone; draft 1 while co-running, 2 alone";
        assert!(summary.contains(threads), "{summary}");
        assert_eq!(decoding.to_json()["tokens_per_step"], 3.0);
    }
}
