//! An HTTP server of a text engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fathom_decode::SamplingParams;
use fathom_kernels::Cpu;
use fathom_model::{Error, Result, TokenizedTrace};
use fathom_serve::{
    Scorer, ServedModel, Server, ServerOptions, SinkOptions, SinkSource, SinkView, TextSink, Watch,
};
use fathom_sinks::{Phases, Preset, Progress, ScanOptions, Sink, TraceDetection, scan_trace};

use crate::cpu::Weights;
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
        sinks: Some(Arc::new(PairSinks {
            files: pair.shared_target(),
            target: Arc::clone(engine.target_weights()),
            scoring: Arc::default(),
        })),
    };
    Server::start(model, server)
}

/// Finds the sinks of texts of a pair's target.
struct PairSinks {
    files: Arc<ModelFiles>,
    target: Arc<Weights>,
    /// Held by the one text that is scored.
    scoring: Arc<Mutex<()>>,
}

impl SinkSource for PairSinks {
    fn watch(&self, options: SinkOptions) -> Result<Watch> {
        let phases = if options.all_phases { Phases::All } else { Phases::Largest };
        let scan = ScanOptions { phases, ..ScanOptions::new(Preset::Paper) };
        let watcher = SinkWatcher::of(Arc::clone(&self.files), Arc::new(scan.clone()));
        let scores = options.scores.then(|| Scores {
            target: Arc::clone(&self.target),
            options: ScanOptions { attention: true, ..scan },
            turn: Arc::clone(&self.scoring),
        });
        let found = Found { sinks: watcher.sinks(), phases, scores };
        Ok((Box::new(watcher), Box::new(found)))
    }
}

/// The sinks found in one text.
struct Found {
    sinks: WatchedSinks,
    phases: Phases,
    /// `None` if scores are not wanted.
    scores: Option<Scores>,
}

impl SinkView for Found {
    fn sinks(&self, ids: &[u32], prompt_len: usize) -> Result<Vec<TextSink>> {
        let detection = self.sinks.detection(0, ids, prompt_len)?.with_phases(self.phases);
        Ok(detection.sinks.iter().map(on_the_wire).collect())
    }

    fn scorer(&self) -> Option<Scorer> {
        let scores = self.scores.clone()?;
        Some(Box::new(move |ids, prompt_len, cancelled| scores.measure(ids, prompt_len, cancelled)))
    }
}

fn on_the_wire(sink: &Sink) -> TextSink {
    let largest = |scores: &Vec<f32>| scores.iter().copied().fold(0.0, f32::max);
    TextSink {
        position: sink.position,
        token_id: sink.token_id,
        layer: sink.l_start(),
        lifetime: sink.lifetime(),
        class: Some(sink.class.name()),
        score: sink.sink_score.as_ref().map(largest),
    }
}

/// Measures attention, which a pass that generates text does not, in a pass of its own.
#[derive(Clone)]
struct Scores {
    target: Arc<Weights>,
    options: ScanOptions,
    /// One text at a time: its keys and values are beside those of the engine's caches.
    turn: Arc<Mutex<()>>,
}

impl Scores {
    /// The sinks that a scan of `ids` without the last token finds.
    fn measure(&self, ids: &[u32], prompt_len: usize, end: &AtomicBool) -> Result<Vec<TextSink>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = ids[..ids.len().saturating_sub(1)].to_vec();
        let trace = TokenizedTrace { index: 0, line: 1, ids, prompt_len, remarks: Vec::new() };
        let (target, mut until) = (&self.target, Until(end));
        let scan = scan_trace(target, &trace, &|_| None, &self.options, &mut until)?;
        let detection = scan.detection.with_phases(self.options.phases);
        Ok(detection.sinks.iter().map(on_the_wire).collect())
    }
}

/// Ends a scan when its flag is set.
struct Until<'a>(&'a AtomicBool);

impl Progress for Until<'_> {
    fn start(&mut self, _: usize) {}
    fn advance(&mut self, _: usize) {}
    fn trace(&mut self, _: &TraceDetection) {}

    fn check(&mut self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::Request("the client is gone".to_owned())),
            false => Ok(()),
        }
    }
}
