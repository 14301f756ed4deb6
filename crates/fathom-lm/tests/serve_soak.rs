//! Many clients at once, with random requests, some of which leave: every finished text is the one
//! of the same request alone, and nothing leaks.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::http::{self, Reply, post};
use common::serving::Serving;
use fathom_lm::GenerateOptions;
use serde_json::{Value, json};

const REQUESTS: usize = 300;
const CLIENTS: usize = 64;

/// A generator of random numbers that is the same on every machine.
struct Random(u64);

impl Random {
    /// A number below `below`.
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) as usize) % below
    }
}

const PROMPTS: [&str; 6] = [
    "Q: What is 6 times 7?",
    "def is_prime(n):",
    "Mia has 3 boxes with 12 pencils each. She gives away 5 pencils.",
    "Once upon a time",
    "The capital of",
    "Tom runs 4 miles a day. How many miles does he run in a week? Tom runs 4 miles a day. How",
];

/// A request: its path and body.
fn random_request(random: &mut Random) -> (&'static str, Value) {
    let prompt = PROMPTS[random.below(PROMPTS.len())];
    let chat = random.below(3) == 0;
    let mut body = match chat {
        true => json!({ "messages": [{ "role": "user", "content": prompt }] }),
        // Long prompts take several pages, and some share their beginning.
        false => json!({ "prompt": prompt.repeat(1 + 8 * random.below(2)) }),
    };
    body["max_tokens"] = json!([1, 3, 20, 60, 160][random.below(5)]);
    if random.below(2) == 0 {
        body["temperature"] = json!(0.9);
        body["seed"] = json!(random.below(3));
    }
    let options = [
        ("n", json!(2)),
        ("ignore_eos", json!(true)),
        ("stop", json!(["e"])),
        ("top_k", json!(20)),
        ("repetition_penalty", json!(1.2)),
        ("logprobs", if chat { json!(true) } else { json!(2) }),
        ("fathom", json!({ "sinks": true })),
        ("response_format", json!({ "type": "json_object" })),
    ];
    for (name, value) in options {
        let constrained = name == "response_format" && body.get("ignore_eos").is_some();
        if random.below(5) == 0 && !constrained {
            body[name] = value;
        }
    }
    (if chat { "/v1/chat/completions" } else { "/v1/completions" }, body)
}

/// The texts of a response, with what belongs to them, by index.
fn texts(reply: &Reply, streamed: bool) -> Vec<(String, Value, Vec<Value>)> {
    assert_eq!(reply.status, 200, "{reply:?}");
    let choices: Vec<Value> = match streamed {
        false => reply.json()["choices"].as_array().unwrap().clone(),
        true => {
            let (events, done) = reply.events();
            assert!(done, "{}", reply.text());
            events.iter().flat_map(|event| event["choices"].as_array().unwrap().clone()).collect()
        }
    };
    let mut texts = Vec::new();
    for choice in choices {
        let index = choice["index"].as_u64().unwrap() as usize;
        texts.resize(texts.len().max(index + 1), (String::new(), Value::Null, Vec::new()));
        let (text, finish, tokens) = &mut texts[index];
        let message = ["message", "delta"].into_iter().find_map(|name| choice.get(name));
        let new = message.map_or(&choice["text"], |message| &message["content"]);
        *text += new.as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            *finish = choice["finish_reason"].clone();
        }
        let ids = choice["fathom"]["tokens"].as_array().unwrap();
        tokens.extend(ids.iter().map(|token| token["id"].clone()));
    }
    texts
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[test]
fn every_finished_text_is_that_of_its_request_alone() {
    // Tight pages: long texts are preempted and resumed.
    let options = GenerateOptions {
        batch_size: 12,
        kv_pages: Some(8),
        prefix_cache: true,
        ..Default::default()
    };
    let serving = Serving::with(&options, |options| options.server.max_queue = 1000);
    let address = serving.address;
    let mut random = Random(7);
    let kinds: Vec<(&str, Value)> = (0..40).map(|_| random_request(&mut random)).collect();
    let alone: Vec<_> =
        kinds.iter().map(|(path, body)| texts(&post(address, path, body), false)).collect();
    serving.wait_idle();
    let files = open_files();
    let before = serving.engine.handle().metrics();

    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    let mut random = Random(1000 + number as u64);
                    let kind = random.below(kinds.len());
                    let (path, mut body) = kinds[kind].clone();
                    let streamed = random.below(2) == 0;
                    body["stream"] = json!(streamed);
                    if random.below(4) == 0 {
                        leave(address, path, &body, &mut random);
                        continue;
                    }
                    let found = texts(&post(address, path, &body), streamed);
                    assert_eq!(found, alone[kind], "request {number}: {path} {body}");
                    finished.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(finished.load(Ordering::Relaxed) > REQUESTS / 2);

    serving.wait_idle();
    let after = serving.engine.handle().metrics();
    assert!(after.cancelled > before.cancelled, "some clients left");
    assert!(after.engine.preemptions > 0, "the pages were tight");
    let ended = after.finished + after.cancelled + after.failed;
    assert_eq!((after.submitted, after.failed), (ended, 0));
    common::serving::wait_until("all connections are closed", || open_files() <= files);
    // A server without requests is like a new one.
    for (kind, (path, body)) in kinds.iter().enumerate().take(8) {
        assert_eq!(texts(&post(address, path, body), false), alone[kind]);
    }
    serving.server.drain();
    serving.server.wait().unwrap();
}

/// Sends a request and leaves before its answer is complete.
fn leave(address: std::net::SocketAddr, path: &str, body: &Value, random: &mut Random) {
    let mut client = http::connect(address);
    let bytes = http::bytes("POST", path, &[], body.to_string().as_bytes());
    // Some leave in the middle of their request.
    let sent = if random.below(4) == 0 { random.below(bytes.len()) } else { bytes.len() };
    client.write_all(&bytes[..sent]).unwrap();
    if sent == bytes.len() && random.below(2) == 0 {
        let _ = client.read(&mut [0; 64]);
    } else {
        std::thread::sleep(std::time::Duration::from_millis(random.below(30) as u64));
    }
}
