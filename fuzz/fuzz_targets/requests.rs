//! A body sent to a server: the answer is a text of it, or a 4xx with one sentence, in bounded time
//! and memory. The first byte chooses the path.
#![no_main]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
use fathom_decode::{Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    ChatTemplate, PromptOptions, SpecialTokens, SyntheticShape, Tokenizer, Transformer,
    write_synthetic,
};
use fathom_serve::{ServedModel, Server, ServerOptions};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/tokenize"];

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer");

/// A template that knows tools, and calls in the format of Hermes.
const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}{{ m.name }}\
    {% if m.content is string %}{{ m.content }}{% else %}\
    {% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\
    {{ m.tool_calls | tojson }}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A server of a model with random weights. Its texts are short, for the context is.
fn server() -> Result<Server, Failure> {
    let tokenizer = Tokenizer::from_dir(Path::new(TOKENIZER))?;
    let vocab = tokenizer.vocab_size();
    let dir = tempfile::tempdir()?;
    let shape = SyntheticShape {
        layers: 1,
        hidden: 32,
        intermediate: 32,
        heads: 1,
        kv_heads: 1,
        vocab,
        tied: true,
    };
    write_synthetic(dir.path(), &shape, 1)?;
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
    let target = Transformer::load(dir.path(), cpu)?;
    let options = EngineOptions {
        mode: ModeChoice::Always(Mode::Ar),
        gamma: Gamma::Fixed(1),
        batch_size: 4,
        kv_pages: 64,
        vocab,
        prefix_cache: true,
    };
    let model = ServedModel {
        name: "fuzzed".to_owned(),
        fingerprint: String::new(),
        engine: Engine::new(target, None, options)?.spawn()?,
        template: Some(ChatTemplate::new(
            Path::new("chat_template.jinja"),
            TEMPLATE,
            SpecialTokens::default(),
        )),
        prompts: PromptOptions::default(),
        vocab,
        context: 128,
        eos: vec![2].into(),
        defaults: SamplingParams { max_tokens: 2, ..SamplingParams::default() },
        sinks: None,
        tokenizer,
    };
    let mut options = ServerOptions { max_queue: 0, max_body: 1 << 20, ..Default::default() };
    options.address.set_port(0);
    Ok(Server::start(model, options)?)
}

/// The server and a connection to it, which all requests share.
struct Connection {
    /// Dropping it would end it.
    _server: Server,
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

static CONNECTION: LazyLock<Mutex<Connection>> = LazyLock::new(|| {
    let connection = || {
        let server = server()?;
        let address = server.address();
        let stream = BufReader::new(TcpStream::connect(address)?);
        Ok::<_, Failure>(Connection { _server: server, address, stream })
    };
    Mutex::new(connection().unwrap_or_else(|error| panic!("there is no server: {error}")))
});

impl Connection {
    /// Sends a request; returns the status and the body of the answer.
    fn exchange(&mut self, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>), Failure> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let status = self.line()?.split(' ').nth(1).unwrap_or_default().parse()?;
        let (mut length, mut is_chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse()?,
                Some(("transfer-encoding", _)) => is_chunked = true,
                Some(_) => {}
            }
        }
        let mut answer = Vec::new();
        loop {
            let size = match is_chunked {
                true => usize::from_str_radix(&self.line()?, 16)?,
                false => length,
            };
            let begin = answer.len();
            answer.resize(begin + size, 0);
            self.stream.read_exact(&mut answer[begin..])?;
            if is_chunked {
                self.line()?;
            }
            if !is_chunked || size == 0 {
                return Ok((status, answer));
            }
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*first) % PATHS.len()];
    let mut connection = CONNECTION.lock().unwrap_or_else(|_| panic!("an earlier request failed"));
    let (status, answer) = connection
        .exchange(path, body)
        .unwrap_or_else(|error| panic!("{} does not answer: {error}", connection.address));
    let text = String::from_utf8(answer).unwrap_or_else(|error| panic!("{error}"));
    match status {
        200 => assert!(text.starts_with('{') || text.ends_with("data: [DONE]\n\n"), "{text}"),
        400..500 => {
            let error = serde_json::from_str(&text).map(|body: Value| body["error"].clone());
            let error = error.unwrap_or_else(|error| panic!("{error}: {text}"));
            let message = error["message"].as_str().unwrap_or_default();
            let is_sentence = !message.is_empty() && message.len() < 2000;
            assert!(is_sentence && !message.contains('\n'), "{text}");
        }
        other => panic!("{other}: {text}"),
    }
});
