//! `GET /openapi.json`: the description of all endpoints, generated from their types.

use axum::Json;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::request::chat::ChatRequest;
use crate::request::completion::CompletionRequest;
use crate::routes::{chat, completions, info, metrics, tokens};

#[derive(OpenApi)]
#[openapi(
    info(title = "Fathom", description = "Text generation with lossless parallel speculation"),
    paths(
        chat::answer,
        completions::complete,
        info::models,
        info::model,
        info::health,
        info::ready,
        metrics::metrics,
        tokens::tokenize,
        tokens::detokenize,
    ),
    components(schemas(ChatRequest, CompletionRequest))
)]
struct Document;

/// The requests, whose objects may have no other fields than those described.
const REQUESTS: [&str; 4] =
    ["ChatRequest", "CompletionRequest", "TokenizeRequest", "DetokenizeRequest"];

/// The description of all endpoints
pub async fn document() -> Json<Value> {
    Json(value())
}

/// The document. Keys may be required of every endpoint below `/v1`, so their scheme is described.
fn value() -> Value {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    let schemas = document["components"]["schemas"].clone();
    for name in REQUESTS {
        if let Some(schema) = document["components"]["schemas"].get_mut(name) {
            flatten(schema, &schemas);
        }
    }
    if let Some(paths) = document["paths"].as_object_mut() {
        paths.values_mut().for_each(describe_stream);
    }
    document["components"]["securitySchemes"] =
        json!({ "key": { "type": "http", "scheme": "bearer" } });
    document["security"] = json!([{}, { "key": [] }]);
    document
}

/// Server-sent events: `schema` describes one event, whose `data` holds the piece as JSON text.
/// An event can also be an error, and the last one of a complete stream is `[DONE]`.
fn describe_stream(path: &mut Value) {
    let schema = "/post/responses/200/content/text~1event-stream/schema";
    let Some(schema) = path.pointer_mut(schema) else { return };
    let error = json!({ "$ref": "#/components/schemas/ErrorBody" });
    let piece = json!({
        "contentMediaType": "application/json",
        "contentSchema": { "anyOf": [schema, error] },
    });
    *schema = json!({
        "type": "object",
        "properties": { "data": { "type": "string", "anyOf": [{ "const": "[DONE]" }, piece] } },
        "required": ["data"],
    });
}

/// Merges the parts of a schema into one object and closes it: `allOf` cannot say that an object
/// has no other fields.
fn flatten(schema: &mut Value, schemas: &Value) {
    let parts = match schema.get("allOf").and_then(Value::as_array) {
        Some(parts) => parts.clone(),
        None => vec![schema.clone()],
    };
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for part in parts {
        let reference = part.get("$ref").and_then(Value::as_str);
        let name = reference.and_then(|reference| reference.rsplit('/').next());
        let part = name.and_then(|name| schemas.get(name)).unwrap_or(&part);
        let own = part.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        properties.extend(own);
        required
            .extend(part.get("required").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    let mut flat = json!({ "type": "object", "additionalProperties": false });
    if let Some(description) = schema.get("description") {
        flat["description"] = description.clone();
    }
    flat["properties"] = Value::Object(properties);
    if !required.is_empty() {
        flat["required"] = Value::Array(required);
    }
    *schema = flat;
}
