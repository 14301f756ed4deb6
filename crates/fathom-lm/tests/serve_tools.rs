//! Calls of tools, over real sockets.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used)]

mod common;

use common::http::post;
use common::scripted;
use common::serving::{Models, Serving};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A template in the manner of Qwen's.
const TEMPLATE: &str = "\
{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}\
{{ '<|im_end|>\\n' }}{% endif %}{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\\n' }}{% if message.content %}{{ message.content }}{% endif %}\
{% for call in message.tool_calls or [] %}{{ '<tool_call>' + call.function.name }}\
{{ call.function.arguments | tojson + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A server of a model without a draft that writes `script`, each part in one token.
fn scripted(script: &[&str]) -> Serving {
    let models = Models::new();
    let dir = std::path::Path::new(&models.target);
    scripted::write(dir, "\u{10a}", script); // after the line break of the template
    std::fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
    Serving::alone(models)
}

/// Some words and a call.
const CALL: [&str; 6] = [
    "Let me",
    " throw.",
    "<tool_call>",
    "\n{\"name\": \"dice\", ",
    "\"arguments\": {\"n\": 2}}\n",
    "</tool_call>",
];

fn serving() -> Serving {
    let models = Models::new();
    let path = std::path::Path::new(&models.target).join("chat_template.jinja");
    std::fs::write(path, TEMPLATE).unwrap();
    Serving::of(models, &Default::default(), |_| {})
}

fn tools() -> Value {
    let place = json!({
        "type": "object",
        "properties": { "place": { "$ref": "#/$defs/place" } },
        "required": ["place"],
        "additionalProperties": false,
        "$defs": { "place": { "enum": ["Rome", "Oslo"] } },
    });
    let number = json!({
        "type": "object",
        "properties": { "n": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["n"],
        "additionalProperties": false,
    });
    let tool = |name: &str, parameters| {
        json!({ "type": "function", "function": {
            "name": name, "description": "A tool", "parameters": parameters, "strict": true,
        }})
    };
    json!([tool("weather", place), tool("dice", number)])
}

fn request(choice: Value, stream: bool) -> Value {
    json!({
        "messages": [{ "role": "user", "content": "How is the weather?" }],
        "tools": tools(),
        "tool_choice": choice,
        "stream": stream,
        "max_tokens": 1500, // the small model likes white space
    })
}

/// Checks a call against the schema of its function.
#[track_caller]
fn check(call: &Value) {
    assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    match call["function"]["name"].as_str().unwrap() {
        "weather" => assert!(["Rome", "Oslo"].contains(&arguments["place"].as_str().unwrap())),
        "dice" => assert!((1..10).contains(&arguments["n"].as_i64().unwrap())),
        other => panic!("{other}"),
    }
}

#[test]
fn a_call_that_is_asked_for_follows_its_schema() {
    let serving = serving();
    let named = json!({ "type": "function", "function": { "name": "dice" } });
    for choice in [named, json!("required")] {
        for parallel in [true, false] {
            let mut body = request(choice.clone(), false);
            body["parallel_tool_calls"] = json!(parallel);
            let reply = post(serving.address, CHAT, &body);
            assert_eq!(reply.status, 200, "{reply:?}");
            let answer = reply.json()["choices"][0].clone();
            if answer["finish_reason"] == "length" {
                assert!(parallel, "one call is short: {answer}");
                continue; // a list of calls that was cut off is text
            }
            assert_eq!(answer["finish_reason"], "tool_calls");
            assert_eq!(answer["message"]["content"], Value::Null);
            let calls = answer["message"]["tool_calls"].as_array().unwrap();
            assert!(!calls.is_empty() && (parallel || calls.len() == 1));
            calls.iter().for_each(check);
            if choice != "required" {
                assert_eq!(calls[0]["function"]["name"], "dice");
            }
            body["stream"] = json!(true);
            let (events, done) = post(serving.address, CHAT, &body).events();
            assert!(done);
            let of = |event: &Value| event["choices"][0]["delta"]["tool_calls"].as_array().cloned();
            let streamed: Vec<Value> = events.iter().filter_map(of).flatten().collect();
            assert_eq!(streamed.len(), calls.len());
            for (number, (new, old)) in streamed.iter().zip(calls).enumerate() {
                assert_eq!((&new["index"], &new["function"]), (&json!(number), &old["function"]));
            }
            assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
            let tokens =
                |event: &Value| event["choices"][0]["fathom"]["tokens"].as_array().unwrap().len();
            let all = answer["fathom"]["tokens"].as_array().unwrap().len();
            assert_eq!(events.iter().map(tokens).sum::<usize>(), all, "no token is lost");
        }
    }
}

#[test]
fn a_model_may_call_or_not() {
    let serving = serving();
    for choice in [json!("auto"), json!("none"), Value::Null] {
        let reply = post(serving.address, CHAT, &request(choice, false));
        assert_eq!(reply.status, 200, "{reply:?}");
        // The tools are part of the prompt.
        assert!(reply.json()["usage"]["prompt_tokens"].as_u64().unwrap() > 100);
    }
}

#[test]
fn a_call_of_the_models_own_choice_is_found() {
    let serving = scripted(&CALL);
    // Free, and held to schemas that this call follows.
    for (strict, parallel) in [(false, true), (true, true), (true, false)] {
        let mut body = request(json!("auto"), false);
        for tool in body["tools"].as_array_mut().unwrap() {
            tool["function"]["strict"] = json!(strict);
        }
        body["parallel_tool_calls"] = json!(parallel);
        let reply = post(serving.address, CHAT, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let answer = reply.json()["choices"][0].clone();
        assert_eq!(answer["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(answer["message"]["content"], "Let me throw.");
        let calls = answer["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["arguments"]), (1, &json!("{\"n\":2}")));
        check(&calls[0]);
        // In a stream the text comes before the call, which comes whole.
        body["stream"] = json!(true);
        let (events, done) = post(serving.address, CHAT, &body).events();
        assert!(done);
        let deltas: Vec<&Value> = events.iter().map(|e| &e["choices"][0]["delta"]).collect();
        let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(text, "Let me throw.");
        let streamed: Vec<&Value> = deltas.iter().map(|delta| &delta["tool_calls"]).collect();
        let streamed: Vec<&Value> = streamed.into_iter().filter(|calls| !calls.is_null()).collect();
        assert_eq!(streamed.len(), 1);
        assert_eq!(
            (&streamed[0][0]["index"], &streamed[0][0]["type"]),
            (&json!(0), &json!("function"))
        );
        assert_eq!(streamed[0][0]["function"], calls[0]["function"]);
        let mut ends = events.iter().filter(|e| !e["choices"][0]["finish_reason"].is_null());
        let delta = &ends.next_back().unwrap()["choices"][0]["delta"];
        assert_eq!(*delta, json!({}), "the end has a chunk of its own");
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn a_strict_function_is_called_within_its_schema() {
    // What the model wants to write, `{"n": 2}`, is not of the schema.
    let serving = scripted(&CALL);
    let mut body = request(json!("auto"), false);
    body["tools"][1]["function"]["parameters"]["properties"]["n"]["minimum"] = json!(5);
    let answer = post(serving.address, CHAT, &body).json()["choices"][0].clone();
    assert_eq!(answer["finish_reason"], "tool_calls", "{answer}");
    let call = &answer["message"]["tool_calls"][0];
    check(call);
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert!(arguments["n"].as_i64().unwrap() >= 5, "{call}");
}

#[test]
fn the_same_model_may_also_answer_with_text() {
    let serving = scripted(&CALL);
    // It wants to call, but may not begin to: it says something, or nothing.
    let mut body = request(json!("auto"), false);
    body["logit_bias"] = json!({ "4098": -100 });
    let answer = post(serving.address, CHAT, &body).json()["choices"][0].clone();
    assert_eq!(answer["finish_reason"], "stop", "{answer}");
    assert!(answer["message"].get("tool_calls").is_none(), "{answer}");
    assert!(
        answer["message"]["content"].as_str().unwrap().starts_with("Let me throw."),
        "{answer}"
    );
    // With `none`, nothing is a call.
    let answer = post(serving.address, CHAT, &request(json!("none"), false)).json();
    let answer = answer["choices"][0].clone();
    assert_eq!(answer["finish_reason"], "stop");
    assert!(answer["message"].get("tool_calls").is_none(), "{answer}");
    assert!(
        answer["message"]["content"].as_str().unwrap().starts_with("Let me throw."),
        "{answer}"
    );
}

#[test]
fn a_choice_that_is_none_of_the_four_is_refused() {
    let serving = serving();
    let function = |name: &str| json!({ "type": "function", "function": { "name": name } });
    for (choice, field) in [
        (json!("any"), "tool_choice"),
        (json!(true), "tool_choice"),
        (json!({}), "tool_choice.function"),
        (json!({ "type": "function" }), "tool_choice.function"),
        (json!({ "type": "custom", "custom": { "name": "dice" } }), "tool_choice.type"),
        (json!({ "type": "function", "function": {} }), "tool_choice.function.name"),
        (function("cards"), "tool_choice.function.name"),
    ] {
        let reply = post(serving.address, CHAT, &request(choice.clone(), false));
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!(field)), "{choice}");
    }
    // Without tools there is nothing to choose.
    for choice in [json!("required"), function("dice")] {
        let mut body = request(choice, false);
        body["tools"] = json!([]);
        let reply = post(serving.address, CHAT, &body);
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("tool_choice")));
    }
}

#[test]
fn calls_and_their_results_are_part_of_the_conversation() {
    let serving = serving();
    let call = json!({
        "id": "call_1", "type": "function",
        "function": { "name": "dice", "arguments": "{\"n\": 2}" },
    });
    let body = json!({
        "messages": [
            { "role": "user", "content": "Throw." },
            { "role": "assistant", "content": null, "tool_calls": [call], "refusal": null,
              "annotations": [] },
            { "role": "tool", "tool_call_id": "call_1", "name": "dice",
              "content": [{ "type": "text", "text": "4" }] },
        ],
        "tools": tools(),
    });
    let reply = post(serving.address, "/tokenize", &json!({ "messages": body["messages"] }));
    assert_eq!(reply.status, 200, "{reply:?}");
    let tokens = &reply.json()["tokens"];
    let text = post(serving.address, "/detokenize", &json!({ "tokens": tokens })).json();
    let text = text["prompt"].as_str().unwrap();
    // The arguments are an object for the template, as in vLLM.
    assert!(text.contains("<tool_call>dice{\"n\": 2}</tool_call>"), "{text}");
    assert!(text.contains("tool\n4"), "{text}");
    assert_eq!(post(serving.address, CHAT, &body).status, 200);
}
