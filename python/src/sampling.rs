//! Sampling parameters from Python.

use std::collections::BTreeMap;

use fathom_lm::{Error, Result, SamplingParams};
use serde::Deserialize;

/// The sampling parameters of a request; those it leaves out have their defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    temperature: f32,
    top_k: i64,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: BTreeMap<u32, f32>,
    seed: u64,
    max_tokens: usize,
    min_tokens: usize,
    stop: Stop,
    stop_token_ids: Vec<u32>,
    ignore_eos: bool,
}

/// One stop text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

impl Default for Params {
    fn default() -> Params {
        let SamplingParams {
            temperature,
            top_k: _,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            max_tokens,
            min_tokens,
            stop_token_ids,
            stop,
            ignore_eos,
        } = SamplingParams::default();
        Params {
            temperature,
            top_k: 0,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            max_tokens,
            min_tokens,
            stop: Stop::Several(stop),
            stop_token_ids,
            ignore_eos,
        }
    }
}

/// The parameters in a JSON object. Their values are checked later, by the library.
///
/// # Errors
/// An unknown name, or a value of another type.
pub fn parse_params(json: &str) -> Result<SamplingParams> {
    let params: Params = serde_json::from_str(json).map_err(|error| {
        // The caller passed a dictionary: a position in its JSON would mean nothing to them.
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        Error::Request(format!("sampling parameters: {problem}"))
    })?;
    let top_k = match params.top_k {
        -1 => 0, // vLLM's value for all tokens
        k => usize::try_from(k).map_err(|_| {
            Error::Request(format!("top-k is {k}; expected a whole number ≥ 0, or -1 for all"))
        })?,
    };
    Ok(SamplingParams {
        temperature: params.temperature,
        top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        logit_bias: params.logit_bias,
        seed: params.seed,
        max_tokens: params.max_tokens,
        min_tokens: params.min_tokens,
        stop: match params.stop {
            Stop::One(text) => vec![text],
            Stop::Several(texts) => texts,
        },
        stop_token_ids: params.stop_token_ids,
        ignore_eos: params.ignore_eos,
    })
}
