//! Clients that leave, queues that fill, and servers that end.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::http::{self, get, post, request};
use common::serving::{Models, Process, Serving, wait_until};
use fathom_lm::{GenerateOptions, Mode, ModeChoice};
use serde_json::{Value, json};

const TEXT: &str = "/v1/completions";

/// A request whose text is as long as possible.
fn long(stream: bool) -> Value {
    json!({ "prompt": "Once", "max_tokens": 3000, "ignore_eos": true, "stream": stream })
}

/// A slow engine: one text at a time.
fn one_by_one(max_queue: usize) -> Serving {
    let mode = Some(ModeChoice::Always(Mode::Ar));
    let options = GenerateOptions { batch_size: 1, mode, ..GenerateOptions::default() };
    Serving::with(&options, |options| options.server.max_queue = max_queue)
}

#[test]
fn a_client_that_leaves_cancels_its_texts() {
    let serving = Serving::new();
    for stream in [false, true] {
        let mut body = long(stream);
        body["n"] = json!(3);
        let before = serving.engine.handle().metrics().cancelled;
        let mut client = http::connect(serving.address);
        client.write_all(&http::bytes("POST", TEXT, &[], body.to_string().as_bytes())).unwrap();
        if stream {
            client.read_exact(&mut [0; 400]).unwrap();
        } else {
            wait_until("the texts run", || serving.engine.handle().metrics().running == 3);
        }
        drop(client);
        serving.wait_idle();
        assert_eq!(serving.engine.handle().metrics().cancelled - before, 3);
    }
    // Also one that leaves while it waits for a place in the batch.
    let serving = one_by_one(8);
    let send = || {
        let mut client = http::connect(serving.address);
        let body = long(false).to_string();
        client.write_all(&http::bytes("POST", TEXT, &[], body.as_bytes())).unwrap();
        client
    };
    let (first, second) = (send(), send());
    let metrics = || serving.engine.handle().metrics();
    wait_until("one waits", || metrics().submitted == 2 && metrics().waiting == 1);
    drop((first, second));
    serving.wait_idle();
    assert_eq!(metrics().cancelled, 2);
}

#[test]
fn the_time_in_the_queue_is_measured() {
    let serving = one_by_one(8);
    let metrics = || serving.engine.handle().metrics();
    let sum = |prefix: &str| {
        let text = get(serving.address, "/metrics").text().to_owned();
        let name = format!("{prefix}request_queue_time_seconds_sum{{");
        let line = text.lines().find(|line| line.starts_with(&name));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).to_owned()
    };
    let mut first = http::connect(serving.address);
    first.write_all(&http::bytes("POST", TEXT, &[], long(true).to_string().as_bytes())).unwrap();
    first.read_exact(&mut [0; 400]).unwrap(); // it has begun
    let address = serving.address;
    let short = json!({ "prompt": "a", "max_tokens": 1 });
    let sent = Instant::now();
    let second = std::thread::spawn(move || post(address, TEXT, &short));
    wait_until("the second waits", || metrics().waiting == 1);
    let seen_waiting = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    let least = seen_waiting.elapsed();
    assert_eq!(metrics().finished, 0, "the first holds the place all the time");
    drop(first); // cancelled: it counts nowhere
    assert_eq!(second.join().unwrap().status, 200);
    let most = sent.elapsed();
    for prefix in ["fathom_", "vllm:"] {
        let line = sum(prefix);
        let seconds: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(seconds >= least.as_secs_f64() && seconds <= most.as_secs_f64(), "{line}");
    }
}

#[test]
fn a_full_queue_is_429_and_empties_again() {
    let serving = one_by_one(1);
    let mut clients = Vec::new();
    for number in 1..=2 {
        let mut client = http::connect(serving.address);
        let body = long(true).to_string();
        client.write_all(&http::bytes("POST", TEXT, &[], body.as_bytes())).unwrap();
        wait_until("it is queued", || serving.engine.handle().metrics().submitted == number);
        clients.push(client);
    }
    let reply = post(serving.address, TEXT, &json!({ "prompt": "a", "max_tokens": 1 }));
    assert_eq!((reply.status, reply.headers["retry-after"].as_str()), (429, "1"));
    assert_eq!(reply.error()["code"], "queue_full");
    drop(clients);
    serving.wait_idle();
    wait_until("there is room", || {
        post(serving.address, TEXT, &json!({ "prompt": "a", "max_tokens": 1 })).status == 200
    });
    // More texts than could ever be accepted are no reason to try again.
    let reply = post(serving.address, TEXT, &json!({ "prompt": "a", "n": 3, "max_tokens": 1 }));
    assert_eq!(reply.status, 400);
}

#[test]
fn a_request_that_takes_too_long_is_ended() {
    let serving = Serving::with(&GenerateOptions::default(), |options| {
        options.server.request_timeout = Duration::from_millis(300);
    });
    let reply = post(serving.address, TEXT, &long(false));
    assert_eq!(reply.status, 504);
    reply.error();
    let reply = post(serving.address, TEXT, &long(true));
    let (events, done) = reply.events();
    assert!(!done && events.last().unwrap()["error"]["code"] == "request_timeout");
    serving.wait_idle();
}

#[test]
fn a_reader_that_stops_holds_up_nobody() {
    let serving = Serving::new();
    let mut lazy = Vec::new();
    for _ in 0..4 {
        let mut client = http::connect(serving.address);
        let mut body = long(true);
        body["logprobs"] = json!(20); // some megabytes, more than the sockets hold
        client.write_all(&http::bytes("POST", TEXT, &[], body.to_string().as_bytes())).unwrap();
        lazy.push(client);
    }
    let body = json!({ "prompt": "Q: What is 6 times 7?", "max_tokens": 20 });
    assert_eq!(post(serving.address, TEXT, &body).status, 200);
    // The engine finishes the texts that nobody reads, and its places are free again.
    wait_until("all texts are finished", || serving.engine.handle().metrics().finished == 5);
    // What was not read is not lost.
    for client in &mut lazy {
        let (events, done) = http::read(client).events();
        assert!(done);
        let tokens =
            events.iter().flat_map(|event| event["choices"][0]["fathom"]["tokens"].as_array());
        assert_eq!(tokens.map(Vec::len).sum::<usize>(), 3000);
    }
}

#[test]
fn draining_answers_what_is_in_progress() {
    let serving = Serving::new();
    let address = serving.address;
    let mut body = long(true);
    body["max_tokens"] = json!(300);
    let clients: Vec<_> = [false, true]
        .into_iter()
        .map(|stream| {
            let mut body = body.clone();
            body["stream"] = json!(stream);
            std::thread::spawn(move || post(address, TEXT, &body))
        })
        .collect();
    wait_until("both run", || serving.engine.handle().metrics().running == 2);
    serving.server.drain();
    let replies: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert_eq!(replies[0].json()["usage"]["completion_tokens"], 300);
    assert!(replies[1].events().1, "the stream is complete");
    serving.server.wait().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err(), "it listens no more");
}

#[test]
fn dropping_a_server_ends_it_at_once() {
    let serving = Serving::new();
    let mut client = http::connect(serving.address);
    client.write_all(&http::bytes("POST", TEXT, &[], long(true).to_string().as_bytes())).unwrap();
    client.read_exact(&mut [0; 100]).unwrap();
    let start = Instant::now();
    let engine = serving.engine.clone();
    drop(serving);
    assert!(start.elapsed() < Duration::from_secs(20));
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest); // the connection is closed
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    wait_until("its texts are cancelled", || engine.handle().metrics().running == 0);
}

#[test]
fn signals_end_the_process() {
    let models = Models::new();
    let server = Process::start(&models, &["--log-format", "json"]);
    let address = server.address;
    assert_eq!(get(address, "/ready").status, 200);
    let mut body = long(false);
    body["max_tokens"] = json!(500);
    let header = [("x-request-id", "the-last-one")];
    let body = body.to_string();
    let client =
        std::thread::spawn(move || request(address, "POST", TEXT, &header, body.as_bytes()));
    wait_until("it runs", || {
        get(address, "/metrics").text().contains("vllm:num_requests_running") && {
            let text = get(address, "/metrics").text().to_owned();
            let line = text.lines().find(|line| line.starts_with("fathom_requests_running{"));
            line.is_some_and(|line| line.ends_with(" 1"))
        }
    });
    server.signal("-TERM");
    assert_eq!(client.join().unwrap().json()["usage"]["completion_tokens"], 500);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let lines: Vec<Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let line = lines.iter().find(|line| line["request_id"] == "the-last-one").unwrap();
    assert_eq!((&line["status"], &line["tokens"]), (&json!(200), &json!(500)));
    assert!(line["ttft"].as_f64().unwrap() <= line["seconds"].as_f64().unwrap());

    // The second signal ends it at once.
    let server = Process::start(&models, &[]);
    let mut client = http::connect(server.address);
    client.write_all(&http::bytes("POST", TEXT, &[], long(true).to_string().as_bytes())).unwrap();
    client.read_exact(&mut [0; 100]).unwrap();
    let start = Instant::now();
    server.signal("-INT");
    std::thread::sleep(Duration::from_millis(200));
    server.signal("-INT");
    assert_eq!(server.wait().0.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn arguments_that_cannot_be_served_are_refused() {
    let models = Models::new();
    let refused = |args: &[&str], parts: &[&str]| {
        let mut command = common::fathom();
        command.args(["serve", "--target", &models.target]).args(args);
        common::assert_refused(&command.output().unwrap(), parts);
    };
    let missing = models.file("missing").display().to_string();
    refused(&["--api-key-file", &missing], &["missing", "does not exist"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(&["--port", &port], &["cannot listen at 127.0.0.1:"]);
    refused(&["--sampling", "recommended"], &["--sampling recommended"]);
    refused(&["--temperature", "-1"], &["temperature is -1"]);

    let keys = models.file("keys");
    std::fs::write(&keys, "secret\n").unwrap();
    let server = Process::start(&models, &["--host", "0.0.0.0"]);
    server.signal("-TERM");
    assert!(server.wait().1.contains("--api-key-file asks clients for a key"));
    let keys = keys.display().to_string();
    let server = Process::start(&models, &["--host", "0.0.0.0", "--api-key-file", &keys]);
    server.signal("-TERM");
    let log = server.wait().1;
    assert!(log.contains("other users can read the keys"), "{log}");
    assert!(!log.contains("asks clients") && !log.contains("secret"), "{log}");
}
