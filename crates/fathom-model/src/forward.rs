//! The forward pass: every supported architecture, every batch shape, one function.

use std::mem;
use std::ops::Range;

use fathom_kernels::{Attention, Backend, Span};

use crate::taps::{Part, Taps};
use crate::work::Work;
use crate::{Error, Model, ModelConfig, Probe, Result, Sequence, Site};

/// Tokens that [`Model::prefill`] runs at a time: enough rows to keep the matrix product busy, few enough
/// that activations stay small whatever the length of the text.
pub const PREFILL_CHUNK: usize = 512;

/// Which rows of a step get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: prefill and analysis.
    None,
    /// The last token's.
    Last,
    /// Every token's: verification.
    All,
}

/// What one sequence contributes to a pass: its next tokens.
pub struct Step<'a, B: Backend> {
    /// The sequence; `tokens` are appended to it.
    pub sequence: &'a mut Sequence<B>,
    /// One token for decoding, a chunk for prefill or verification. Not empty.
    pub tokens: &'a [u32],
    /// Which of these tokens need logits.
    pub logits: LogitRows,
}

/// Logits `[rows, vocab]` of one pass.
pub struct Logits<B: Backend> {
    rows: B::Rows,
    steps: Vec<Range<usize>>,
}

impl<B: Backend> Logits<B> {
    /// The logits asked for by step `index`, `[rows, vocab]`: none, one, or one per token.
    pub fn step(&self, backend: &B, index: usize) -> Vec<f32> {
        backend.host_rows(&self.rows, self.steps[index].clone(), &mut Vec::new()).to_vec()
    }

    /// The most likely token of every row of every step; ids from `limit` on are not considered.
    pub fn argmax(&self, backend: &B, limit: usize) -> Vec<Vec<u32>> {
        let all = backend.argmax(&self.rows, limit);
        self.steps.iter().map(|rows| all[rows.clone()].to_vec()).collect()
    }
}

impl<B: Backend> Model<B> {
    /// Runs `steps` through the model together and appends their tokens to their sequences.
    ///
    /// A row's bits depend on its own sequence's tokens only: not on the other steps, on how the tokens
    /// were cut into steps, or on `probe`, unless it edits.
    ///
    /// # Errors
    /// A step without tokens or a token id beyond the vocabulary, before anything is computed; or an
    /// error of the probe, after which the sequences are of no further use.
    pub fn forward(
        &self,
        steps: &mut [Step<'_, B>],
        probe: Option<&mut dyn Probe>,
    ) -> Result<Logits<B>> {
        for step in steps.iter_mut() {
            self.check(step)?;
            step.sequence.planned_len.get_or_insert(step.tokens.len());
        }
        let mut taps = Taps::new(probe, self.config.layers);
        let mut pieces: Vec<Piece<'_, B>> = steps
            .iter_mut()
            .enumerate()
            .map(|(index, step)| Piece {
                index,
                sequence: &mut *step.sequence,
                tokens: step.tokens,
                logits: step.logits,
            })
            .collect();

        // Rotary scalings that depend on the length change at some positions; a piece ends there.
        let ends: Vec<usize> = pieces.iter().map(|piece| self.regime_end(piece)).collect();
        if pieces.iter().zip(&ends).all(|(piece, end)| *end == piece.tokens.len()) {
            return self.forward_pieces(&mut pieces, &mut taps);
        }
        self.forward_across_regimes(pieces, &mut taps)
    }

    /// Runs `tokens` through the model chunk by chunk, without logits; the bits are the same for every
    /// chunk size. `progress` is called with the tokens done after each chunk.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn prefill(
        &self,
        sequence: &mut Sequence<B>,
        tokens: &[u32],
        chunk: usize,
        mut probe: Option<&mut dyn Probe>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let planned_len = sequence.len() + tokens.len();
        if sequence.is_empty() {
            sequence.planned_len = sequence.planned_len.max(Some(planned_len));
        }
        let mut done = 0;
        for tokens in tokens.chunks(chunk.max(1)) {
            let mut step = [Step { sequence: &mut *sequence, tokens, logits: LogitRows::None }];
            // A plain `as_deref_mut` would borrow the probe for the whole function.
            let probe: Option<&mut dyn Probe> = match &mut probe {
                Some(probe) => Some(&mut **probe),
                None => None,
            };
            self.forward(&mut step, probe)?;
            done += tokens.len();
            progress(done);
        }
        Ok(())
    }

    fn check(&self, step: &Step<'_, B>) -> Result<()> {
        let vocab = self.config.vocab;
        if step.tokens.is_empty() {
            return Err(Error::Request("a step needs at least one token".to_owned()));
        }
        match step.tokens.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(Error::Request(format!(
                "token id {id} is outside the model's vocabulary of {vocab}"
            ))),
            None => Ok(()),
        }
    }

    /// The rotary regime of position `p`: that of the shortest text that contains it.
    fn regime_at(&self, sequence: &Sequence<B>, p: usize) -> u64 {
        self.config.rope.regime(sequence.planned_len.unwrap_or(0).max(p + 1))
    }

    /// How many of the piece's tokens share the first one's regime.
    fn regime_end(&self, piece: &Piece<'_, B>) -> usize {
        let first = piece.sequence.len();
        let regime = self.regime_at(piece.sequence, first);
        let same = |i: &usize| self.regime_at(piece.sequence, first + i) == regime;
        (0..piece.tokens.len()).take_while(same).count()
    }

    /// Runs pieces that cross a change of rotary regime: up to the change, then the rest, as decoding
    /// token by token would have.
    fn forward_across_regimes(
        &self,
        mut pieces: Vec<Piece<'_, B>>,
        taps: &mut Taps<'_>,
    ) -> Result<Logits<B>> {
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); pieces.len()];
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
            let part = self.forward_pieces(&mut heads, taps)?;
            for (i, head) in heads.iter().enumerate() {
                logits[head.index].extend(part.step(&self.backend, i));
            }
            drop(heads);
            for (piece, tail) in pieces.iter_mut().zip(tails) {
                piece.tokens = tail;
            }
            pieces.retain(|piece| !piece.tokens.is_empty());
        }

        let vocab = self.config.vocab;
        let mut steps = Vec::with_capacity(logits.len());
        let mut rows =
            self.backend.alloc(logits.iter().map(Vec::len).sum::<usize>() / vocab, vocab);
        let mut first = 0;
        for values in &logits {
            self.backend.write_rows(&mut rows, first, values);
            steps.push(first..first + values.len() / vocab);
            first += values.len() / vocab;
        }
        Ok(Logits { rows, steps })
    }

    /// Keys already cached under another regime are stale: the sequence is computed again from its
    /// tokens, as HuggingFace does when longrope switches factors.
    fn enter_regime(&self, piece: &mut Piece<'_, B>) -> Result<()> {
        let sequence = &mut *piece.sequence;
        let regime = self.regime_at(sequence, sequence.len());
        if sequence.regime.replace(regime) == Some(regime) || sequence.is_empty() {
            return Ok(());
        }
        let tokens = mem::take(&mut sequence.tokens);
        self.backend.truncate_kv(&mut sequence.kv, 0);
        if let Some(sums) = &mut sequence.column_sums {
            *sums = self.backend.new_column_sums(self.config.layers, self.config.heads);
        }
        let planned_len = sequence.planned_len;
        sequence.planned_len = planned_len.max(Some(tokens.len() + 1));
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            let sequence = &mut *piece.sequence;
            let again = Piece { index: 0, sequence, tokens: chunk, logits: LogitRows::None };
            self.forward_pieces(&mut [again], &mut Taps::new(None, self.config.layers))?;
        }
        piece.sequence.planned_len = planned_len;
        Ok(())
    }

    /// The forward pass. `n` is the number of rows: all pieces' tokens one after the other.
    fn forward_pieces(
        &self,
        pieces: &mut [Piece<'_, B>],
        taps: &mut Taps<'_>,
    ) -> Result<Logits<B>> {
        for piece in pieces.iter_mut() {
            self.enter_regime(piece)?;
        }
        let b = &self.backend;
        let ModelConfig { head_dim, rms_norm_eps: eps, .. } = self.config;
        let batch = Batch::new(pieces);
        let parts = &batch.parts;
        let rope = self.rope(pieces, parts);
        let (mut spans, mut sums): (Vec<_>, Vec<_>) = pieces
            .iter_mut()
            .zip(parts)
            .map(|(piece, part)| {
                let Sequence { kv, column_sums, .. } = &mut *piece.sequence;
                (Span { rows: part.rows.clone(), kv }, column_sums.as_mut())
            })
            .unzip();
        let any_sums = sums.iter().any(Option::is_some);

        let n = batch.ids.len();
        let mut work = self.take_work(n);
        let Work { x, operand, q, k, v, ctx, lse, stages, gated, .. } = &mut work;

        b.embed(&self.embed, &batch.ids, x);
        taps.tap(b, Site::Embed, 0, x, parts)?;

        for (l, layer) in self.layers.iter().enumerate() {
            taps.tap(b, Site::ResidPre, l, x, parts)?;

            // Attention: x += W_o · softmax(q kᵀ / √d) v
            self.norm(x, &layer.attn_norm, operand, (Site::AttnIn, l), taps, parts)?;
            b.linears(&[&layer.q, &layer.k, &layer.v], operand, &mut [q, k, v]);
            if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
                b.head_norm(q, q_norm, eps);
                b.head_norm(k, k_norm, eps);
            }
            taps.tap(b, Site::QPreRope, l, q, parts)?;
            taps.tap(b, Site::KPreRope, l, k, parts)?;
            b.rope(q, &rope, head_dim);
            b.rope(k, &rope, head_dim);
            taps.tap(b, Site::Q, l, q, parts)?;
            taps.tap(b, Site::K, l, k, parts)?;
            taps.tap(b, Site::V, l, v, parts)?;

            let attention = self.attention(l);
            let weights_wanted = taps.wants(Site::AttnWeights, l);
            b.append_kv(l, k, v, &mut spans);
            let lse_wanted = (any_sums || weights_wanted).then_some(&mut *lse);
            b.attend(&attention, q, &spans, ctx, lse_wanted);
            for (span, sums) in spans.iter().zip(&mut sums) {
                if let Some(sums) = sums {
                    b.add_column_sums(&attention, q, lse, span, sums);
                }
            }
            if weights_wanted {
                for (span, part) in spans.iter().zip(parts) {
                    let weights = b.attention_weights(&attention, q, lse, span);
                    taps.show(Site::AttnWeights, l, part, &weights)?;
                }
            }
            taps.tap(b, Site::AttnCtx, l, ctx, parts)?;
            b.operand(ctx, operand);
            self.add(&layer.o, operand, x, (Site::AttnOut, l), taps, parts)?;
            taps.tap(b, Site::ResidMid, l, x, parts)?;

            // MLP: x += W_down · (silu(W_gate · x) ⊙ (W_up · x))
            self.norm(x, &layer.mlp_norm, operand, (Site::MlpIn, l), taps, parts)?;
            self.gated(l, operand, gated, stages, taps, parts)?;
            self.add(&layer.down, gated, x, (Site::MlpOut, l), taps, parts)?;
            taps.tap(b, Site::ResidPost, l, x, parts)?;
        }

        let logits = self.logits(&mut work, &batch, taps)?;
        for piece in pieces {
            b.advance_kv(&mut piece.sequence.kv, piece.tokens.len());
            piece.sequence.tokens.extend_from_slice(piece.tokens);
        }
        self.give_back(work);
        Ok(logits)
    }

    /// Final norm and language-model head, over the rows somebody wants.
    fn logits(&self, work: &mut Work<B>, batch: &Batch, taps: &mut Taps<'_>) -> Result<Logits<B>> {
        let b = &self.backend;
        let vocab = self.config.vocab;
        let probed = taps.wants(Site::FinalNorm, 0) || taps.wants(Site::Logits, 0);

        // A probe sees every row; without one only the rows that need logits are computed.
        let n = batch.ids.len();
        let rows = if probed { (0..n).collect() } else { batch.logit_rows.clone() };
        let Work { x, chosen, operand, .. } = work;
        let chosen = if rows.len() < n {
            b.gather(x, &rows, chosen);
            chosen
        } else {
            x
        };
        let mut logits = b.alloc(0, vocab);
        if probed || !rows.is_empty() {
            self.norm(chosen, &self.final_norm, operand, (Site::FinalNorm, 0), taps, &batch.parts)?;
        }
        if taps.wants(Site::Logits, 0) || !batch.logit_rows.is_empty() {
            b.resize(&mut logits, rows.len(), vocab);
            let head = self.lm_head.as_ref().unwrap_or(&self.embed);
            b.linears(&[head], operand, &mut [&mut logits]);
        }
        if probed {
            taps.tap(b, Site::Logits, 0, &mut logits, &batch.parts)?;
            let mut asked = b.alloc(batch.logit_rows.len(), vocab);
            b.gather(&logits, &batch.logit_rows, &mut asked);
            logits = asked;
        }
        Ok(Logits { rows: logits, steps: batch.logit_ranges.clone() })
    }

    /// `out = norm(x)`, as matrix products take it; the f32 form is there only if a probe wants it.
    fn norm(
        &self,
        x: &B::Rows, // [n, hidden]
        weight: &B::Vector,
        out: &mut B::Operand, // [n, hidden]
        (site, l): (Site, usize),
        taps: &mut Taps<'_>,
        parts: &[Part],
    ) -> Result<()> {
        let (b, eps) = (&self.backend, self.config.rms_norm_eps);
        if !taps.wants(site, l) {
            b.rms_norm_operand(x, weight, eps, out);
            return Ok(());
        }
        let (n, hidden) = b.shape(x);
        let mut normed = b.alloc(n, hidden);
        b.rms_norm(x, weight, eps, &mut normed);
        taps.tap(b, site, l, &mut normed, parts)?;
        b.operand(&normed, out);
        Ok(())
    }

    /// `x += W · module`, what a module adds to the residual stream; by itself only if a probe wants it.
    fn add(
        &self,
        w: &B::Linear,
        module: &B::Operand,
        x: &mut B::Rows, // [n, hidden]
        (site, l): (Site, usize),
        taps: &mut Taps<'_>,
        parts: &[Part],
    ) -> Result<()> {
        let b = &self.backend;
        if !taps.wants(site, l) {
            b.linear_add(w, module, x);
            return Ok(());
        }
        let (n, hidden) = b.shape(x);
        let mut out = b.alloc(n, hidden);
        b.linears(&[w], module, &mut [&mut out]);
        taps.tap(b, site, l, &mut out, parts)?;
        b.add_assign(x, &out);
        Ok(())
    }

    fn attention(&self, layer: usize) -> Attention {
        let ModelConfig { heads, kv_heads, head_dim, ref windows, .. } = self.config;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Attention { layer, heads, kv_heads, head_dim, scale, window: windows[layer] }
    }

    /// Rotary tables of the batch's rows, each under its own sequence's regime.
    fn rope(&self, pieces: &[Piece<'_, B>], parts: &[Part]) -> B::Rope {
        let rope = &self.config.rope;
        let (mut cos, mut sin) = (Vec::new(), Vec::new()); // [n, rotary_dim / 2]
        for (piece, part) in pieces.iter().zip(parts) {
            let end = part.first_position + part.rows.len();
            let planned = piece.sequence.planned_len.unwrap_or(0);
            let frequencies = rope.inv_freq(planned.max(end));
            let (c, s) = frequencies.cos_sin(part.first_position..end);
            cos.extend(c);
            sin.extend(s);
        }
        self.backend.rope_from(&cos, &sin, rope.rotary_dim / 2)
    }
}

/// A step, or the part of one that lies within one rotary regime.
struct Piece<'a, B: Backend> {
    index: usize,
    sequence: &'a mut Sequence<B>,
    tokens: &'a [u32],
    logits: LogitRows,
}

/// The rows of a pass: all pieces' tokens one after the other.
struct Batch {
    ids: Vec<u32>,
    parts: Vec<Part>,
    /// Rows that need logits, and which of those belong to which piece.
    logit_rows: Vec<usize>,
    logit_ranges: Vec<Range<usize>>,
}

impl Batch {
    fn new<B: Backend>(pieces: &[Piece<'_, B>]) -> Batch {
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
