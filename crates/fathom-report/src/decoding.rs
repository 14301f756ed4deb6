//! Where the time of a generation went, and what speculation was worth.

use fathom_decode::Mode;
use fathom_decode::engine::EngineMetrics;
use serde_json::{Value, json};

use crate::number::grouped;
use crate::plural;

/// What an engine did while it generated.
#[derive(Clone, Copy, Debug)]
pub struct Decoding<'a> {
    /// The engine's own account.
    pub metrics: &'a EngineMetrics,
    /// Texts that ended.
    pub texts: usize,
    /// Mean accepted tokens, the mean over those texts.
    pub mat: Option<f64>,
    /// Wall-clock seconds, prefill included.
    pub seconds: f64,
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

    /// A few sentences, a line each.
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
            lines.push(format!(
                "seconds: target {:.2}, draft {:.2}, target waiting for the draft {:.2}, judging {:.2}",
                m.verify_seconds, m.draft_seconds, m.wait_seconds, m.judge_seconds
            ));
        } else {
            lines.push(format!("steps: {steps}"));
        }
        if m.preemptions > 0 {
            let times = plural(m.preemptions, "time");
            lines.push(format!("requests were sent back to wait for cache memory {times}"));
        }
        lines.join("\n")
    }

    /// The same for programs, and the acceptance by position.
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
            "gamma": self.speculated().then_some(m.gamma),
            "preemptions": m.preemptions,
            "prefill_seconds": m.prefill_seconds,
            "target_seconds": m.verify_seconds,
            "draft_seconds": m.draft_seconds,
            "wait_seconds": m.wait_seconds,
            "judge_seconds": m.judge_seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_decoding_has_nothing_to_say_about_drafts() {
        let metrics = EngineMetrics {
            steps: [(Mode::Ar, 1500)].into(),
            tokens: 1500,
            prefill_seconds: 1.0,
            ..EngineMetrics::default()
        };
        let decoding = Decoding { metrics: &metrics, texts: 1, mat: Some(1.0), seconds: 4.0 };
        let summary = decoding.summary();
        assert_eq!(
            summary,
            "1 text, 1 500 tokens in 3.00 s: 500.0 tokens/s, after 1.00 s for the prompts\n\
             steps: 1 500 of ar"
        );
        assert_eq!(decoding.to_json()["tokens_per_second"], 500.0);
        assert_eq!(decoding.to_json()["gamma"], Value::Null);
    }

    #[test]
    fn speculation_is_told_by_mode() {
        let metrics = EngineMetrics {
            steps: [(Mode::Ar, 2), (Mode::Pearl, 8)].into(),
            tokens: 30,
            gamma: 5,
            preemptions: 1,
            ..EngineMetrics::default()
        };
        let decoding = Decoding { metrics: &metrics, texts: 3, mat: None, seconds: 1.0 };
        let summary = decoding.summary();
        assert!(summary.contains("steps: 2 of ar, 8 of pearl; MAT unknown"), "{summary}");
        assert!(summary.ends_with("cache memory 1 time"), "{summary}");
        assert_eq!(decoding.to_json()["tokens_per_step"], 3.0);
    }
}
