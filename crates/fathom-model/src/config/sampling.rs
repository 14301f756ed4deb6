//! What `generation_config.json` recommends about choosing tokens.

use serde_json::Value;

use super::fields::{Fields, shown};
use crate::Remark;

/// How the authors of a checkpoint recommend to choose tokens. Nothing of it is applied unasked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecommendedSampling {
    /// `temperature`; `None` where tokens are not to be drawn (`do_sample` is not true).
    pub temperature: Option<f64>,
    /// `top_p`, where it leaves anything out.
    pub top_p: Option<f64>,
    /// `top_k`, where it leaves anything out.
    pub top_k: Option<u64>,
    /// Whatever else changes which token is chosen, as `field value`.
    pub others: Vec<String>,
}

/// Fields that draw tokens in ways Fathom does not, and their neutral values.
const DRAWING: [(&str, f64); 4] =
    [("min_p", 0.0), ("typical_p", 1.0), ("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0)];

/// Fields that change scores whether tokens are drawn or not, and their neutral values.
const SCORES: [(&str, f64); 3] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
];

impl RecommendedSampling {
    /// Reads a `generation_config.json`. Values that are no numbers recommend nothing: they are not used.
    pub(super) fn read(fields: &Fields<'_>) -> RecommendedSampling {
        let number = |name| fields.get(name).and_then(Value::as_f64);
        let draws = fields.get("do_sample").and_then(Value::as_bool) == Some(true);
        let drawing = DRAWING.into_iter().filter(|_| draws);
        let others = SCORES.into_iter().chain(drawing).filter_map(|(name, neutral)| {
            let value = fields.get(name)?;
            let matters = value.as_f64().is_some_and(|number| number != neutral);
            matters.then(|| format!("{name} {}", shown(value)))
        });
        let others = others.collect();
        if !draws {
            return RecommendedSampling { others, ..RecommendedSampling::default() };
        }
        RecommendedSampling {
            temperature: Some(number("temperature").unwrap_or(1.0)),
            top_p: number("top_p").filter(|&p| p < 1.0),
            top_k: fields.get("top_k").and_then(Value::as_u64).filter(|&k| k > 0),
            others,
        }
    }

    /// Advice for text that is chosen greedily although something else is recommended.
    pub fn remark(&self) -> Option<Remark> {
        let mut options = Vec::new();
        let mut named = Vec::new();
        let mut add = |name: &str, value: String| {
            named.push(format!("{} {value}", name.replace('_', "-")));
            options.push(format!("--{} {value}", name.replace('_', "-")));
        };
        if let Some(temperature) = self.temperature {
            add("temperature", temperature.to_string());
        }
        if let Some(top_p) = self.top_p {
            add("top_p", top_p.to_string());
        }
        if let Some(top_k) = self.top_k {
            add("top_k", top_k.to_string());
        }
        named.extend(self.others.iter().cloned());
        if named.is_empty() {
            return None;
        }
        let mut text = format!(
            "generation_config.json recommends {}; greedy decoding is used",
            named.join(", ")
        );
        if !options.is_empty() {
            text += &format!(": {} takes up the recommendation", options.join(" "));
        }
        if !self.others.is_empty() {
            text +=
                &format!("{}there is no option for ", if options.is_empty() { ": " } else { "; " });
            text += &self.others.join(" and ");
        }
        Some(Remark::advice("sampling-recommended", text))
    }
}
