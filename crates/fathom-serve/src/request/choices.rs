//! How many texts a request asks for, and how it wants them.

use fathom_decode::SamplingParams;

use super::fathom::FathomFields;
use super::fields::Fields;
use crate::error::ApiError;
use crate::limits;

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, utoipa::ToSchema)]
pub struct StreamOptions {
    /// Whether the stream ends with a chunk that has the usage.
    pub include_usage: Option<bool>,
    /// Whether every chunk has the usage so far.
    pub continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    fn read(mut fields: Fields) -> Result<StreamOptions, ApiError> {
        let options = StreamOptions {
            include_usage: fields.boolean("include_usage")?,
            continuous_usage_stats: fields.boolean("continuous_usage_stats")?,
        };
        fields.finish()?;
        Ok(options)
    }
}

/// What is common to all requests for texts.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Texts for each prompt.
    pub n: usize,
    /// Whether the texts are streamed.
    pub stream: bool,
    /// What the stream tells besides the texts.
    pub stream_options: StreamOptions,
    /// Fathom's own fields.
    pub fathom: FathomFields,
}

impl Choices {
    /// Reads the fields.
    ///
    /// # Errors
    /// Wrong values, or fields that ask for something that is not supported.
    pub fn read(fields: &mut Fields) -> Result<Choices, ApiError> {
        let n = fields.count("n", 1, limits::CHOICES)?.unwrap_or(1);
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let options = fields.object("stream_options")?.map(StreamOptions::read).transpose()?;
        if options.is_some() && !stream {
            let problem = "is given, but `stream` is not true";
            return Err(fields.error("stream_options", problem));
        }
        // A label for the provider's records, without an effect on the text.
        fields.string("user")?;
        let (stream_options, fathom) = (options.unwrap_or_default(), FathomFields::read(fields)?);
        Ok(Choices { n, stream, stream_options, fathom })
    }
}

/// Reads `max_completion_tokens`, the newer name of `max_tokens`.
///
/// # Errors
/// Both are given, with different values.
pub fn max_completion_tokens(
    fields: &mut Fields,
    max_tokens: &mut Option<usize>,
) -> Result<(), ApiError> {
    let newer = fields.count("max_completion_tokens", 1, usize::MAX)?;
    match (newer, *max_tokens) {
        (Some(newer), Some(older)) if newer != older => {
            let problem = format!("is {newer}, but `max_tokens` is {older}; expected one of them");
            Err(fields.error("max_completion_tokens", problem))
        }
        _ => {
            *max_tokens = newer.or(*max_tokens);
            Ok(())
        }
    }
}

/// Checks that a constrained text can end where its grammar ends it.
///
/// # Errors
/// Parameters that keep it from ending.
pub fn check_constrained(is_constrained: bool, params: &SamplingParams) -> Result<(), ApiError> {
    let problem = "cannot be combined with a `response_format` or a call that the text must be: \
                   it ends where its grammar ends";
    match is_constrained {
        true if params.ignore_eos => Err(ApiError::field("ignore_eos", problem)),
        true if params.min_tokens > 0 => Err(ApiError::field("min_tokens", problem)),
        _ => Ok(()),
    }
}

/// Checks that prompt and text fit the context together. The default of `max_tokens` is limited by
/// the engine.
///
/// # Errors
/// A prompt that leaves no room, or an explicit `max_tokens` that does not fit.
pub fn check_length(prompt: usize, asked: Option<usize>, context: usize) -> Result<(), ApiError> {
    if prompt >= context {
        return Err(ApiError::invalid(format!(
            "the prompt has {prompt} tokens; expected fewer than {context}, the context of the \
             model or the size of its cache"
        )));
    }
    let room = context - prompt;
    match asked {
        Some(asked) if asked > room => {
            let problem = format!(
                "is {asked}, but the prompt has {prompt} tokens and the context {context}; \
                 expected at most {room}"
            );
            Err(ApiError::field("max_tokens", problem))
        }
        _ => Ok(()),
    }
}
