//! Sampling parameters and stop conditions, with the checkpoint's recommendation as a base.

use std::collections::BTreeMap;

use crate::{Error, Remark, Result, SamplingParams, recommended_params};
use clap::ValueEnum;
use fathom_model::RecommendedSampling;

/// Sampling parameters and stop conditions. Names and meanings are those of vLLM.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Base parameters, which the options below override [default: greedy]
    #[arg(long, value_enum, value_name = "BASE")]
    sampling: Option<SamplingBase>,
    /// Sampling temperature; 0 is greedy decoding [default: 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Sample from the smallest set of most likely tokens with total probability P [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Sample from the K most likely tokens; 0 or -1: from all [default: 0]
    #[arg(long, value_name = "K", value_parser = parse_top_k, allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Sample from tokens at least P times as likely as the most likely one [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Above 1, tokens of prompt and text become less likely; below 1, more likely [default: 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract X from the logits of tokens that occur in the text, -2 to 2 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract X from the logit of a token for each time it occurs in the text, -2 to 2 [default:
    /// 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Add BIAS, -100 to 100, to the logit of token ID; comma separated, may be given several times
    #[arg(long, value_name = "ID=BIAS", value_delimiter = ',', value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Random seed; a draw depends on the seed, the number of the text and the token position
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Maximum number of tokens of a text
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Minimum number of tokens before an end-of-text token, a stop token or a stop string may end
    /// the text
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,
    /// End the text before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Token ids that end the text like an end-of-text token, comma separated
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = parse_id)]
    stop_token_ids: Vec<u32>,
    /// Continue after an end-of-text token
    #[arg(long)]
    ignore_eos: bool,
}

/// `--sampling`: the base parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SamplingBase {
    /// The recommendation in the target's generation_config.json
    Recommended,
    /// Always the most likely token
    Greedy,
}

/// Parses `--top-k`. "All tokens" is -1 in vLLM and 0 in HuggingFace.
fn parse_top_k(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => text.parse().map_err(|_| "expected a number of tokens, or 0 or -1 for all".to_owned()),
    }
}

fn parse_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "expected token ids like 2 or 5,17".to_owned())
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, bias)| {
        let (id, bias) = (id.trim().parse().ok()?, bias.trim().parse().ok()?);
        Some((id, bias))
    });
    parts.ok_or_else(|| "expected token ids and numbers like 5=-1.5 or 5=2,17=-100".to_owned())
}

impl SamplingArgs {
    /// Whether any sampling parameter was given.
    fn is_given(&self) -> bool {
        let SamplingArgs { temperature, top_p, min_p, .. } = self;
        let numbers = [
            *temperature,
            *top_p,
            *min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        ];
        self.sampling.is_some()
            || self.top_k.is_some()
            || numbers.iter().any(Option::is_some)
            || !self.logit_bias.is_empty()
    }

    /// Checks the options before any file is read.
    ///
    /// # Errors
    /// An option that is invalid for every checkpoint.
    pub fn check(&self) -> Result<()> {
        self.over(SamplingParams::default())?.validate()
    }

    /// Whether the base is the checkpoint's recommendation.
    fn is_recommended(&self) -> bool {
        self.sampling == Some(SamplingBase::Recommended)
    }

    /// A remark about a recommendation that is not followed, or not in all its parts.
    pub fn recommendation(&self, recommended: &RecommendedSampling) -> Option<Remark> {
        match (self.is_recommended(), self.is_given()) {
            (true, _) => recommended.unsupported_remark(),
            (false, true) => None,
            (false, false) => recommended.remark(),
        }
    }

    /// The sampling parameters. `recommended` is the recommendation of the model `target`.
    ///
    /// # Errors
    /// Invalid parameters; `--sampling recommended` with a missing or unusable recommendation.
    pub fn params(
        &self,
        recommended: &RecommendedSampling,
        target: &str,
    ) -> Result<SamplingParams> {
        let mut base = SamplingParams::default();
        if self.is_recommended() {
            let refuse = |problem: String| {
                Error::Request(format!(
                    "--sampling recommended: the generation_config.json of {target} recommends \
                     {problem}"
                ))
            };
            if !recommended.is_applicable() {
                let instead = "expected any of temperature with do_sample, or repetition_penalty";
                return Err(refuse(match recommended.others.is_empty() {
                    true => format!("no sampling; {instead}"),
                    false => format!(
                        "{}, for which there is no option; {instead}",
                        recommended.others.join(" and ")
                    ),
                }));
            }
            base = recommended_params(recommended);
            base.validate().map_err(|error| refuse(format!("invalid values: {error}")))?;
        }
        let params = self.over(base)?;
        params.validate()?;
        Ok(params)
    }

    /// `base`, overridden by the given options.
    fn over(&self, base: SamplingParams) -> Result<SamplingParams> {
        let mut logit_bias = BTreeMap::new();
        for &(id, bias) in &self.logit_bias {
            if logit_bias.insert(id, bias).is_some() {
                return Err(Error::Request(format!(
                    "--logit-bias names token {id} twice; expected each token once"
                )));
            }
        }
        let mut stop_token_ids: Vec<u32> = Vec::new();
        for &id in &self.stop_token_ids {
            if !stop_token_ids.contains(&id) {
                stop_token_ids.push(id);
            }
        }
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias,
            seed: self.seed,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
            stop_token_ids,
            ignore_eos: self.ignore_eos,
        })
    }
}
