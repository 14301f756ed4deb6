//! A model that fails in the middle of a text ends the server with its sentence. Nothing hangs.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use common::send;
use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
use fathom_decode::{Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, PromptOptions, Tokenizer, Transformer};
use fathom_serve::{ServedModel, Server, ServerOptions};
use foreign_backend::{Failure, Foreign};

/// A server whose model fails at operation `at`.
fn server(at: u64, failure: Failure) -> Server {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let target = Transformer::load(&dir, Foreign::failing(cpu, at, failure)).unwrap();
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let options = EngineOptions {
        mode: ModeChoice::Always(Mode::Ar),
        gamma: Gamma::Fixed(1),
        batch_size: 4,
        kv_pages: 100,
        vocab: tokenizer.vocab_size(),
        prefix_cache: true,
    };
    let model = ServedModel {
        name: "failing".to_owned(),
        fingerprint: String::new(),
        engine: Engine::new(target, None, options).unwrap().spawn().unwrap(),
        template: None,
        prompts: PromptOptions::default(),
        vocab: tokenizer.vocab_size(),
        context: 4096,
        eos: vec![2].into(),
        defaults: SamplingParams { max_tokens: 1000, ignore_eos: true, ..Default::default() },
        sinks: None,
        tokenizer,
    };
    let mut options = ServerOptions::default();
    options.address.set_port(0);
    Server::start(model, options).unwrap()
}

/// The whole answer to a request.
fn ask(address: SocketAddr, body: &str) -> String {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    send(&mut client, body);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_failed_engine_ends_the_server_with_its_sentence() {
    for failure in [Failure::Lost, Failure::OutOfMemory] {
        let server = server(20_000, failure);
        let address = server.address();
        let whole = std::thread::spawn(move || ask(address, r#"{"prompt": "Once"}"#));
        let streamed = ask(address, r#"{"prompt": "Once", "stream": true}"#);
        let whole = whole.join().unwrap();
        let start = Instant::now();
        let ended = server.wait().unwrap_err();
        let Error::Stopped(why) = &ended else { panic!("{ended:?}") };
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(whole.starts_with("HTTP/1.1 503"), "{whole}");
        assert!(!streamed.contains("[DONE]"), "{streamed}");
        for answer in [whole, streamed] {
            assert!(answer.contains(why), "{why}: {answer}");
        }
    }
}
