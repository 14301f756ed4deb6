//! `tools`, `tool_choice` and `parallel_tool_calls`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::fields::{Fields, wrong};
use crate::app::App;
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::limits;
use crate::tools::{CLOSE, OPEN, Tool, ToolFormat, ToolUse, arguments, calls, one_call};

/// A tool that the model may call.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `tools` in /openapi.json")]
pub struct ToolFields {
    /// `function`
    pub r#type: ToolType,
    /// The function.
    pub function: FunctionFields,
}

/// The type of a tool.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes `tools` in /openapi.json")]
pub enum ToolType {
    /// A function.
    Function,
}

/// A function that the model may call.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `tools` in /openapi.json")]
pub struct FunctionFields {
    /// Its name: letters, digits, `_`, `-`, `.`
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Option<Map<String, Value>>,
    /// Whether the arguments must follow the schema even if the model decides whether to call. If
    /// `tool_choice` asks for a call, they always do.
    pub strict: Option<bool>,
}

/// Which tools are called.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes `tool_choice` in /openapi.json")]
pub enum ToolChoice {
    /// By name.
    Name(ToolChoiceName),
    /// A function.
    Function(NamedTool),
}

/// Whether tools are called.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes `tool_choice` in /openapi.json")]
pub enum ToolChoiceName {
    /// The model decides.
    Auto,
    /// No calls.
    None,
    /// At least one call.
    Required,
}

/// A function that must be called.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `tool_choice` in /openapi.json")]
pub struct NamedTool {
    /// `function`
    pub r#type: ToolType,
    /// The function.
    pub function: NamedFunction,
}

/// The name of a function.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `tool_choice` in /openapi.json")]
pub struct NamedFunction {
    /// The name.
    pub name: String,
}

/// The tools of a request.
#[derive(Default)]
pub struct Tools {
    /// What the chat template gets; empty if there are no tools.
    pub for_template: Vec<Value>,
    /// How calls are found; `None` if there are none to find.
    pub tool_use: Option<ToolUse>,
    /// What the text is constrained to.
    pub grammar: Option<Grammar>,
}

/// Reads the fields.
///
/// # Errors
/// Wrong values, schemas that cannot be used, or calls in a format that is not known.
pub fn read(fields: &mut Fields, app: &App) -> Result<Tools, ApiError> {
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let choice = fields.value("tool_choice");
    let list = fields.list("tools", limits::TOOLS)?.unwrap_or_default();
    if list.is_empty() {
        return match choice.as_ref().and_then(Value::as_str) {
            None if choice.is_none() => Ok(Tools::default()),
            Some("none" | "auto") => Ok(Tools::default()),
            _ => Err(fields.error("tool_choice", "needs `tools`")),
        };
    }
    let mut tools = Vec::with_capacity(list.len());
    for (number, value) in list.iter().enumerate() {
        tools.push(tool(&format!("tools[{number}]"), value.clone())?);
    }
    let mut names = HashSet::new();
    if let Some(twice) = tools.iter().find(|tool| !names.insert(tool.name.as_str())) {
        let problem = format!("names the function `{}` twice", twice.name);
        return Err(fields.error("tools", problem));
    }
    let (tool_use, grammar) = match Choice::read(choice, &tools)? {
        Choice::None => (None, None),
        Choice::Auto => {
            let (format, grammar) = free(app, &tools, parallel)?;
            (Some(ToolUse::Free(format)), grammar)
        }
        Choice::Required => {
            let grammar = app.grammars()?.json_schema(&calls(&tools, parallel));
            (Some(ToolUse::Listed), Some(grammar.map_err(unusable)?))
        }
        Choice::Named(tool) => {
            let grammar = app.grammars()?.json_schema(&arguments(tool));
            (Some(ToolUse::Named(tool.name.clone())), Some(grammar.map_err(unusable)?))
        }
    };
    Ok(Tools { for_template: list, tool_use, grammar })
}

fn unusable(error: fathom_model::Error) -> ApiError {
    ApiError::field("tools", format!("cannot be followed: {error}"))
}

/// The model's own format, for calls that it writes if it wants to, and the grammar that holds
/// strict functions to their schemas.
fn free(
    app: &App,
    tools: &[Tool],
    parallel: bool,
) -> Result<(ToolFormat, Option<Grammar>), ApiError> {
    let format = app.model.template.as_ref().and_then(ToolFormat::of).ok_or_else(|| {
        let problem = "cannot be called freely: the format of this model's calls is not known; \
                       set `tool_choice` to `required` or a function";
        ApiError::field("tools", problem)
    })?;
    let strict = tools.iter().position(|tool| tool.strict);
    if parallel && strict.is_none() {
        return Ok((format, None));
    }
    if format != ToolFormat::Hermes {
        let field = match strict {
            Some(number) => format!("tools[{number}].function.strict"),
            None => "parallel_tool_calls".to_owned(),
        };
        let problem = "cannot be kept in the format in which this model calls freely; set \
                       `tool_choice` to `required` or a function";
        return Err(ApiError::field(&field, problem));
    }
    let held = tools.iter().map(|tool| match tool.strict {
        true => tool.clone(),
        false => Tool { parameters: json!({ "type": "object" }), ..tool.clone() },
    });
    let call = one_call(&held.collect::<Vec<_>>());
    let grammar = app.grammars()?.json_between(OPEN, CLOSE, &call, parallel);
    Ok((format, Some(grammar.map_err(unusable)?)))
}

/// `tool_choice`
enum Choice<'t> {
    None,
    Auto,
    Required,
    Named(&'t Tool),
}

impl Choice<'_> {
    fn read(choice: Option<Value>, tools: &[Tool]) -> Result<Choice<'_>, ApiError> {
        let expected = "`auto`, `none`, `required` or a function";
        match choice {
            None => Ok(Choice::Auto),
            Some(Value::String(name)) => match name.as_str() {
                "none" => Ok(Choice::None),
                "auto" => Ok(Choice::Auto),
                "required" => Ok(Choice::Required),
                _ => Err(wrong("tool_choice", &Value::String(name), expected)),
            },
            Some(value @ Value::Object(_)) => {
                let mut fields = Fields::of("tool_choice", value)?;
                fields.name("type", &["function"])?;
                let function = fields.object("function")?;
                let mut function =
                    function.ok_or_else(|| fields.error("function", "is missing"))?;
                fields.finish()?;
                let name = function.string("name")?;
                let name = name.ok_or_else(|| function.error("name", "is missing"))?;
                function.finish()?;
                let tool = tools.iter().find(|tool| tool.name == name);
                tool.map(Choice::Named).ok_or_else(|| {
                    let problem =
                        format!("is `{}`, which `tools` does not name", name.escape_debug());
                    ApiError::field("tool_choice.function.name", problem)
                })
            }
            Some(other) => Err(wrong("tool_choice", &other, expected)),
        }
    }
}

/// One tool.
fn tool(path: &str, value: Value) -> Result<Tool, ApiError> {
    let mut fields = Fields::of(path, value)?;
    if fields.name("type", &["function"])?.is_none() {
        return Err(fields.error("type", "is missing; expected `function`"));
    }
    let function = fields.object("function")?;
    let mut function = function.ok_or_else(|| fields.error("function", "is missing"))?;
    fields.finish()?;
    let name = function.string("name")?.ok_or_else(|| function.error("name", "is missing"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        let problem = "is no name; expected 1 to 64 letters, digits, `_`, `-` or `.`";
        return Err(function.error("name", problem));
    }
    function.string("description")?;
    let parameters = function.map("parameters")?;
    let parameters = parameters.map_or_else(|| json!({ "type": "object" }), Value::Object);
    let strict = function.boolean("strict")?.unwrap_or(false);
    function.finish()?;
    Ok(Tool { name, parameters, strict })
}
