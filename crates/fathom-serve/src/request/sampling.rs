//! Sampling parameters of a request.

use std::collections::{BTreeMap, HashMap};

use fathom_decode::SamplingParams;
use serde_json::Value;
use utoipa::ToSchema;

use super::fields::{Fields, wrong};
use crate::error::ApiError;
use crate::limits;

/// How tokens are chosen and when a text ends, under the names of OpenAI and vLLM. What is absent
/// has the server's default.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct SamplingFields {
    /// Divides the logits; 0 is greedy decoding.
    #[schema(minimum = 0)]
    pub temperature: Option<f32>,
    /// Sample from the smallest set of most likely tokens with this total probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Sample from this many most likely tokens; 0 or -1: from all.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Sample from tokens at least this many times as likely as the most likely one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Above 1, tokens of prompt and text become less likely.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that occur in the text.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for each time it occurs in the text.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, by token id.
    pub logit_bias: Option<HashMap<String, f32>>,
    /// Key of the random numbers. The same request with the same seed gives the same text.
    pub seed: Option<i64>,
    /// Largest number of tokens of a text.
    #[schema(minimum = 1)]
    pub max_tokens: Option<usize>,
    /// Least number of tokens before anything ends the text.
    #[schema(minimum = 0)]
    pub min_tokens: Option<usize>,
    /// Strings that end the text, not empty: one, or a list of at most 16.
    #[schema(value_type = Option<StopStrings>)]
    pub stop: Option<Vec<String>>,
    /// Token ids that end the text.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Whether to continue after an end-of-text token.
    pub ignore_eos: Option<bool>,
}

/// Strings that end a text.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes `stop` in /openapi.json")]
pub enum StopStrings {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl SamplingFields {
    /// Reads the fields of a request.
    ///
    /// # Errors
    /// A field of the wrong type. Ranges are checked by the engine.
    pub fn read(fields: &mut Fields) -> Result<SamplingFields, ApiError> {
        Ok(SamplingFields {
            temperature: fields.number("temperature")?,
            top_p: fields.number("top_p")?,
            top_k: fields.integer("top_k")?,
            min_p: fields.number("min_p")?,
            repetition_penalty: fields.number("repetition_penalty")?,
            presence_penalty: fields.number("presence_penalty")?,
            frequency_penalty: fields.number("frequency_penalty")?,
            logit_bias: logit_bias(fields)?,
            seed: fields.integer("seed")?,
            max_tokens: fields.count("max_tokens", 1, usize::MAX)?,
            min_tokens: fields.count("min_tokens", 0, usize::MAX)?,
            stop: stop(fields)?,
            stop_token_ids: fields.ids("stop_token_ids", limits::LIST)?,
            ignore_eos: fields.boolean("ignore_eos")?,
        })
    }

    /// The parameters for the engine; `base` has those that the request does not set.
    ///
    /// # Errors
    /// A value out of range, or a token outside the vocabulary of `vocab` tokens.
    pub fn over(self, base: &SamplingParams, vocab: usize) -> Result<SamplingParams, ApiError> {
        let top_k = match self.top_k {
            None => base.top_k,
            Some(-1) => 0,
            Some(k) => usize::try_from(k).map_err(|_| {
                ApiError::field("top_k", format!("is {k}; expected at least 0, or -1 for all"))
            })?,
        };
        let logit_bias = match self.logit_bias {
            None => base.logit_bias.clone(),
            Some(biases) => ids_of(biases)?,
        };
        let max_tokens = self.max_tokens.unwrap_or(base.max_tokens);
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias,
            // A seed is a key: negative ones are as good as others.
            seed: self.seed.map_or(base.seed, i64::cast_unsigned),
            max_tokens,
            // The server's default may be above the `max_tokens` of the request.
            min_tokens: self.min_tokens.unwrap_or(base.min_tokens.min(max_tokens)),
            stop: self.stop.unwrap_or_else(|| base.stop.clone()),
            stop_token_ids: self.stop_token_ids.unwrap_or_else(|| base.stop_token_ids.clone()),
            ignore_eos: self.ignore_eos.unwrap_or(base.ignore_eos),
        };
        let valid = params.validate().and_then(|()| params.validate_ids(vocab));
        valid.map_err(|error| ApiError::refused(&error.to_string()))?;
        Ok(params)
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Option<HashMap<String, f32>>, ApiError> {
    let path = fields.path("logit_bias");
    let Some(map) = fields.map("logit_bias")? else { return Ok(None) };
    let bias = |(id, value): (String, Value)| match value.as_f64() {
        Some(bias) => Ok((id, bias as f32)),
        None => Err(wrong(&path, &value, "a number for each token id")),
    };
    map.into_iter().map(bias).collect::<Result<_, _>>().map(Some)
}

fn ids_of(biases: HashMap<String, f32>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let id = |(id, bias): (String, f32)| match id.trim().parse() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(ApiError::field("logit_bias", "has a name that is not a token id")),
    };
    biases.into_iter().map(id).collect()
}

/// `stop`: a text or a list of texts.
fn stop(fields: &mut Fields) -> Result<Option<Vec<String>>, ApiError> {
    let strings = match fields.value("stop") {
        None => return Ok(None),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => {
            let text = |value: Value| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong("stop", &other, "texts")),
            };
            list.into_iter().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("stop", &other, "a text or a list of texts")),
    };
    let (most, longest) = (limits::STOP_STRINGS, limits::STOP_STRING);
    if strings.len() > most {
        let problem = format!("has {} texts; expected at most {most}", strings.len());
        return Err(ApiError::field("stop", problem));
    }
    if let Some(text) = strings.iter().find(|text| text.is_empty() || text.len() > longest) {
        let problem = format!("has a text of {} bytes; expected 1 to {longest}", text.len());
        return Err(ApiError::field("stop", problem));
    }
    Ok(Some(strings))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn params(text: &str) -> Result<SamplingParams, String> {
        let base = SamplingParams { top_k: 7, max_tokens: 30, ..SamplingParams::default() };
        let mut fields = Fields::parse(text.as_bytes()).unwrap();
        let read = SamplingFields::read(&mut fields);
        read.and_then(|read| read.over(&base, 100)).map_err(|error| error.body().error.message)
    }

    #[test]
    fn a_request_overrides_the_defaults() {
        let read = params(r#"{"temperature": 1, "top_p": 0.5, "stop": "a", "seed": -1}"#).unwrap();
        let expected = SamplingParams {
            temperature: 1.0,
            top_p: 0.5,
            top_k: 7,
            max_tokens: 30,
            stop: vec!["a".to_owned()],
            seed: u64::MAX,
            ..SamplingParams::default()
        };
        assert_eq!(read, expected);
        assert_eq!(
            params(r#"{"top_k": -1, "logit_bias": {"5": -3}}"#).unwrap().logit_bias[&5],
            -3.
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (r#"{"temperature": "hot"}"#, "`temperature` is \"hot\"; expected a number"),
            (r#"{"temperature": -1}"#, "`temperature` is -1; expected a number ≥ 0"),
            (r#"{"top_k": -2}"#, "`top_k` is -2; expected at least 0, or -1 for all"),
            (r#"{"logit_bias": {"x": 1}}"#, "`logit_bias` has a name that is not a token id"),
            (r#"{"stop": ["a", 1]}"#, "`stop` is 1; expected texts"),
            (r#"{"stop": ""}"#, "`stop` has a text of 0 bytes; expected 1 to 1024"),
        ] {
            assert_eq!(params(text).unwrap_err(), expected);
        }
        let many = format!(r#"{{"stop": [{}"a"]}}"#, r#""a","#.repeat(16));
        assert!(params(&many).unwrap_err().contains("17 texts"));
        assert!(params(r#"{"stop_token_ids": [100]}"#).unwrap_err().contains("stop_token_ids"));
    }
}
