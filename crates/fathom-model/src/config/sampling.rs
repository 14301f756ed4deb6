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
    /// `min_p`, where it leaves anything out.
    pub min_p: Option<f64>,
    /// `repetition_penalty`, where it changes anything: greedy text too.
    pub repetition_penalty: Option<f64>,
    /// Whatever else changes which token is chosen, as `field value`.
    pub others: Vec<String>,
}

/// Fields that draw tokens in ways Fathom does not, and their neutral values.
const DRAWING: [(&str, f64); 3] =
    [("typical_p", 1.0), ("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0)];

/// The same of fields that change scores whether tokens are drawn or not.
const SCORES: [(&str, f64); 2] =
    [("encoder_repetition_penalty", 1.0), ("no_repeat_ngram_size", 0.0)];

impl RecommendedSampling {
    /// Reads a `generation_config.json`. Values that are no numbers recommend nothing: they are not
    /// used.
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
        let repetition_penalty = number("repetition_penalty").filter(|&penalty| penalty != 1.0);
        let greedy = RecommendedSampling { repetition_penalty, others, ..Default::default() };
        if !draws {
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

    /// Whether there is anything in it that there are options for.
    pub fn can_be_taken(&self) -> bool {
        self.temperature.is_some() || self.repetition_penalty.is_some()
    }

    /// Advice for text that is chosen greedily although something else is recommended.
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
        if self.can_be_taken() {
            notes.push("--sampling recommended takes up the recommendation".to_owned());
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

    /// What is left out of the recommendation where it is taken up, if anything is.
    pub fn rest_remark(&self) -> Option<Remark> {
        let others = self.others.join(" and ");
        let text = format!(
            "generation_config.json also recommends {others}, for which there is no option"
        );
        (!self.others.is_empty()).then(|| Remark::advice("sampling-recommended", text))
    }
}
