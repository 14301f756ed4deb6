//! The JSON schema of a list of calls, for texts that must be one.

use serde_json::{Value, json};

use super::Tool;
use super::parser::{self, Call};

/// The schema of a list of calls of `tools`: exactly one call, or at least one if `several`.
pub fn calls(tools: &[Tool], several: bool) -> Value {
    let (call, definitions) = parts(tools);
    let mut list = json!({ "type": "array", "minItems": 1, "items": call, "$defs": definitions });
    if !several {
        list["maxItems"] = Value::from(1);
    }
    list
}

/// The schema of one call of any of `tools`.
pub fn one_call(tools: &[Tool]) -> Value {
    let (mut call, definitions) = parts(tools);
    call["$defs"] = definitions;
    call
}

/// The schema of a call, and the definitions that it refers to.
fn parts(tools: &[Tool]) -> (Value, Value) {
    let mut definitions = serde_json::Map::new();
    let mut calls = Vec::new();
    for (number, tool) in tools.iter().enumerate() {
        let name = format!("tool_{number}");
        let mut parameters = arguments(tool);
        relocate(&mut parameters, &format!("#/$defs/{name}"));
        calls.push(json!({
            "type": "object",
            "properties": {
                "name": { "const": tool.name },
                "arguments": { "$ref": format!("#/$defs/{name}") },
            },
            "required": ["name", "arguments"],
            "additionalProperties": false,
        }));
        definitions.insert(name, parameters);
    }
    (json!({ "anyOf": calls }), Value::Object(definitions))
}

/// The schema of the arguments of `tool`, which are always an object.
pub fn arguments(tool: &Tool) -> Value {
    let mut parameters = tool.parameters.clone();
    close(&mut parameters);
    if let Value::Object(fields) = &mut parameters {
        fields.entry("type").or_insert_with(|| Value::from("object"));
    }
    parameters
}

/// Forbids properties that an object of plain `properties` does not name, as functions expect none.
/// Otherwise a small model adds some until the text is cut off.
fn close(schema: &mut Value) {
    const OPEN: [&str; 10] = [
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "propertyNames",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "$ref",
    ];
    match schema {
        Value::Object(fields) => {
            let named = fields.get("properties").and_then(Value::as_object);
            let required = fields.get("required").and_then(Value::as_array);
            let is_named = |name: &Value| {
                name.as_str().is_none_or(|name| named.is_some_and(|named| named.contains_key(name)))
            };
            let is_plain = named.is_some_and(|named| !named.is_empty())
                && required.is_none_or(|required| required.iter().all(is_named))
                && OPEN.iter().all(|keyword| !fields.contains_key(*keyword));
            if is_plain {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            for part in ["properties", "$defs", "definitions"] {
                let parts = fields.get_mut(part).and_then(Value::as_object_mut);
                parts.into_iter().flat_map(|parts| parts.values_mut()).for_each(close);
            }
            fields.get_mut("items").into_iter().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Moves the references of a schema that becomes a part of another, at `place`.
fn relocate(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" && target.starts_with('#') => {
                        target.replace_range(..1, place);
                    }
                    other => relocate(other, place),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| relocate(item, place)),
        _ => {}
    }
}

/// The calls in a text of the schema of [`calls`], or of the arguments of the function `named`.
/// `None` if the text was cut off.
pub fn parse_constrained(text: &str, named: Option<&str>) -> Option<Vec<Call>> {
    let value: Value = serde_json::from_str(text).ok()?;
    match named {
        Some(name) => {
            let arguments = value.is_object().then(|| text.trim().to_owned())?;
            Some(vec![Call { name: name.to_owned(), arguments }])
        }
        None => value.as_array()?.iter().map(parser::call).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_move_with_their_schema() {
        let parameters = json!({
            "properties": { "x": { "$ref": "#/$defs/X" }, "$ref": { "type": "string" } },
            "$defs": { "X": { "type": "integer" } },
        });
        let tools = [Tool { name: "f".to_owned(), parameters, strict: false }];
        let schema = calls(&tools, false);
        let reference = &schema["$defs"]["tool_0"]["properties"]["x"]["$ref"];
        assert_eq!(*reference, json!("#/$defs/tool_0/$defs/X"));
        assert!(schema.pointer("/$defs/tool_0/$defs/X").is_some());
        assert_eq!(schema["maxItems"], json!(1));
        assert_eq!(one_call(&tools)["$defs"], schema["$defs"]);
    }

    #[test]
    fn objects_of_plain_properties_are_closed() {
        let point = json!({ "properties": { "x": { "type": "integer" } } });
        let parameters = json!({
            "properties": {
                "at": point,
                "list": { "items": point },
                "free": { "properties": { "x": true }, "additionalProperties": true },
                "mixed": { "properties": { "x": true }, "anyOf": [point] },
                "extra": { "properties": { "x": true }, "required": ["y"] },
                "any": { "type": "object" },
            },
        });
        let tool = Tool { name: "f".to_owned(), parameters, strict: false };
        let closed = arguments(&tool);
        let is_closed = |path: &str| {
            closed.pointer(path).unwrap_or(&Value::Null)["additionalProperties"] == false
        };
        for path in ["", "/properties/at", "/properties/list/items"] {
            assert!(is_closed(path), "{path}");
        }
        for name in ["free", "mixed", "extra", "any"] {
            assert!(!is_closed(&format!("/properties/{name}")), "{name}");
        }
    }

    #[test]
    fn constrained_texts_become_calls() {
        let call = |name: &str, arguments: &str| Call {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        let listed = r#"[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]"#;
        let expected = Some(vec![call("f", r#"{"x":1}"#), call("g", "{}")]);
        assert_eq!(parse_constrained(listed, None), expected);
        assert_eq!(
            parse_constrained("{\"x\": 1}\n", Some("f")),
            Some(vec![call("f", "{\"x\": 1}")])
        );
        for cut_off in ["", "[{\"name\": \"f\"", "{\"x\": "] {
            assert_eq!(parse_constrained(cut_off, None), None);
            assert_eq!(parse_constrained(cut_off, Some("f")), None);
        }
    }
}
