//! Rotary scalings that depend on the sequence length (longrope, dynamic): the frequencies of each
//! position, and passes in which the frequencies change.

use std::mem;

use fathom_backend::Backend;

use crate::batch::Piece;
use crate::forward::{Head, HeadOutput, PREFILL_CHUNK};
use crate::taps::{SequenceRows, Taps};
use crate::{LogitRows, Result, Sequence, Transformer};

impl<B: Backend> Transformer<B> {
    /// The rotary regime of position `p`: that of a sequence of `p + 1` tokens, or of the planned
    /// length if that is larger.
    pub(crate) fn regime_at(&self, sequence: &Sequence<B>, p: usize) -> u64 {
        self.config.rope.regime(sequence.planned_len.unwrap_or(0).max(p + 1))
    }

    /// Number of leading tokens of the piece that have the regime of its first token.
    pub(crate) fn regime_end(&self, piece: &Piece<'_, B>) -> usize {
        let first = piece.sequence.len();
        let regime = self.regime_at(piece.sequence, first);
        let same = |i: &usize| self.regime_at(piece.sequence, first + i) == regime;
        (0..piece.tokens.len()).take_while(same).count()
    }

    /// Runs pieces that cross a change of rotary regime: first up to the change, then the rest. The
    /// result is the same as when decoding token by token.
    pub(crate) fn forward_across_regimes(
        &self,
        mut pieces: Vec<Piece<'_, B>>,
        taps: &mut Taps<'_>,
        head: Head,
    ) -> Result<HeadOutput<B>> {
        // One element per piece.
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); pieces.len()];
        let mut best: Vec<Vec<u32>> = vec![Vec::new(); pieces.len()];
        while !pieces.is_empty() {
            let mut heads = Vec::with_capacity(pieces.len());
            let mut tails = Vec::new();
            for piece in &mut pieces {
                let (head, tail) = piece.tokens.split_at(self.regime_end(piece));
                let wanted = match piece.logits {
                    LogitRows::Last if !tail.is_empty() => LogitRows::None,
                    wanted => wanted,
                };
                let sequence = &mut *piece.sequence;
                heads.push(Piece { index: piece.index, sequence, tokens: head, logits: wanted });
                tails.push(tail);
            }
            let output = self.forward_pieces(&mut heads, taps, head)?;
            for (piece, rows) in heads.iter().zip(output.steps) {
                match head {
                    Head::Argmax { .. } => best[piece.index].extend(&output.best[rows]),
                    Head::Logits => {
                        let mut scratch = Vec::new();
                        let rows = self.backend.host_rows(&output.logits, rows, &mut scratch)?;
                        logits[piece.index].extend(rows);
                    }
                }
            }
            drop(heads);
            for (piece, tail) in pieces.iter_mut().zip(tails) {
                piece.tokens = tail;
            }
            pieces.retain(|piece| !piece.tokens.is_empty());
        }

        let vocab = self.config.vocab;
        let mut rows =
            self.backend.alloc(logits.iter().map(Vec::len).sum::<usize>() / vocab, vocab)?;
        let mut steps = Vec::with_capacity(logits.len());
        let mut first = 0;
        for (logits, best) in logits.iter().zip(&best) {
            let end = first + logits.len() / vocab + best.len();
            if !logits.is_empty() {
                self.backend.write_rows(&mut rows, first, logits)?;
            }
            steps.push(first..end);
            first = end;
        }
        Ok(HeadOutput { logits: rows, best: best.concat(), steps })
    }

    /// Recomputes the sequence from its tokens if its keys were cached under another regime, as
    /// HuggingFace does when longrope switches factors.
    pub(crate) fn enter_regime(&self, piece: &mut Piece<'_, B>) -> Result<()> {
        let sequence = &mut *piece.sequence;
        let regime = self.regime_at(sequence, sequence.len());
        if sequence.regime.replace(regime) == Some(regime) || sequence.is_empty() {
            return Ok(());
        }
        let tokens = mem::take(&mut sequence.tokens);
        self.backend.truncate_kv(&mut sequence.kv, 0);
        if let Some(sums) = &mut sequence.column_sums {
            *sums = self.backend.new_column_sums(sequence.layers, self.config.heads);
        }
        let planned_len = sequence.planned_len;
        sequence.planned_len = planned_len.max(Some(tokens.len() + 1));
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            let sequence = &mut *piece.sequence;
            let piece = Piece { index: 0, sequence, tokens: chunk, logits: LogitRows::None };
            let mut no_taps = Taps::new(None, self.config.layers);
            self.forward_pieces(&mut [piece], &mut no_taps, Head::Logits)?;
        }
        piece.sequence.planned_len = planned_len;
        Ok(())
    }

    /// Cosines and sines of the rotary angles of the batch's rows, each in the regime of its
    /// sequence.
    pub(crate) fn angles(
        &self,
        pieces: &[Piece<'_, B>],
        spans: &[SequenceRows],
    ) -> (Vec<f32>, Vec<f32>) {
        let rope = &self.config.rope;
        let (mut cos, mut sin) = (Vec::new(), Vec::new()); // [n, rotary_dim / 2]
        for (piece, span) in pieces.iter().zip(spans) {
            let end = span.first_position + span.rows.len();
            let planned = piece.sequence.planned_len.unwrap_or(0);
            let frequencies = rope.inv_freq(planned.max(end));
            let (c, s) = frequencies.cos_sin(span.first_position..end);
            cos.extend(c);
            sin.extend(s);
        }
        (cos, sin)
    }
}
