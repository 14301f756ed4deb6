//! What a pass runs over.

use std::ops::Range;

use fathom_backend::Backend;

use crate::taps::Part;
use crate::{LogitRows, Sequence};

/// A step, or the part of one that lies within one rotary regime.
pub(crate) struct Piece<'a, B: Backend> {
    pub index: usize,
    pub sequence: &'a mut Sequence<B>,
    pub tokens: &'a [u32],
    pub logits: LogitRows,
}

/// The rows of a pass: all pieces' tokens one after the other.
pub(crate) struct Batch {
    pub ids: Vec<u32>,
    pub parts: Vec<Part>,
    /// Rows that need logits, and which of those belong to which piece.
    pub logit_rows: Vec<usize>,
    pub logit_ranges: Vec<Range<usize>>,
}

impl Batch {
    pub fn new<B: Backend>(pieces: &[Piece<'_, B>]) -> Batch {
        let mut batch = Batch {
            ids: Vec::new(),
            parts: Vec::with_capacity(pieces.len()),
            logit_rows: Vec::new(),
            logit_ranges: Vec::with_capacity(pieces.len()),
        };
        for piece in pieces {
            let rows = batch.ids.len()..batch.ids.len() + piece.tokens.len();
            let first_logit = batch.logit_rows.len();
            match piece.logits {
                LogitRows::None => {}
                LogitRows::Last => batch.logit_rows.push(rows.end - 1),
                LogitRows::All => batch.logit_rows.extend(rows.clone()),
            }
            batch.logit_ranges.push(first_logit..batch.logit_rows.len());
            batch.ids.extend_from_slice(piece.tokens);
            let first_position = piece.sequence.len();
            batch.parts.push(Part { sequence: piece.index, rows, first_position });
        }
        batch
    }
}
