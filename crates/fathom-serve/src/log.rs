//! One line in the log for each request.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Writes the log to standard error from now on. `RUST_LOG` chooses what is logged; by default
/// everything but details.
pub fn install(format: LogFormat) {
    use tracing_subscriber::EnvFilter;
    let chosen = EnvFilter::try_from_default_env();
    let filter = chosen.unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    let log = log.with_writer(std::io::stderr);
    // Fails only if the program has a log already, which it then keeps.
    drop(match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_target(false).try_init(),
    });
}

/// What is logged about a request. The line is written when this is dropped: when the response has
/// ended or the client has gone, and the engine has let go of its texts.
#[derive(Debug)]
pub struct RequestLog {
    /// The id that the client gave, or a new one.
    pub id: String,
    method: String,
    path: String,
    arrived: Instant,
    status: AtomicU16,
    prompt_tokens: AtomicUsize,
    tokens: AtomicUsize,
    /// Microseconds to the first token; 0 before it.
    first_token: AtomicU64,
}

impl RequestLog {
    /// A request that has just arrived.
    pub fn new(id: String, method: String, path: String) -> RequestLog {
        RequestLog {
            id,
            method,
            path,
            arrived: Instant::now(),
            status: AtomicU16::new(0),
            prompt_tokens: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            first_token: AtomicU64::new(0),
        }
    }

    /// When it arrived.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Records the status of the response.
    pub fn status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Records tokens of the prompt.
    pub fn prompt(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Records new tokens of the texts.
    pub fn tokens(&self, tokens: usize) {
        if tokens > 0 && self.tokens.fetch_add(tokens, Ordering::Relaxed) == 0 {
            let micros = u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.first_token.store(micros.max(1), Ordering::Relaxed);
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        // nginx's code of a client that closed the connection before it had an answer.
        const CLIENT_CLOSED: u16 = 499;
        let status = match *self.status.get_mut() {
            0 => CLIENT_CLOSED,
            status => status,
        };
        let first_token = *self.first_token.get_mut();
        tracing::info!(
            request_id = self.id,
            method = self.method,
            path = self.path,
            status,
            prompt_tokens = *self.prompt_tokens.get_mut(),
            tokens = *self.tokens.get_mut(),
            ttft = (first_token > 0).then_some(first_token as f64 / 1e6),
            seconds = self.arrived.elapsed().as_secs_f64(),
            "request"
        );
    }
}
