//! What all responses and chunks of one request have in common.

use std::time::{SystemTime, UNIX_EPOCH};

use fathom_decode::Finish;

use crate::app::App;
use crate::generation::Piece;
use crate::request_id;
use crate::types::usage::ChoiceFathom;

/// The fields that all chunks of a response share.
#[derive(Clone)]
pub struct Envelope {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
}

impl Envelope {
    /// A new response, whose id begins with `prefix`.
    pub fn new(app: &App, prefix: &str) -> Envelope {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Envelope {
            id: format!("{prefix}-{}", request_id::new()),
            created: now.map_or(0, |time| time.as_secs()),
            model: app.model.name.clone(),
            system_fingerprint: app.fingerprint(),
        }
    }
}

/// OpenAI's name for why a text ended.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::Eos | Finish::StopToken | Finish::Stop => "stop",
    }
}

/// Fathom's part of a piece.
pub fn fathom(piece: &mut Piece) -> ChoiceFathom {
    ChoiceFathom { tokens: std::mem::take(&mut piece.tokens), sinks: piece.sinks.take() }
}
