//! The server's formats, over real sockets.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used)]

mod common;

use common::http::{get, post, request};
use common::serving::Serving;
use fathom_lm::{
    GenerateOptions, Model, ModelOptions, Pair, Preset, SamplingParams, ScanOptions, ServeOptions,
    Traces, demo,
};
use serde_json::{Value, json};

const PROMPT: &str = "Mia has 3 boxes with 12 pencils each. She gives away";

/// The text of a prompt that is run alone by the engine itself.
fn alone(serving: &Serving, prompt: &str, params: &SamplingParams, sample: u64) -> String {
    let ids = serving.engine.pair().tokenizer().encode(prompt, true).unwrap();
    let updates = serving.engine.submit_ids(ids, params, sample).unwrap();
    updates.map(|update| update.unwrap().text).collect()
}

#[test]
fn a_completion_is_the_engines_text() {
    let serving = Serving::new();
    let params = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
    let expected = alone(&serving, PROMPT, &params, 0);
    let reply = post(
        serving.address,
        "/v1/completions",
        &json!({
            "model": "pair", "prompt": PROMPT, "max_tokens": 12.0, "stop": null, "user": "me",
        }),
    );
    assert_eq!(reply.status, 200, "{reply:?}");
    let body = reply.json();
    assert_eq!(body["object"], "text_completion");
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], expected);
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    let usage = &body["usage"];
    let (prompt, text) = (&usage["prompt_tokens"], usage["completion_tokens"].as_u64().unwrap());
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), prompt.as_u64().unwrap() + text);
    let details = &usage["completion_tokens_details"];
    assert_eq!(details["accepted_prediction_tokens"], usage["fathom"]["accepted"]);
    assert!(usage["fathom"]["target_seconds"].as_f64().unwrap() > 0.0);
    // The tokens on the wire are those of the text, and their positions follow the prompt's.
    let tokens = choice["fathom"]["tokens"].as_array().unwrap();
    assert_eq!(tokens[0]["position"], *prompt);
    let ids: Vec<u32> = tokens.iter().map(|token| token["id"].as_u64().unwrap() as u32).collect();
    let decoded = post(serving.address, "/detokenize", &json!({ "tokens": ids }));
    assert_eq!(decoded.json()["prompt"], expected);
    let drafted = tokens.iter().filter(|token| token["drafted"] == true).count() as u64;
    assert!(drafted > 0 && drafted <= usage["fathom"]["accepted"].as_u64().unwrap());
}

#[test]
fn a_stream_has_the_same_text_and_no_empty_chunk() {
    let serving = Serving::new();
    for (path, prompt) in [
        ("/v1/completions", json!({ "prompt": PROMPT })),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": PROMPT }] })),
    ] {
        let mut body = prompt;
        body["max_tokens"] = json!(20);
        let whole = post(serving.address, path, &body).json();
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let reply = post(serving.address, path, &body);
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        let (mut events, done) = reply.events();
        assert!(done);
        let usage = events.pop().unwrap();
        assert_eq!(usage["choices"], json!([]));
        let counts = ["prompt_tokens", "completion_tokens", "total_tokens"];
        assert!(counts.iter().all(|name| usage["usage"][name] == whole["usage"][name]));
        let piece = |event: &Value| {
            let choice = &event["choices"][0];
            let text =
                if path.contains("chat") { &choice["delta"]["content"] } else { &choice["text"] };
            text.as_str().unwrap_or_default().to_owned()
        };
        let pieces: Vec<String> = events.iter().map(piece).collect();
        let (last, before) = pieces.split_last().unwrap();
        assert!(before.len() > 2 && before.iter().all(|piece| !piece.is_empty()), "{pieces:?}");
        let finished = |event: &Value| !event["choices"][0]["finish_reason"].is_null();
        assert!(finished(events.last().unwrap()));
        assert!(events[..events.len() - 1].iter().all(|event| !finished(event)));
        let choice = &whole["choices"][0];
        let text =
            if path.contains("chat") { &choice["message"]["content"] } else { &choice["text"] };
        assert_eq!(*text, before.concat() + last);
        if path.contains("chat") {
            assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
            assert!(events[1]["choices"][0]["delta"].get("role").is_none());
        }
        let tokens =
            |event: &Value| event["choices"][0]["fathom"]["tokens"].as_array().unwrap().clone();
        let streamed: Vec<Value> = events.iter().flat_map(tokens).collect();
        let ids = |tokens: &[Value]| tokens.iter().map(|t| t["id"].clone()).collect::<Vec<_>>();
        let all = choice["fathom"]["tokens"].as_array().unwrap();
        assert_eq!(ids(&streamed), ids(all));
    }
}

#[test]
fn choices_are_the_samples_of_their_prompt() {
    let serving = Serving::new();
    let params =
        SamplingParams { temperature: 0.9, seed: 5, max_tokens: 10, ..SamplingParams::default() };
    let prompts = [PROMPT, "def is_prime(n):"];
    let body = json!({
        "prompt": prompts, "n": 3, "temperature": 0.9, "seed": 5, "max_tokens": 10, "echo": true,
    });
    let reply = post(serving.address, "/v1/completions", &body).json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        let (prompt, sample) = (prompts[index / 3], (index % 3) as u64);
        let expected = alone(&serving, prompt, &params, sample);
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], format!("{prompt}{expected}"), "{index}");
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(reply["usage"]["prompt_tokens"].as_u64().unwrap(), {
        let count =
            |text: &str| serving.engine.pair().tokenizer().encode(text, true).unwrap().len();
        prompts.iter().map(|text| count(text) as u64).sum::<u64>()
    });
}

#[test]
fn log_probabilities_are_the_same_streamed_and_in_one_piece() {
    let serving = Serving::new();
    let body = json!({ "prompt": PROMPT, "max_tokens": 8, "logprobs": 3 });
    let reply = post(serving.address, "/v1/completions", &body).json();
    let choice = &reply["choices"][0];
    let logprobs = &choice["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, choice["text"].as_str().unwrap());
    for (number, token) in tokens.iter().enumerate() {
        let token = token.as_str().unwrap();
        let own = &logprobs["token_logprobs"][number];
        // Greedy: the token is the most likely one.
        assert_eq!(logprobs["top_logprobs"][number][token], *own);
        assert!(own.as_f64().unwrap() <= 0.0);
        assert_eq!(logprobs["top_logprobs"][number].as_object().unwrap().len(), 3);
        let before: usize = tokens[..number].iter().map(|t| t.as_str().unwrap().len()).sum();
        assert_eq!(logprobs["text_offset"][number], before);
    }
    let messages = json!([{ "role": "user", "content": PROMPT }]);
    let mut body = json!({
        "messages": messages, "max_tokens": 8, "logprobs": true, "top_logprobs": 2,
    });
    let whole = post(serving.address, "/v1/chat/completions", &body).json();
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), whole["choices"][0]["fathom"]["tokens"].as_array().unwrap().len());
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    let bytes = |token: &Value| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap();
    let text: Vec<u8> = content.iter().flat_map(bytes).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap().as_bytes());
    body["stream"] = json!(true);
    let (events, _) = post(serving.address, "/v1/chat/completions", &body).events();
    let of = |event: &Value| event["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(events.iter().flat_map(of).collect::<Vec<_>>(), *content);
}

#[test]
fn an_echoed_prompt_has_log_probabilities() {
    let serving = Serving::new();
    let complete = |body: &Value| {
        let reply = post(serving.address, "/v1/completions", body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    };
    let plain = json!({ "prompt": PROMPT, "max_tokens": 8, "logprobs": 3 });
    let written = complete(&plain).json()["choices"][0].clone();
    let mut body = plain.clone();
    body["echo"] = json!(true);
    // The second time, the prompt would be in the prefix cache.
    let [choice, again] = [0, 1].map(|_| complete(&body).json()["choices"][0].clone());
    assert_eq!(choice, again);
    assert_eq!(choice["text"], format!("{PROMPT}{}", written["text"].as_str().unwrap()));
    let list = |choice: &Value, name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let tokens = list(&choice, "tokens");
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, choice["text"].as_str().unwrap());
    let prompt_len = tokens.len() - 8;
    for name in ["tokens", "token_logprobs", "top_logprobs"] {
        let all = list(&choice, name);
        assert_eq!(all.len(), tokens.len());
        assert_eq!(all[prompt_len..], list(&written, name), "{name}");
    }
    let logprobs = list(&choice, "token_logprobs");
    assert!(logprobs[0].is_null() && list(&choice, "top_logprobs")[0].is_null());
    assert!(logprobs[1..].iter().all(|logprob| logprob.as_f64().unwrap() <= 0.0));
    let mut length = 0;
    for (token, offset) in tokens.iter().zip(list(&choice, "text_offset")) {
        assert_eq!(offset, length);
        length += token.as_str().unwrap().chars().count();
    }
    // A text that was written has, as a prompt, the log-probabilities that it was written with.
    let ids = post(serving.address, "/tokenize", &json!({ "prompt": PROMPT })).json();
    let mut ids = ids["tokens"].as_array().unwrap().clone();
    ids.extend(choice["fathom"]["tokens"].as_array().unwrap().iter().map(|t| t["id"].clone()));
    let whole = json!({ "prompt": ids, "max_tokens": 1, "logprobs": 3, "echo": true });
    let whole = complete(&whole).json()["choices"][0].clone();
    assert_eq!(list(&whole, "token_logprobs")[..tokens.len()], logprobs[..]);
    // In a stream, for each choice of each prompt.
    body = json!({
        "prompt": [PROMPT, [5, 6, 7]], "max_tokens": 4, "logprobs": 0, "echo": true, "n": 2,
    });
    let whole = complete(&body).json();
    body["stream"] = json!(true);
    let (events, done) = complete(&body).events();
    assert!(done);
    for choice in whole["choices"].as_array().unwrap() {
        let own = events.iter().map(|event| &event["choices"][0]);
        let own: Vec<&Value> = own.filter(|own| own["index"] == choice["index"]).collect();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let parts: Vec<Value> = own.iter().flat_map(|own| list(own, name)).collect();
            assert_eq!(parts, list(choice, name), "{name}");
        }
    }
}

#[test]
fn a_text_of_a_schema_is_json_of_it() {
    let serving = Serving::new();
    let schema = json!({
        "type": "object",
        "properties": { "answer": { "type": "integer", "minimum": 0, "maximum": 99 } },
        "required": ["answer"],
        "additionalProperties": false,
    });
    let body = json!({
        "messages": [{ "role": "user", "content": PROMPT }],
        "max_tokens": 600, // the small model likes white space
        "response_format": {
            "type": "json_schema",
            "json_schema": { "name": "answer", "strict": true, "schema": schema },
        },
    });
    for stream in [false, true] {
        let mut body = body.clone();
        body["stream"] = json!(stream);
        let reply = post(serving.address, "/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let text = match stream {
            false => reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
            true => {
                let pieces = reply.events().0;
                let content = |event: &Value| {
                    event["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned()
                };
                pieces.iter().map(content).collect()
            }
        };
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!((0..100).contains(&value["answer"].as_i64().unwrap()), "{text}");
    }
}

#[test]
fn sinks_are_reported_beside_the_tokens() {
    let options = GenerateOptions { prefix_cache: true, ..GenerateOptions::default() };
    let serving = Serving::with(&options, |_| {});
    let mut body = json!({ "prompt": PROMPT, "max_tokens": 12, "fathom": { "sinks": true } });
    let whole = post(serving.address, "/v1/completions", &body).json();
    let sinks = whole["choices"][0]["fathom"]["sinks"].as_array().unwrap().clone();
    let again = post(serving.address, "/v1/completions", &body).json();
    let (again_choice, choice) = (&again["choices"][0], &whole["choices"][0]);
    assert_eq!(again_choice["text"], choice["text"]);
    assert_eq!(again_choice["fathom"]["sinks"], choice["fathom"]["sinks"]);
    // The rows of the first were seen when they were computed.
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    let prompt_tokens = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!((cached(&whole), cached(&again)), (json!(0), json!(prompt_tokens - 1)));
    body["stream"] = json!(true);
    let (events, _) = post(serving.address, "/v1/completions", &body).events();
    let mut last = std::collections::BTreeMap::new();
    for event in &events {
        for sink in event["choices"][0]["fathom"]["sinks"].as_array().unwrap() {
            last.insert(sink["position"].as_u64().unwrap(), sink.clone());
        }
    }
    last.retain(|_, sink| !sink["class"].is_null());
    assert_eq!(last.into_values().collect::<Vec<_>>(), sinks);
    // As the library finds them.
    let ids = serving.engine.pair().tokenizer().encode(PROMPT, true).unwrap();
    let options = fathom_lm::ScanOptions::new(fathom_lm::Preset::Paper);
    let watcher = fathom_lm::SinkWatcher::new(serving.engine.pair(), &options);
    let found = watcher.sinks();
    let params = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
    let mut all = ids.clone();
    let updates = serving.engine.submit_watched(ids.clone(), &params, 0, Some(Box::new(watcher)));
    for update in updates.unwrap() {
        all.extend(update.unwrap().tokens);
    }
    let found = found.detection(0, &all, ids.len()).unwrap();
    let positions: Vec<usize> = found.sinks.iter().map(|sink| sink.position).collect();
    let reported: Vec<usize> =
        sinks.iter().map(|sink| sink["position"].as_u64().unwrap() as usize).collect();
    assert_eq!(reported, positions);
}

/// Scores are those of a scan with attention of the same tokens, and come with the end of the text.
#[test]
fn sinks_have_scores_on_request() {
    let dir = tempfile::tempdir().unwrap();
    demo::plant(dir.path(), &Default::default()).unwrap();
    let planted = dir.path().display().to_string();
    let pair = Pair::open(ModelOptions::new(planted.clone()), None).unwrap();
    let engine = pair.spawn(&GenerateOptions::default(), &mut |_, _| {}).unwrap();
    let mut options = ServeOptions::default();
    options.server.address.set_port(0);
    let server = fathom_lm::serve(&engine, options).unwrap();
    let address = server.address();
    let prompt = "the quick brown fox";
    let mut body = json!({
        "prompt": prompt, "max_tokens": 20, "ignore_eos": true,
        "fathom": { "sinks": { "scores": true } },
    });
    let whole = post(address, "/v1/completions", &body).json();
    let choice = &whole["choices"][0]["fathom"];
    let sinks = choice["sinks"].as_array().unwrap();
    assert!(!sinks.is_empty());

    let mut ids = engine.pair().tokenizer().encode(prompt, true).unwrap();
    ids.extend(
        choice["tokens"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap() as u32),
    );
    ids.pop();
    let model = Model::load(planted).unwrap();
    let traces = Traces::from_rows([json!({ "input_ids": ids })], &model).unwrap();
    let options = ScanOptions { attention: true, ..ScanOptions::new(Preset::Paper) };
    let found = model.scan(&traces, options).run().unwrap().detections().unwrap();
    let largest = |scores: &[f32]| scores.iter().copied().fold(0.0, f32::max);
    assert_eq!(sinks.len(), found[0].sinks.len());
    for (sink, expected) in sinks.iter().zip(&found[0].sinks) {
        assert_eq!(sink["position"], expected.position);
        assert_eq!(sink["class"], expected.class.name());
        let score = largest(expected.sink_score.as_ref().unwrap());
        assert!((sink["score"].as_f64().unwrap() - f64::from(score)).abs() < 1e-6, "{sink}");
    }

    body["stream"] = json!(true);
    let (events, _) = post(address, "/v1/completions", &body).events();
    let of = |event: &Value| event["choices"][0]["fathom"]["sinks"].as_array().unwrap().clone();
    let (last, before) = events.split_last().unwrap();
    assert_eq!(of(last), *sinks);
    assert!(before.iter().flat_map(of).all(|sink| sink.get("score").is_none()));
}

#[test]
fn models_tokens_and_health() {
    let serving = Serving::new();
    let models = get(serving.address, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "pair");
    let context = &models["data"][0]["max_model_len"];
    assert_eq!(*context, serving.engine.pair().context());
    assert_eq!(get(serving.address, "/v1/models/pair").json(), models["data"][0]);
    assert_eq!(get(serving.address, "/v1/models/none").status, 404);
    for path in ["/health", "/ready"] {
        assert_eq!(get(serving.address, path).json(), json!({ "status": "ok" }));
    }
    let body = json!({ "prompt": PROMPT, "return_token_strs": true });
    let tokens = post(serving.address, "/tokenize", &body).json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let text: String =
        tokens["token_strs"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(text.ends_with(PROMPT), "{text}");
    let messages = json!({ "messages": [{ "role": "user", "content": PROMPT }] });
    let chat = post(serving.address, "/tokenize", &messages).json();
    let expected = serving.engine.encode(PROMPT).unwrap().ids;
    assert_eq!(chat["tokens"], json!(expected));
    let page = get(serving.address, "/");
    assert!(page.headers["content-type"].starts_with("text/html"));
    assert_eq!(page.headers["content-security-policy"], "frame-ancestors 'none'");
}

#[test]
fn metrics_have_our_names_and_those_of_vllm() {
    let serving = Serving::new();
    let body = json!({ "prompt": PROMPT, "max_tokens": 9, "ignore_eos": true });
    post(serving.address, "/v1/completions", &body);
    let text = get(serving.address, "/metrics").text().to_owned();
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    for name in ["fathom_tokens_total{", "vllm:generation_tokens_total{"] {
        assert_eq!(value(name), 9.0);
    }
    assert_eq!(value("vllm:request_success_total{"), 1.0);
    for name in ["request_queue_time", "time_to_first_token", "e2e_request_latency"] {
        assert_eq!(value(&format!("vllm:{name}_seconds_count{{")), 1.0);
        assert_eq!(value(&format!("fathom_{name}_seconds_count{{")), 1.0);
    }
    for name in ["num_requests_running", "num_requests_waiting", "num_preemptions_total"] {
        assert_eq!(value(&format!("vllm:{name}{{")), 0.0);
    }
    assert!((0.0..=1.0).contains(&value("vllm:kv_cache_usage_perc{")));
    assert!(value("fathom_judged_drafts_total{") > 0.0);
    assert!(text.contains("position=\"0\"") && text.contains("mode=\"pearl\""));
    assert!(text.contains("vllm:time_to_first_token_seconds_bucket{"), "{text}");
}

#[test]
fn request_ids_are_echoed() {
    let serving = Serving::new();
    let header = [("x-request-id", "mine-1")];
    let reply = request(serving.address, "GET", "/health", &header, b"");
    assert_eq!(reply.headers["x-request-id"], "mine-1");
    assert_eq!(get(serving.address, "/nowhere").headers["x-request-id"].len(), 32);
}

#[test]
fn the_description_names_every_endpoint_and_field() {
    let serving = Serving::new();
    let document = get(serving.address, "/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let schemas = &document["components"]["schemas"];
    // Every described field of a request is read: a value of a type that no field has is refused,
    // and the error names the field.
    for (schema, path) in [
        ("ChatRequest", "/v1/chat/completions"),
        ("CompletionRequest", "/v1/completions"),
        ("DetokenizeRequest", "/detokenize"),
        ("TokenizeRequest", "/tokenize"),
    ] {
        assert!(document["paths"].get(path).is_some());
        assert_eq!(schemas[schema]["additionalProperties"], false);
        for name in schemas[schema]["properties"].as_object().unwrap().keys() {
            let body = json!({
                "messages": [{ "role": "user", "content": "x" }],
                "stream": name == "stream_options",
            });
            let mut body = match path {
                "/v1/completions" => json!({ "prompt": "x" }),
                "/detokenize" => json!({ "tokens": [1] }),
                "/v1/chat/completions" => body,
                _ => json!({ "messages": body["messages"] }),
            };
            if name == "messages" && path == "/tokenize" {
                body = json!({});
            }
            if name == "tool_choice" {
                body["tools"] = json!([{ "type": "function", "function": { "name": "f" } }]);
            }
            body[name] = json!([[{}]]);
            let reply = post(serving.address, path, &body);
            assert_eq!(reply.status, 400, "{path} {name} {reply:?}");
            let error = reply.error();
            let param = error["param"].as_str().unwrap_or_default();
            assert!(param.starts_with(name.as_str()), "{path} {name}: {error}");
        }
        let mut body = json!({ "prompt": "x", "messages": [{ "role": "user", "content": "x" }] });
        body["no_such_field"] = json!(1);
        assert_eq!(post(serving.address, path, &body).status, 400);
    }
}
