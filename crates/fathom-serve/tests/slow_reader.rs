//! A client that opens a stream and never reads: others are not held up, what is kept for it is
//! small, and when it goes, its texts end.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use common::send;
use fathom_decode::engine::{Engine, EngineHandle, EngineOptions, Gamma, ModeChoice};
use fathom_decode::{Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{PromptOptions, SyntheticShape, Tokenizer, Transformer, write_synthetic};
use fathom_serve::{ServedModel, Server, ServerOptions};
use serde_json::{Value, json};

/// Texts of the client that does not read, and the length of each: far more than is written while
/// the test runs.
const BLOCKED: usize = 8;
const LENGTH: usize = 30_000;

/// A server of a model with random weights, whose rows in the cache are small.
fn server() -> (Server, EngineHandle) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizer");
    let tokenizer = Tokenizer::from_dir(&fixture).unwrap();
    let vocab = tokenizer.vocab_size();
    let dir = tempfile::tempdir().unwrap();
    let (hidden, intermediate, heads, kv_heads) = (32, 32, 1, 1);
    let shape =
        SyntheticShape { layers: 1, hidden, intermediate, heads, kv_heads, vocab, tied: true };
    write_synthetic(dir.path(), &shape, 1).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let target = Transformer::load(dir.path(), cpu).unwrap();
    let options = EngineOptions {
        mode: ModeChoice::Always(Mode::Ar),
        gamma: Gamma::Fixed(1),
        batch_size: BLOCKED + 4,
        kv_pages: (BLOCKED + 1) * LENGTH / Cpu::KV_PAGE,
        vocab,
        prefix_cache: true,
    };
    let engine = Engine::new(target, None, options).unwrap().spawn().unwrap();
    let model = ServedModel {
        name: "random".to_owned(),
        fingerprint: String::new(),
        engine: engine.clone(),
        template: None,
        prompts: PromptOptions::default(),
        vocab,
        context: 32_000,
        eos: vec![2].into(),
        defaults: SamplingParams { ignore_eos: true, ..SamplingParams::default() },
        sinks: None,
        tokenizer,
    };
    let mut options = ServerOptions::default();
    options.address.set_port(0);
    (Server::start(model, options).unwrap(), engine)
}

/// The text of a prompt.
fn text(address: SocketAddr, prompt: &str) -> String {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    send(&mut client, &json!({ "prompt": prompt, "max_tokens": 60 }).to_string());
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    body["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// A connection with a receive buffer as small as the system allows.
fn narrow(address: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.connect(address).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Bytes that the server has sent to `client` and the client's side of the connection does not
/// take, as Linux tells them.
fn unsent(server: SocketAddr, client: SocketAddr) -> u64 {
    let port = |port: u16| format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connections = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut own = connections.filter(|fields| {
        fields[1].ends_with(&port(server.port())) && fields[2].ends_with(&port(client.port()))
    });
    let queues = own.next().unwrap()[4].split_once(':').unwrap();
    u64::from_str_radix(queues.0, 16).unwrap()
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

#[track_caller]
fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_never_reads_holds_up_nobody_and_little_memory() {
    let (server, engine) = server();
    let address = server.address();
    let written = || engine.metrics().engine.tokens;
    let prompts = ["Once", "def is_prime(n):", "What is 6 times 7?"];
    let alone = prompts.map(|prompt| text(address, prompt));
    assert!(alone[0] != alone[1] && alone[1] != alone[2], "{alone:?}");
    let (before, pages_before) = (resident(), engine.metrics().engine.pages_used);
    let first = written();

    let mut blocked = narrow(address);
    let body = json!({
        "prompt": "Once", "max_tokens": LENGTH, "n": BLOCKED, "temperature": 1,
        "logprobs": 20, "stream": true,
    });
    send(&mut blocked, &body.to_string());
    let client = blocked.local_addr().unwrap();
    let go_on = |tokens: usize| {
        let now = written();
        wait_until("the texts go on", || written() >= now + tokens);
    };
    // It takes nothing any more, although there is more and more to take.
    wait_until("it is blocked", || {
        let queued = unsent(address, client);
        go_on(200);
        queued > 0 && queued == unsent(address, client)
    });

    // Others get their texts, and the engine goes on with those that nobody reads.
    let others = prompts.map(|prompt| std::thread::spawn(move || text(address, prompt)));
    assert_eq!(others.map(|other| other.join().unwrap()), alone);
    go_on(20_000);
    let metrics = engine.metrics();
    assert_eq!((metrics.finished, metrics.running), (6, BLOCKED), "none was finished or cancelled");

    // It keeps tokens and their log-probabilities, not events: those of a token are 2 KB.
    let waiting = written() - first;
    let page = Cpu::KV_PAGE * 32 * 4 * 2;
    let cache = (metrics.engine.pages_used - pages_before) * page;
    let more = resident().saturating_sub(before);
    assert!(waiting > 20_000);
    assert!(more < cache + waiting * 700 + (16 << 20), "{more} bytes for {waiting} tokens");

    drop(blocked);
    wait_until("its texts are cancelled", || engine.metrics().cancelled == BLOCKED as u64);
    let metrics = engine.metrics();
    assert_eq!((metrics.running, metrics.waiting, metrics.prefilling), (0, 0, 0));
    assert_eq!(metrics.engine.pages_used, metrics.engine.pages_cached, "no page is a text's");
    assert_eq!(text(address, prompts[0]), alone[0]);
}
