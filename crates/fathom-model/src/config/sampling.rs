//! The sampling that `generation_config.json` recommends.

use serde_json::Value;

use super::fields::{Fields, shown};
use crate::Remark;

/// The sampling that the authors of a checkpoint recommend. It is applied only on request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecommendedSampling {
    /// `temperature`; `None` for greedy decoding (`do_sample` is not true).
    pub temperature: Option<f64>,
    /// `top_p`, if it excludes any token.
    pub top_p: Option<f64>,
    /// `top_k`, if it excludes any token.
    pub top_k: Option<u64>,
    /// `min_p`, if it excludes any token.
    pub min_p: Option<f64>,
    /// `repetition_penalty`, if it is not 1. It affects greedy decoding too.
    pub repetition_penalty: Option<f64>,
    /// Unsupported fields that change which token is chosen, as `field value`.
    pub others: Vec<String>,
}

/// Unsupported fields that affect sampling only, and their neutral values.
const SAMPLING_ONLY: [(&str, f64); 3] =
    [("typical_p", 1.0), ("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0)];

/// Unsupported fields that affect sampling and greedy decoding, and their neutral values.
const SAMPLING_AND_GREEDY: [(&str, f64); 2] =
    [("encoder_repetition_penalty", 1.0), ("no_repeat_ngram_size", 0.0)];

impl RecommendedSampling {
    /// Reads a `generation_config.json`. Values that are not numbers are ignored.
    pub(super) fn read(fields: &Fields<'_>) -> RecommendedSampling {
        let number = |name| fields.get(name).and_then(Value::as_f64);
        let samples = fields.get("do_sample").and_then(Value::as_bool) == Some(true);
        let sampling_only = SAMPLING_ONLY.into_iter().filter(|_| samples);
        let unsupported = SAMPLING_AND_GREEDY.into_iter().chain(sampling_only);
        let others = unsupported.filter_map(|(name, neutral)| {
            let value = fields.get(name)?;
            let matters = value.as_f64().is_some_and(|number| number != neutral);
            matters.then(|| format!("{name} {}", shown(value)))
        });
        let others = others.collect();
        let repetition_penalty = number("repetition_penalty").filter(|&penalty| penalty != 1.0);
        let greedy = RecommendedSampling { repetition_penalty, others, ..Default::default() };
        if !samples {
            return greedy;
        }
        RecommendedSampling {
            temperature: Some(number("temperature").unwrap_or(1.0)),
            top_p: number("top_p").filter(|&p| p < 1.0),
            top_k: fields.get("top_k").and_then(Value::as_u64).filter(|&k| k > 0),
            min_p: number("min_p").filter(|&p| p != 0.0),
            ..greedy
        }
    }

    /// Whether it recommends anything that Fathom has options for.
    pub fn is_applicable(&self) -> bool {
        self.temperature.is_some() || self.repetition_penalty.is_some()
    }

    /// Advice for greedy decoding of a checkpoint that recommends something else.
    pub fn remark(&self) -> Option<Remark> {
        let named = [
            ("temperature", self.temperature),
            ("top-p", self.top_p),
            ("top-k", self.top_k.map(|k| k as f64)),
            ("min-p", self.min_p),
            ("repetition-penalty", self.repetition_penalty),
        ];
        let named =
            named.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
        let named: Vec<String> = named.chain(self.others.iter().cloned()).collect();
        if named.is_empty() {
            return None;
        }
        let mut notes = Vec::new();
        if self.is_applicable() {
            notes.push("--sampling recommended applies the recommendation".to_owned());
        }
        if !self.others.is_empty() {
            notes.push(format!("there is no option for {}", self.others.join(" and ")));
        }
        let text = format!(
            "generation_config.json recommends {}; greedy decoding is used: {}",
            named.join(", "),
            notes.join("; ")
        );
        Some(Remark::advice("sampling-recommended", text))
    }

    /// A remark about the recommended fields that `--sampling recommended` cannot apply.
    pub fn unsupported_remark(&self) -> Option<Remark> {
        let others = self.others.join(" and ");
        let text = format!(
            "generation_config.json also recommends {others}, for which there is no option"
        );
        (!self.others.is_empty()).then(|| Remark::advice("sampling-recommended", text))
    }
}
