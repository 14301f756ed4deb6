//! How tokens are chosen and where a text ends: the options, over what the checkpoint recommends.

use std::collections::BTreeMap;

use crate::{Error, Result, SamplingParams, recommended_params};
use clap::ValueEnum;
use fathom_model::RecommendedSampling;

/// How tokens are chosen and where a text ends. Names and meanings are vLLM's.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Where to start from; the options below come before it [default: greedy]
    #[arg(long, value_enum, value_name = "WHOSE")]
    sampling: Option<Base>,
    /// Randomness: 0 takes the most likely token, always [default: 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Choose among the most likely tokens that together have this probability [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Choose among the K most likely tokens; 0 or -1: among all [default: 0]
    #[arg(long, value_name = "K", value_parser = parse_top_k, allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Choose among tokens at least P times as likely as the most likely one [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Above 1: tokens of prompt and text become less likely; below 1: more [default: 1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract this from the logits of tokens that are in the text, -2 to 2 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract this from the logits of tokens as often as they are in the text, -2 to 2 [default:
    /// 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Add BIAS, -100 to 100, to the logit of token ID; several with commas, or given several times
    #[arg(long, value_name = "ID=BIAS", value_delimiter = ',', value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Key of the randomness, together with a text's number and a token's position
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Most tokens of a text
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Fewest tokens of a text before an end-of-text token, a stop token or a stop string may end
    /// it
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,
    /// End the text before this string where it appears; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End the text at any of these tokens, as at an end-of-text token, with commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = parse_id)]
    stop_token_ids: Vec<u32>,
    /// Go on after an end-of-text token
    #[arg(long)]
    ignore_eos: bool,
}

/// `--sampling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Base {
    /// As the target's generation_config.json recommends
    Recommended,
    /// The most likely token, always
    Greedy,
}

/// vLLM writes -1 for all, HuggingFace 0.
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
    /// Whether anything was said about how tokens are chosen.
    pub fn chooses(&self) -> bool {
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

    /// Refuses what has no meaning whatever the checkpoint.
    ///
    /// # Errors
    /// One sentence naming the option.
    pub fn check(&self) -> Result<()> {
        self.over(SamplingParams::default())?.validate()
    }

    /// Whether to start from what the checkpoint recommends.
    pub fn takes_recommended(&self) -> bool {
        self.sampling == Some(Base::Recommended)
    }

    /// What is asked for. `recommended` is of the model `target`, which is named where it cannot be
    /// used.
    ///
    /// # Errors
    /// What has no meaning, and a recommendation asked for that is not there or cannot be used.
    pub fn params(
        &self,
        recommended: &RecommendedSampling,
        target: &str,
    ) -> Result<SamplingParams> {
        let mut base = SamplingParams::default();
        if self.takes_recommended() {
            let refuse = |problem: String| {
                Error::Request(format!(
                    "--sampling recommended: the generation_config.json of {target} recommends {problem}"
                ))
            };
            if !recommended.can_be_taken() {
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
            base.validate().map_err(|error| refuse(format!("what has no meaning: {error}")))?;
        }
        let params = self.over(base)?;
        params.validate()?;
        Ok(params)
    }

    /// The options over `base`.
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
