//! `response_format`: texts that are JSON.

use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::fields::Fields;
use crate::app::App;
use crate::error::ApiError;
use crate::grammar::Grammar;

/// What the text must be.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `response_format` in /openapi.json")]
pub struct ResponseFormat {
    /// The kind.
    pub r#type: FormatName,
    /// The schema, with `json_schema`.
    pub json_schema: Option<SchemaFields>,
}

/// Kinds of texts.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "describes `response_format` in /openapi.json")]
pub enum FormatName {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema,
}

/// A JSON schema.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `response_format` in /openapi.json")]
pub struct SchemaFields {
    /// A name for the client's own use.
    pub name: Option<String>,
    /// What it describes, for the client's own use.
    pub description: Option<String>,
    /// The schema.
    pub schema: Map<String, Value>,
    /// The text always follows the schema.
    pub strict: Option<bool>,
}

/// The grammar that the text must follow. `None` if it is free.
///
/// # Errors
/// Wrong values, or a schema that cannot be used.
pub fn read(fields: &mut Fields, app: &App) -> Result<Option<Grammar>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind = format.name("type", &["text", "json_object", "json_schema"])?;
    let refused = |path: &str, error: fathom_model::Error| {
        ApiError::field(path, format!("cannot be followed: {error}"))
    };
    let grammar = match kind {
        None => return Err(format.error("type", "is missing")),
        Some("json_object") => {
            let grammar = app.grammars()?.json_object();
            Some(grammar.map_err(|error| refused(&format.path("type"), error))?)
        }
        Some("json_schema") => {
            let schema = format.object("json_schema")?;
            let mut own = schema.ok_or_else(|| format.error("json_schema", "is missing"))?;
            own.string("name")?;
            own.string("description")?;
            own.boolean("strict")?;
            let schema = own.map("schema")?;
            let path = own.path("schema");
            let schema = schema.ok_or_else(|| own.error("schema", "is missing"))?;
            own.finish()?;
            let grammar = app.grammars()?.json_schema(&Value::Object(schema));
            Some(grammar.map_err(|error| refused(&path, error))?)
        }
        Some(_) => None,
    };
    format.finish()?;
    Ok(grammar)
}
