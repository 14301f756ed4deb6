//! Sink scores of a text that has ended: a pass over it, on a thread that may block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fathom_model::Result;
use tokio::task::JoinHandle;

use super::texts::Piece;
use crate::error::ApiError;
use crate::sinks::{Scorer, SinkChanges, TextSink};

/// The last piece of a text, which waits for its scores. Dropping it ends the pass.
pub struct Scoring {
    piece: Piece,
    changes: SinkChanges,
    pass: JoinHandle<Result<Vec<TextSink>>>,
    cancelled: Arc<AtomicBool>,
}

impl Scoring {
    /// Starts the pass over `ids`, of which the first `prompt_len` are the prompt's. `changes` are
    /// the sinks reported before this piece.
    pub fn start(
        piece: Piece,
        changes: SinkChanges,
        scorer: Scorer,
        ids: Vec<u32>,
        prompt_len: usize,
    ) -> Scoring {
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let pass = tokio::task::spawn_blocking(move || scorer(&ids, prompt_len, &flag));
        Scoring { piece, changes, pass, cancelled }
    }

    /// Waits for the pass and returns the piece with the sinks. To be called until it returns, and
    /// not again; dropping the future loses nothing.
    ///
    /// # Errors
    /// The pass failed.
    pub async fn finish(&mut self) -> Result<Piece, ApiError> {
        let sinks = match (&mut self.pass).await {
            Ok(Ok(sinks)) => sinks,
            Ok(Err(error)) => return Err(ApiError::internal(error.to_string())),
            Err(panic) => return Err(ApiError::internal(panic.to_string())),
        };
        let sinks = Some(self.changes.since_last(sinks));
        Ok(Piece { sinks, ..std::mem::take(&mut self.piece) })
    }
}

impl Drop for Scoring {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
