//! A generated text as a line of JSON, which `fathom scan` reads.

use fathom_model::PromptContent;
use serde_json::{Map, Value, json};

use super::{Generation, Task};
use crate::{Finish, SamplingParams};

/// The model of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The target as named by the user.
    pub model: String,
    /// Fingerprint of its weights.
    pub weights: String,
    /// Operand precision.
    pub precision: String,
}

/// Formats lines. A line depends on target, prompt, sampling parameters and text only, not on the
/// decoding mode. At temperature 0 all modes write the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceLine {
    /// The model.
    pub origin: Origin,
    /// The sampling parameters.
    pub params: SamplingParams,
    /// How the texts were watched, written as field `watch`. `None` if they were not.
    pub watch: Option<Value>,
    /// What was suppressed in the texts, written as field `suppress`. `None` if nothing was.
    pub suppress: Option<Value>,
}

impl TraceLine {
    /// The fields known before generation: all but `output`, `finish_reason` and `input_ids`.
    pub fn head(&self, task: &Task) -> Map<String, Value> {
        let SamplingParams {
            temperature, top_k, top_p, seed, max_tokens, stop, ignore_eos, ..
        } = &self.params;
        let prompt = match task.prompt.as_ref() {
            PromptContent::Text(text) => vec![("prompt", json!(text))],
            PromptContent::Messages(conversation) => conversation.to_fields(),
        };
        let place = [
            ("index", json!(task.index)),
            ("prompt_index", json!(task.prompt_index)),
            ("sample", json!(task.sample)),
        ];
        let origin = [
            ("model", json!(self.origin.model)),
            ("weights", json!(self.origin.weights)),
            ("precision", json!(self.origin.precision)),
            ("seed", json!(seed)),
            ("temperature", shortest(*temperature)),
            ("top_p", shortest(*top_p)),
            ("top_k", json!(top_k)),
            ("max_tokens", json!(max_tokens)),
            ("stop", json!(stop)),
            ("ignore_eos", json!(ignore_eos)),
        ];
        let sinks = [(TraceLine::WATCH, &self.watch), (TraceLine::SUPPRESS, &self.suppress)];
        let sinks = sinks.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        let prompt_len = [("prompt_len", json!(task.ids.len()))];
        let fields = place.into_iter().chain(prompt).chain(origin);
        let fields = fields.chain(self.rare_params()).chain(sinks).chain(prompt_len);
        fields.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Parameters that are written only if they differ from their defaults.
    pub const RARE_PARAMS: [&str; 7] = [
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "min_tokens",
        "stop_token_ids",
    ];

    /// Name of the field for [`TraceLine::watch`].
    pub const WATCH: &str = "watch";

    /// Name of the field for [`TraceLine::suppress`].
    pub const SUPPRESS: &str = "suppress";

    /// The parameters of [`TraceLine::RARE_PARAMS`] that differ from their defaults.
    fn rare_params(&self) -> impl Iterator<Item = (&'static str, Value)> {
        // Destructured without `..`, so that a new parameter is a compile error here.
        let SamplingParams {
            temperature: _,
            top_k: _,
            top_p: _,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed: _,
            max_tokens: _,
            min_tokens,
            stop_token_ids,
            stop: _,
            ignore_eos: _,
        } = &self.params;
        let usual = SamplingParams::default();
        let number = |x: f32, usual: f32| (x != usual).then(|| shortest(x));
        let bias = || logit_bias.iter().map(|(id, bias)| (id.to_string(), shortest(*bias)));
        let values = [
            number(*min_p, usual.min_p),
            number(*repetition_penalty, usual.repetition_penalty),
            number(*presence_penalty, usual.presence_penalty),
            number(*frequency_penalty, usual.frequency_penalty),
            (!logit_bias.is_empty()).then(|| Value::Object(bias().collect())),
            (*min_tokens != usual.min_tokens).then(|| json!(min_tokens)),
            (!stop_token_ids.is_empty()).then(|| json!(stop_token_ids)),
        ];
        let named = TraceLine::RARE_PARAMS.into_iter().zip(values);
        named.filter_map(|(name, value)| Some((name, value?)))
    }

    /// The complete line.
    pub fn object(&self, generation: &Generation) -> Map<String, Value> {
        let Generation { task, output, tokens, finish, fields, .. } = generation;
        let mut line = self.head(task);
        let finish = match finish {
            Finish::Eos => "eos",
            Finish::Stop | Finish::StopToken => "stop",
            Finish::Length => "length",
        };
        let ids: Vec<u32> = task.ids.iter().chain(tokens).copied().collect();
        line.insert("output".to_owned(), json!(output));
        line.insert("finish_reason".to_owned(), json!(finish));
        line.insert("input_ids".to_owned(), json!(ids));
        line.extend(fields.clone());
        line
    }
}

/// The shortest decimal of `x`: 0.7 as `0.7`, not as the f64 nearest to the f32.
fn shortest(x: f32) -> Value {
    json!(x.to_string().parse::<f64>().unwrap_or(f64::from(x)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use fathom_model::{Message, Trace, TraceContent};

    use super::*;

    fn line(prompt: PromptContent) -> String {
        let origin = Origin { model: "m".into(), weights: "w".into(), precision: "f32".into() };
        let params = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
        let task = Task::list(vec![(prompt, vec![5, 6])], 2).pop().unwrap();
        let generation = Generation {
            task,
            output: "b\u{2028}\n\"c\"".to_owned(),
            tokens: vec![7, 8, 9],
            finish: Finish::Length,
            mat: 1.0,
            fields: Map::new(),
        };
        Value::Object(TraceLine { origin, params, watch: None, suppress: None }.object(&generation))
            .to_string()
    }

    #[test]
    fn a_line_is_a_trace_with_its_exact_ids() {
        for prompt in [
            PromptContent::Text("a".into()),
            PromptContent::Messages(vec![Message::user("a")].into()),
        ] {
            let line = line(prompt);
            assert!(!line.contains('\n'));
            let trace = Trace::parse(Path::new("out.jsonl"), 2, &line).unwrap();
            assert_eq!(trace.index, 1);
            let ids = TraceContent::Ids { input_ids: vec![5, 6, 7, 8, 9], prompt_len: 2 };
            assert_eq!(trace.content, ids);
        }
    }

    #[test]
    fn rare_parameters_are_written_if_they_differ_from_their_defaults() {
        let origin = Origin { model: "m".into(), weights: "w".into(), precision: "f32".into() };
        let task = Task::list(vec![(PromptContent::Text("a".into()), vec![5, 6])], 1).remove(0);
        let head = |params| {
            let line = TraceLine { origin: origin.clone(), params, watch: None, suppress: None };
            Value::Object(line.head(&task)).to_string()
        };
        let usual = head(SamplingParams::default());
        assert!(usual.contains(r#""ignore_eos":false,"prompt_len":2"#), "{usual}");
        let all = head(SamplingParams {
            min_p: 0.05,
            repetition_penalty: 1.1,
            presence_penalty: -0.5,
            frequency_penalty: 0.2,
            logit_bias: [(7, -100.0), (3, 0.1)].into(),
            min_tokens: 4,
            stop_token_ids: vec![9, 8],
            ..SamplingParams::default()
        });
        let rare = [
            r#""ignore_eos":false,"min_p":0.05,"repetition_penalty":1.1,"presence_penalty":-0.5,"#,
            r#""frequency_penalty":0.2,"logit_bias":{"3":0.1,"7":-100.0},"min_tokens":4,"#,
            r#""stop_token_ids":[9,8],"prompt_len":2"#,
        ];
        assert!(all.contains(&rare.concat()), "{all}");
    }

    #[test]
    fn a_watched_text_is_still_a_trace_with_its_exact_ids() {
        let origin = Origin { model: "m".into(), weights: "w".into(), precision: "f32".into() };
        let line = TraceLine {
            origin,
            params: SamplingParams::default(),
            watch: Some(json!({ "threshold": 0.5 })),
            suppress: Some(json!({ "layers": [3] })),
        };
        let prompt = (PromptContent::Text("a".into()), vec![5, 6]);
        let generation = Generation {
            task: Task::list(vec![prompt], 1).remove(0),
            output: "b".to_owned(),
            tokens: vec![7],
            finish: Finish::Length,
            mat: 1.0,
            fields: [("found".to_owned(), json!({ "input_ids": [1], "prompt": "c" }))]
                .into_iter()
                .collect(),
        };
        let line = Value::Object(line.object(&generation)).to_string();
        assert!(
            line.contains(r#""watch":{"threshold":0.5},"suppress":{"layers":[3]},"prompt_len":2"#),
            "{line}"
        );
        assert!(line.ends_with(r#""found":{"input_ids":[1],"prompt":"c"}}"#), "{line}");
        let trace = Trace::parse(Path::new("out.jsonl"), 2, &line).unwrap();
        let ids = TraceContent::Ids { input_ids: vec![5, 6, 7], prompt_len: 2 };
        assert_eq!((trace.index, trace.content), (0, ids));
    }

    #[test]
    fn numbers_are_written_as_they_were_given() {
        let line = line(PromptContent::Text("a".into()));
        assert!(line.contains(r#""temperature":0.7,"top_p":1.0,"#), "{line}");
        assert!(line.contains(r#""index":1,"prompt_index":0,"sample":1,"prompt":"a""#), "{line}");
    }
}
