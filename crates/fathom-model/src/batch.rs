//! The rows of a forward pass.

use std::ops::Range;

use fathom_backend::Backend;

use crate::taps::SequenceRows;
use crate::{LogitRows, Sequence};

/// A step, or the part of a step within one rotary regime.
pub(crate) struct Piece<'a, B: Backend> {
    /// Index of the step.
    pub index: usize,
    pub sequence: &'a mut Sequence<B>,
    pub tokens: &'a [u32],
    pub logits: LogitRows,
}

/// The rows of a pass: the tokens of all pieces, one piece after the other.
pub(crate) struct Batch {
    pub ids: Vec<u32>,
    /// The rows of each piece.
    pub spans: Vec<SequenceRows>,
    /// Rows that need logits.
    pub logit_rows: Vec<usize>,
    /// The elements of `logit_rows` that belong to each piece.
    pub logit_ranges: Vec<Range<usize>>,
}

impl Batch {
    pub fn new<B: Backend>(pieces: &[Piece<'_, B>]) -> Batch {
        let mut batch = Batch {
            ids: Vec::new(),
            spans: Vec::with_capacity(pieces.len()),
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
            batch.spans.push(SequenceRows { sequence: piece.index, rows, first_position });
        }
        batch
    }
}
