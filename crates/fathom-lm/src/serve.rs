//! An HTTP server of a text engine.

use std::sync::Arc;

use fathom_decode::SamplingParams;
use fathom_kernels::Cpu;
use fathom_model::{Error, Result};
use fathom_serve::{
    ServedModel, Server, ServerOptions, SinkOptions, SinkSource, SinkView, TextSink, Watch,
};
use fathom_sinks::{Phases, Preset, ScanOptions};

use crate::{ModelFiles, SinkWatcher, TextEngine, WatchedSinks};

/// How an engine is served.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Address, keys and limits.
    pub server: ServerOptions,
    /// The name by which clients ask for the model. `None`: its own name.
    pub name: Option<String>,
    /// Sampling parameters of requests that do not set them.
    pub defaults: SamplingParams,
}

/// Starts an OpenAI-compatible server of `engine`, on threads of its own.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use std::io::{Read, Write};
/// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, ServeOptions};
/// # let models = fathom_lm::demo::trained_pair(dir.path())?;
/// # let target = ModelOptions::new(models.target.display().to_string());
/// let engine = Pair::open(target, None)?.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
/// let mut options = ServeOptions::default();
/// options.server.address.set_port(0); // any free port
/// let server = fathom_lm::serve(&engine, options)?;
///
/// let body = r#"{"prompt": "def is_prime(n):", "max_tokens": 4}"#;
/// let mut client = std::net::TcpStream::connect(server.address()).unwrap();
/// write!(
///     client,
///     "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
///      content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
///     body.len()
/// )
/// .unwrap();
/// let mut answer = String::new();
/// client.read_to_string(&mut answer).unwrap();
/// assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(r#""completion_tokens":4"#));
///
/// server.drain(); // requests in progress are answered
/// server.wait()?;
/// # Ok::<(), fathom_lm::Error>(())
/// ```
///
/// # Errors
/// Defaults that the model does not allow; an address that cannot be listened at.
pub fn serve(engine: &TextEngine, options: ServeOptions) -> Result<Server> {
    let ServeOptions { server, name, defaults } = options;
    defaults.validate()?;
    let pair = engine.pair();
    defaults.validate_ids(pair.vocab())?;
    let text = pair.target().text();
    let cache = engine.handle().options().kv_pages.saturating_mul(Cpu::KV_PAGE);
    let model = ServedModel {
        name: name.unwrap_or_else(|| pair.target().name()),
        fingerprint: engine.origin().weights.clone(),
        engine: engine.handle().clone(),
        tokenizer: pair.tokenizer().clone(),
        template: text.template.clone(),
        prompts: text.options.clone(),
        vocab: pair.vocab(),
        context: pair.context().min(cache),
        eos: pair.eos().into(),
        defaults,
        sinks: Some(Arc::new(PairSinks { target: pair.shared_target() })),
    };
    Server::start(model, server)
}

/// Finds the sinks of texts of a pair's target.
struct PairSinks {
    target: Arc<ModelFiles>,
}

impl SinkSource for PairSinks {
    fn watch(&self, options: SinkOptions) -> Result<Watch> {
        if options.scores {
            let problem = "cannot have scores: a pass that generates text does not measure them";
            return Err(Error::Request(problem.to_owned()));
        }
        let phases = if options.all_phases { Phases::All } else { Phases::Largest };
        let scan = ScanOptions { phases, ..ScanOptions::new(Preset::Paper) };
        let watcher = SinkWatcher::of(Arc::clone(&self.target), Arc::new(scan));
        let found = Found { sinks: watcher.sinks(), phases };
        Ok((Box::new(watcher), Box::new(found)))
    }
}

/// The sinks found in one text.
struct Found {
    sinks: WatchedSinks,
    phases: Phases,
}

impl SinkView for Found {
    fn sinks(&self, ids: &[u32], prompt_len: usize) -> Result<Vec<TextSink>> {
        let detection = self.sinks.detection(0, ids, prompt_len)?.with_phases(self.phases);
        let sink = |sink: &fathom_sinks::Sink| TextSink {
            position: sink.position,
            token_id: sink.token_id,
            layer: sink.l_start(),
            lifetime: sink.lifetime(),
            class: Some(sink.class.name()),
            score: None,
        };
        Ok(detection.sinks.iter().map(sink).collect())
    }
}
