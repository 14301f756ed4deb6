//! Fathom's own fields of a request.

use serde_json::Value;
use utoipa::ToSchema;

use super::fields::Fields;
use crate::error::ApiError;
use crate::sinks::SinkOptions;

/// `fathom`: what only this engine can tell.
#[derive(Clone, Copy, Debug, Default, ToSchema)]
pub struct FathomFields {
    /// Whether to report the attention sinks that the target's own pass finds: true, or an object
    /// with details.
    #[schema(value_type = Option<SinkRequest>)]
    pub sinks: Option<SinkOptions>,
}

/// Which attention sinks to report.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes `fathom.sinks` in /openapi.json")]
pub enum SinkRequest {
    /// Whether to report them.
    Wanted(bool),
    /// Details.
    Details(SinkFields),
}

/// Details of the attention sinks to report.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `fathom.sinks` in /openapi.json")]
pub struct SinkFields {
    /// Whether to measure sink scores.
    pub scores: Option<bool>,
    /// Whether the sinks of the largest phase are reported, or of all.
    pub phases: Option<PhaseNames>,
}

/// Phases of a text whose sinks are reported.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes `fathom.sinks` in /openapi.json")]
pub enum PhaseNames {
    /// The largest.
    Largest,
    /// All.
    All,
}

impl FathomFields {
    /// Reads `fathom`.
    ///
    /// # Errors
    /// Wrong values.
    pub fn read(fields: &mut Fields) -> Result<FathomFields, ApiError> {
        let Some(mut own) = fields.object("fathom")? else { return Ok(FathomFields::default()) };
        let path = own.path("sinks");
        let sinks = match own.value("sinks") {
            None | Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(SinkOptions::default()),
            Some(value) => {
                let mut details = Fields::of(&path, value)?;
                let scores = details.boolean("scores")?.unwrap_or(false);
                let phases = details.name("phases", &["largest", "all"])?;
                details.finish()?;
                Some(SinkOptions { scores, all_phases: phases == Some("all") })
            }
        };
        own.finish()?;
        Ok(FathomFields { sinks })
    }
}
