//! Bad requests: a 4xx with one sentence that names the field, and nothing else disturbed.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::http::{self, get, post, request};
use common::serving::{Models, Serving};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn a_wrong_field_is_named() {
    let serving = Serving::new();
    let user = json!([{ "role": "user", "content": "Hi" }]);
    let tool = |function: Value| json!([{ "type": "function", "function": function }]);
    let format = |schema: Value| {
        let own = json!({ "name": "x", "schema": schema });
        json!({ "type": "json_schema", "json_schema": own })
    };
    for (path, field, value, param, part) in [
        (TEXT, "n", json!(1_000_000_000), "n", "from 1 to 128"),
        (TEXT, "n", json!(0), "n", "from 1 to 128"),
        (TEXT, "n", json!("2"), "n", "is \"2\""),
        (TEXT, "best_of", json!(3), "best_of", "not ranked"),
        (TEXT, "suffix", json!("x"), "suffix", "inserted"),
        (TEXT, "temperature", json!(-1), "temperature", "expected a number"),
        (TEXT, "temperature", json!("hot"), "temperature", "expected a number"),
        (TEXT, "top_p", json!(0), "top_p", "above 0"),
        (TEXT, "max_tokens", json!(0), "max_tokens", "at least 1"),
        (TEXT, "max_tokens", json!(100_000), "max_tokens", "the context 4096"),
        (TEXT, "stop", json!(vec!["a"; 17]), "stop", "at most 16"),
        (TEXT, "stop", json!("x".repeat(2000)), "stop", "expected 1 to 1024"),
        (TEXT, "logit_bias", json!({ "9999999": 1 }), "logit_bias", "vocabulary"),
        (TEXT, "logit_bias", json!({ "5": 101 }), "logit_bias", "-100 to 100"),
        (TEXT, "prompt", json!([]), "prompt", "is empty"),
        (TEXT, "prompt", json!(""), "prompt", "no tokens"),
        (TEXT, "prompt", json!({ "a": 1 }), "prompt", "expected a text"),
        (TEXT, "prompt", json!([1, -1]), "prompt[1]", "token id"),
        (TEXT, "prompt", json!([1, 99_999]), "prompt", "below 4096"),
        (TEXT, "prompt", json!(vec!["a"; 129]), "prompt", "at most 128"),
        (TEXT, "logprobs", json!(21), "logprobs", "from 0 to 20"),
        (TEXT, "beam_width", json!(4), "beam_width", "not a field"),
        (TEXT, "stream_options", json!({ "include_usage": true }), "stream_options", "`stream`"),
        (TEXT, "fathom", json!({ "sinks": 3 }), "fathom.sinks", "expected an object"),
        (TEXT, "fathom", json!({ "sinks": { "phases": "x" } }), "fathom.sinks.phases", "largest"),
        (TEXT, "fathom", json!({ "speed": 1 }), "fathom.speed", "not a field"),
        (CHAT, "messages", json!([]), "messages", "is empty"),
        (CHAT, "messages", json!("hi"), "messages", "expected a list"),
        (CHAT, "messages", json!([{ "role": "user" }]), "messages[0].content", "is missing"),
        (CHAT, "messages", json!([{ "role": 1, "content": "" }]), "messages[0].role", "text"),
        (
            CHAT,
            "messages",
            json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": "x" }] }]),
            "messages[0].content[0].type",
            "expected `text`",
        ),
        (CHAT, "top_logprobs", json!(3), "top_logprobs", "needs `logprobs`"),
        (CHAT, "chat_template_kwargs", json!({ "messages": [] }), "chat_template_kwargs", ""),
        (CHAT, "tools", tool(json!({ "name": "f" })), "tools", "format"),
        (CHAT, "tools", tool(json!({ "name": "a b" })), "tools[0].function.name", "no name"),
        (CHAT, "tools", tool(json!({ "name": "f", "x": 1 })), "tools[0].function.x", "field"),
        (CHAT, "tool_choice", json!("required"), "tool_choice", "needs `tools`"),
        (CHAT, "response_format", json!({ "type": "xml" }), "response_format.type", "json_object"),
        (
            CHAT,
            "response_format",
            format(json!({ "type": "nonsense" })),
            "response_format.json_schema.schema",
            "cannot be",
        ),
        (
            CHAT,
            "response_format",
            format((0..60_000).fold(json!({}), |mut all, n| {
                all[format!("{n}")] = json!(1);
                all
            })),
            "response_format.json_schema.schema",
            "too large",
        ),
        (CHAT, "functions", json!([]), "functions", "`tools`"),
        (CHAT, "store", json!(true), "store", "false"),
        (CHAT, "audio", json!({}), "audio", "not a field"),
        (CHAT, "model", json!("other"), "model", "expected `pair`"),
    ] {
        let mut body = match path {
            TEXT => json!({ "prompt": "Hi", "max_tokens": 2 }),
            _ => json!({ "messages": user, "max_tokens": 2 }),
        };
        body[field] = value;
        let reply = post(serving.address, path, &body);
        let status = if param == "model" { 404 } else { 400 };
        assert_eq!(reply.status, status, "{path} {field} {reply:?}");
        let error = reply.error();
        assert_eq!(error["param"], param, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{part}: {message}");
    }
    // A field of the conversation that the template does not use is no silent loss either.
    let named = json!({ "messages": [{ "role": "user", "content": "Hi", "name": "Ann" }] });
    let message = post(serving.address, CHAT, &named).error()["message"].clone();
    assert!(message.as_str().unwrap().contains("messages[0].name"), "{message}");
    assert!(!message.as_str().unwrap().contains('/'), "no path of the server: {message}");
    // And the server still works.
    let body = json!({ "prompt": "Hi", "max_tokens": 2 });
    assert_eq!(post(serving.address, TEXT, &body).status, 200);
}

#[test]
fn a_body_that_is_not_a_request_is_refused() {
    let serving = Serving::with(&Default::default(), |options| options.server.max_body = 10_000);
    let deep = format!("{{\"prompt\": {}{}}}", "[".repeat(4000), "]".repeat(4000));
    for (body, part) in [
        (&b""[..], "the body of the request is empty; expected a JSON object"),
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"{\"prompt\": \"\xff\"}", "not valid JSON"),
        (br#"{"prompt": "\ud800"}"#, "not valid JSON"),
        (br#"{"prompt": "a", "n": 1e999}"#, "not valid JSON"),
        (br#"{"prompt": "a"} x"#, "not valid JSON"),
        (deep.as_bytes(), "nested too deeply; expected fewer than 128 levels"),
    ] {
        let reply = request(serving.address, "POST", TEXT, &[], body);
        assert_eq!(reply.status, 400, "{reply:?}");
        let message = reply.error()["message"].clone();
        assert!(message.as_str().unwrap().contains(part), "{message}");
    }
    let long = json!({ "prompt": "x".repeat(20_000) }).to_string();
    let reply = request(serving.address, "POST", TEXT, &[], long.as_bytes());
    assert_eq!(reply.status, 413);
    assert!(reply.error()["message"].as_str().unwrap().contains("10000 bytes"));
    let plain = [("content-type", "text/plain")];
    assert_eq!(request(serving.address, "POST", TEXT, &plain, b"{}").status, 415);
    let body = br#"{"prompt": "a", "max_tokens": 1}"#;
    for (encoding, status) in [("gzip", 415), ("br", 415), ("Identity", 200)] {
        let header = [("content-encoding", encoding)];
        let reply = request(serving.address, "POST", TEXT, &header, body);
        assert_eq!(reply.status, status, "{encoding}: {reply:?}");
    }
    let both = json!({ "prompt": "a", "messages": [] });
    let error = post(serving.address, "/tokenize", &both).error();
    assert_eq!(error["param"], "messages");
    assert!(error["message"].as_str().unwrap().contains("expected one of them"), "{error}");
    // Nobody's own bytes come back in full.
    let long = json!({ "prompt": "a", "model": "x".repeat(5000) });
    let reply = post(serving.address, TEXT, &long);
    assert_eq!((reply.status, &reply.error()["code"]), (404, &json!("model_not_found")));
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(request(serving.address, "POST", TEXT, &charset, body).status, 200);
    assert_eq!(get(serving.address, "/nowhere").error()["param"], Value::Null);
    assert_eq!(get(serving.address, TEXT).status, 405);
    assert_eq!(request(serving.address, "DELETE", "/health", &[], b"").status, 405);
}

#[test]
fn a_prompt_beyond_the_context_is_refused_at_once() {
    let serving = Serving::new();
    let ids = vec![5; 4096];
    let reply = post(serving.address, TEXT, &json!({ "prompt": ids, "max_tokens": 1 }));
    assert_eq!(reply.status, 400);
    assert!(reply.error()["message"].as_str().unwrap().contains("expected fewer than 4096"));
}

#[test]
fn keys_are_asked_for() {
    let models = Models::new();
    let path = models.file("keys");
    std::fs::write(&path, "one\ntwo\n").unwrap();
    let serving = Serving::with(&Default::default(), |options| {
        options.server.keys = Some(fathom_lm::Keys::from_file(&path).unwrap().0);
    });
    let address = serving.address;
    let models = |header: &[(&str, &str)]| request(address, "GET", "/v1/models", header, b"");
    let reply = models(&[]);
    assert_eq!((reply.status, reply.headers["www-authenticate"].as_str()), (401, "Bearer"));
    assert_eq!(reply.error()["code"], "invalid_api_key");
    assert_eq!(models(&[("authorization", "Bearer three")]).status, 401);
    for key in ["Bearer one", "bearer two"] {
        assert_eq!(models(&[("authorization", key)]).status, 200);
    }
    for path in [TEXT, CHAT, "/tokenize", "/detokenize"] {
        assert_eq!(request(address, "POST", path, &[], b"{}").status, 401, "{path}");
    }
    for path in ["/", "/health", "/ready", "/metrics", "/openapi.json"] {
        assert_eq!(get(address, path).status, 200, "{path}");
    }
}

#[test]
fn a_slow_body_is_given_up_and_disturbs_nobody() {
    let serving = Serving::new();
    let body = br#"{"prompt": "a", "max_tokens": 1}"#;
    let all = http::bytes("POST", TEXT, &[], body);
    let mut slow = http::connect(serving.address);
    slow.write_all(&all[..all.len() - 5]).unwrap();
    let start = Instant::now();
    let quick = request(serving.address, "POST", TEXT, &[], body);
    assert_eq!(quick.status, 200);
    let reply = http::read(&mut slow);
    assert_eq!(reply.status, 408);
    assert!(start.elapsed() < Duration::from_secs(40));
    reply.error();
}
