//! The forward pass of every supported architecture, for any batch of sequences.

use std::mem;
use std::ops::Range;

use fathom_backend::{Attention, Backend, Rotary, Span};

use crate::batch::{Batch, Piece};
use crate::taps::{PassTaps, Taps};
use crate::workspace::Workspace;
use crate::{Error, ModelConfig, Probe, Result, Sequence, Site, Transformer};

/// Usual chunk size of [`Transformer::prefill`] in tokens: enough rows for efficient matrix
/// products, and few enough to keep the activations of long texts small.
pub const PREFILL_CHUNK: usize = 512;

/// Which rows of a step get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// No row: prefill and analysis.
    None,
    /// The row of the last token: decoding.
    Last,
    /// Every row: verification.
    All,
}

/// The next tokens of one sequence in a pass.
pub struct Step<'a, B: Backend> {
    /// The sequence; `tokens` are appended to it.
    pub sequence: &'a mut Sequence<B>,
    /// One token for decoding, a chunk for prefill or verification. Not empty.
    pub tokens: &'a [u32],
    /// Which of these tokens need logits. For the others the last layer computes only keys and
    /// values, unless the probe wants more.
    pub logits: LogitRows,
}

/// Logits `[rows, vocab]` of one pass.
pub struct Logits<B: Backend> {
    rows: B::Rows,
    steps: Vec<Range<usize>>,
}

impl<B: Backend> Logits<B> {
    /// The logits of step `index`, `[rows, vocab]`, with the rows that [`Step::logits`] requested.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn step(&self, backend: &B, index: usize) -> Result<Vec<f32>> {
        let rows = self.steps[index].clone();
        Ok(backend.host_rows(&self.rows, rows, &mut Vec::new())?.to_vec())
    }

    /// The most likely token of every row of every step, among ids below `limit`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn argmax(&self, backend: &B, limit: usize) -> Result<Vec<Vec<u32>>> {
        let all = backend.argmax(&self.rows, limit)?;
        Ok(self.steps.iter().map(|rows| all[rows.clone()].to_vec()).collect())
    }
}

/// The output requested from the language-model head.
#[derive(Clone, Copy)]
pub(crate) enum Head {
    Logits,
    /// The most likely token among ids below `limit`.
    Argmax {
        limit: usize,
    },
}

/// The output of the language-model head.
pub(crate) struct HeadOutput<B: Backend> {
    /// `[rows, vocab]`; no rows with [`Head::Argmax`].
    pub logits: B::Rows,
    /// One token per row; empty with [`Head::Logits`].
    pub best: Vec<u32>,
    /// The rows of each step.
    pub steps: Vec<Range<usize>>,
}

impl<B: Backend> HeadOutput<B> {
    /// The output of a pass that ends before the head.
    fn none(b: &B, vocab: usize, batch: &Batch) -> Result<HeadOutput<B>> {
        let logits = b.alloc(0, vocab)?;
        Ok(HeadOutput { logits, best: Vec::new(), steps: batch.logit_ranges.clone() })
    }
}

impl<B: Backend> Transformer<B> {
    /// Runs `steps` through the model together and appends their tokens to their sequences.
    ///
    /// The bits of a row depend only on its own sequence's tokens: not on the other steps, on how
    /// the tokens were cut into steps, or on `probe`, unless it edits. If the rotary scaling
    /// depends on the length, they also depend on
    /// [`SequenceOptions::planned_len`](crate::SequenceOptions).
    ///
    /// # Errors
    /// A step without tokens, a token id outside the vocabulary, logits requested of a sequence
    /// that does not compute all layers, or sequences with different numbers of layers; nothing is
    /// computed then. An error of the backend or the probe, after which the sequences must not be
    /// used.
    pub fn forward(
        &self,
        steps: &mut [Step<'_, B>],
        probe: Option<&mut dyn Probe>,
    ) -> Result<Logits<B>> {
        let HeadOutput { logits, steps, .. } = self.run(steps, probe, Head::Logits)?;
        Ok(Logits { rows: logits, steps })
    }

    /// [`Transformer::forward`] followed by [`Logits::argmax`], without storing the logits: greedy
    /// decoding.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn forward_argmax(
        &self,
        steps: &mut [Step<'_, B>],
        limit: usize,
        probe: Option<&mut dyn Probe>,
    ) -> Result<Vec<Vec<u32>>> {
        let HeadOutput { best, steps, .. } = self.run(steps, probe, Head::Argmax { limit })?;
        Ok(steps.into_iter().map(|rows| best[rows].to_vec()).collect())
    }

    fn run(
        &self,
        steps: &mut [Step<'_, B>],
        probe: Option<&mut dyn Probe>,
        head: Head,
    ) -> Result<HeadOutput<B>> {
        let layers = steps.first().map_or(self.config.layers, |step| step.sequence.layers);
        for step in steps.iter_mut() {
            self.check(step, layers)?;
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

        // If a rotary scaling that depends on the length changes within a step, the step must be
        // split there.
        let ends: Vec<usize> = pieces.iter().map(|piece| self.regime_end(piece)).collect();
        if pieces.iter().zip(&ends).all(|(piece, end)| *end == piece.tokens.len()) {
            return self.forward_pieces(&mut pieces, &mut taps, head);
        }
        self.forward_across_regimes(pieces, &mut taps, head)
    }

    /// Runs `tokens` through the model in chunks of `chunk` tokens, without logits. The bits are
    /// the same for every chunk size. `progress` is called after each chunk with the tokens done.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
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

    /// Checks a step of a pass that computes `layers` layers.
    fn check(&self, step: &Step<'_, B>, layers: usize) -> Result<()> {
        if step.sequence.layers != layers {
            let problem = "all sequences of a pass must compute the same number of layers";
            return Err(Error::Request(problem.to_owned()));
        }
        if layers < self.config.layers && step.logits != LogitRows::None {
            let problem = format!("a pass that ends after {layers} layers has no logits");
            return Err(Error::Request(problem));
        }
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

    /// The forward pass. `n` is the number of rows: the tokens of all pieces.
    pub(crate) fn forward_pieces(
        &self,
        pieces: &mut [Piece<'_, B>],
        taps: &mut Taps<'_>,
        head: Head,
    ) -> Result<HeadOutput<B>> {
        for piece in pieces.iter_mut() {
            self.enter_regime(piece)?;
        }
        let b = &self.backend;
        let ModelConfig { head_dim, rms_norm_eps: eps, .. } = self.config;
        // Number of layers to compute. If not all, the pass ends before the final norm.
        let depth = pieces.first().map_or(self.config.layers, |piece| piece.sequence.layers);
        let batch = Batch::new(pieces);
        if depth == 0 {
            return self.embed_only(pieces, &batch, taps);
        }
        let (cos, sin) = self.angles(pieces, &batch.spans);
        let rotary = Rotary { cos: &cos, sin: &sin, half: self.config.rope.rotary_dim / 2 };
        let (spans, references): (Vec<_>, Vec<_>) = pieces
            .iter_mut()
            .zip(&batch.spans)
            .map(|(piece, span)| {
                let Sequence { kv, column_sums, key_mask, reference_rows, .. } =
                    &mut *piece.sequence;
                let (rows, first_position) = (span.rows.clone(), span.first_position);
                let (column_sums, mask) = (column_sums.as_mut(), Some(&*key_mask));
                (Span { rows, first_position, kv, column_sums, mask }, reference_rows)
            })
            .unzip();
        let any_sums = spans.iter().any(|span| span.column_sums.is_some());
        let mut pass = b.begin_pass(spans, rotary)?;
        let taps = &mut PassTaps::new(b, taps, &batch.spans, references)?;
        let last = depth - 1;
        let all_rows_needed = any_sums || taps.want_rows_after_keys(last);

        let n = batch.ids.len();
        let mut workspace = self.take_workspace(n)?;
        let Workspace { x, operand, q, k, v, ctx, lse, stages, gated, chosen } = &mut workspace;

        b.embed(&self.embed, &batch.ids, x)?;
        taps.tap(Site::Embed, 0, x)?;

        for (l, layer) in self.layers[..depth].iter().enumerate() {
            taps.before_layer(l)?;
            taps.tap(Site::ResidPre, l, x)?;

            // Attention: x += W_o · softmax(q kᵀ / √d) v
            self.norm(x, &layer.attn_norm, operand, (Site::AttnIn, l), taps)?;
            b.linears(&[&layer.q, &layer.k, &layer.v], operand, &mut [q, k, v])?;
            if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
                b.head_norm(q, q_norm, eps)?;
                b.head_norm(k, k_norm, eps)?;
            }
            taps.tap(Site::QPreRope, l, q)?;
            taps.tap(Site::KPreRope, l, k)?;
            b.rope(q, &pass, head_dim)?;
            b.rope(k, &pass, head_dim)?;
            taps.tap(Site::Q, l, q)?;
            taps.tap(Site::K, l, k)?;
            taps.tap(Site::V, l, v)?;

            let attention = self.attention(l);
            let weights_wanted = taps.wants(Site::AttnWeights, l);
            b.append_kv(l, k, v, &mut pass)?;
            if l == last && !all_rows_needed && batch.logit_rows.len() < n {
                // Rows without logits end here: later tokens read only this layer's keys and
                // values.
                self.keep_rows(x, &batch.logit_rows, chosen)?;
                self.keep_rows(q, &batch.logit_rows, ctx)?;
                b.resize(ctx, batch.logit_rows.len(), b.shape(q).1)?;
                let kept: Vec<usize> = batch.logit_ranges.iter().map(Range::len).collect();
                b.narrow_pass(&mut pass, &kept)?;
            }
            let lse_wanted = (any_sums || weights_wanted).then_some(&mut *lse);
            b.attend(&attention, q, &pass, ctx, lse_wanted)?;
            if any_sums {
                b.add_column_sums(&attention, q, lse, &mut pass)?;
            }
            if weights_wanted {
                for span in 0..batch.spans.len() {
                    let weights = b.attention_weights(&attention, q, lse, &pass, span)?;
                    taps.show(Site::AttnWeights, l, span, &weights)?;
                }
            }
            taps.tap(Site::AttnCtx, l, ctx)?;
            b.operand(ctx, operand)?;
            self.add(&layer.o, operand, x, (Site::AttnOut, l), taps)?;
            taps.tap(Site::ResidMid, l, x)?;

            // MLP: x += W_down · (silu(W_gate · x) ⊙ (W_up · x))
            self.norm(x, &layer.mlp_norm, operand, (Site::MlpIn, l), taps)?;
            self.gated(l, operand, gated, stages, taps)?;
            self.add(&layer.down, gated, x, (Site::MlpOut, l), taps)?;
            taps.tap(Site::ResidPost, l, x)?;
        }

        let output = match depth == self.config.layers {
            true => self.head_output(&mut workspace, &batch, taps, head)?,
            false => HeadOutput::none(b, self.config.vocab, &batch)?,
        };
        taps.finish()?;
        b.end_pass(pass)?;
        for piece in pieces {
            piece.sequence.tokens.extend_from_slice(piece.tokens);
        }
        self.return_workspace(workspace, n);
        Ok(output)
    }

    /// A pass that ends before the first layer.
    fn embed_only(
        &self,
        pieces: &mut [Piece<'_, B>],
        batch: &Batch,
        taps: &mut Taps<'_>,
    ) -> Result<HeadOutput<B>> {
        let b = &self.backend;
        let mut x = b.alloc(batch.ids.len(), self.config.hidden)?;
        b.embed(&self.embed, &batch.ids, &mut x)?;
        let references = pieces.iter_mut().map(|piece| &mut piece.sequence.reference_rows);
        let mut taps = PassTaps::new(b, taps, &batch.spans, references.collect())?;
        taps.tap(Site::Embed, 0, &mut x)?;
        taps.finish()?;
        for piece in pieces {
            piece.sequence.tokens.extend_from_slice(piece.tokens);
        }
        HeadOutput::none(b, self.config.vocab, batch)
    }

    /// Final norm and language-model head.
    fn head_output(
        &self,
        workspace: &mut Workspace<B>,
        batch: &Batch,
        taps: &mut PassTaps<'_, '_, B>,
        head: Head,
    ) -> Result<HeadOutput<B>> {
        let b = &self.backend;
        let vocab = self.config.vocab;
        let probed = taps.wants(Site::FinalNorm, 0) || taps.wants(Site::Logits, 0);

        // Every row for a probe; otherwise only the rows that need logits.
        let Workspace { x, chosen, operand, .. } = workspace;
        let rows = if probed { batch.ids.len() } else { batch.logit_rows.len() };
        if rows < b.shape(x).0 {
            self.keep_rows(x, &batch.logit_rows, chosen)?;
        }
        if rows > 0 {
            self.norm(x, &self.final_norm, operand, (Site::FinalNorm, 0), taps)?;
        }
        let (mut logits, mut best) = (b.alloc(0, vocab)?, Vec::new());
        if taps.wants(Site::Logits, 0) || !batch.logit_rows.is_empty() {
            let unembed = self.lm_head.as_ref().unwrap_or(&self.embed);
            match head {
                Head::Argmax { limit } if !probed => {
                    best = b.linear_argmax(unembed, operand, limit)?;
                }
                Head::Argmax { .. } | Head::Logits => {
                    b.resize(&mut logits, rows, vocab)?;
                    b.linears(&[unembed], operand, &mut [&mut logits])?;
                }
            }
        }
        if probed {
            taps.tap(Site::Logits, 0, &mut logits)?;
            let mut requested = b.alloc(batch.logit_rows.len(), vocab)?;
            b.gather(&logits, &batch.logit_rows, &mut requested)?;
            logits = requested;
            if let Head::Argmax { limit } = head {
                best = b.argmax(&logits, limit)?;
            }
        }
        Ok(HeadOutput { logits, best, steps: batch.logit_ranges.clone() })
    }

    /// `x = x[rows]`. `spare` has the same number of columns and is overwritten.
    fn keep_rows(&self, x: &mut B::Rows, rows: &[usize], spare: &mut B::Rows) -> Result<()> {
        self.backend.gather(x, rows, spare)?;
        mem::swap(x, spare);
        Ok(())
    }

    /// `out = norm(x)` as the operand of matrix products. The f32 rows are materialised only if a
    /// probe wants them.
    fn norm(
        &self,
        x: &B::Rows, // [n, hidden]
        weight: &B::Vector,
        out: &mut B::Operand, // [n, hidden]
        (site, l): (Site, usize),
        taps: &mut PassTaps<'_, '_, B>,
    ) -> Result<()> {
        let (b, eps) = (&self.backend, self.config.rms_norm_eps);
        if !taps.wants(site, l) {
            return Ok(b.rms_norm_operand(x, weight, eps, out)?);
        }
        let (n, hidden) = b.shape(x);
        let mut normed = b.alloc(n, hidden)?;
        b.rms_norm(x, weight, eps, &mut normed)?;
        taps.tap(site, l, &mut normed)?;
        Ok(b.operand(&normed, out)?)
    }

    /// `x += W · input`: adds a module's output to the residual stream. The output is materialised
    /// only if a probe wants it.
    fn add(
        &self,
        w: &B::Linear,
        input: &B::Operand,
        x: &mut B::Rows, // [n, hidden]
        (site, l): (Site, usize),
        taps: &mut PassTaps<'_, '_, B>,
    ) -> Result<()> {
        let b = &self.backend;
        if !taps.wants(site, l) {
            return Ok(b.linear_add(w, input, x)?);
        }
        let (n, hidden) = b.shape(x);
        let mut out = b.alloc(n, hidden)?;
        b.linears(&[w], input, &mut [&mut out])?;
        taps.tap(site, l, &mut out)?;
        Ok(b.add_assign(x, &out)?)
    }

    fn attention(&self, layer: usize) -> Attention {
        let ModelConfig { heads, kv_heads, head_dim, ref windows, .. } = self.config;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Attention { layer, heads, kv_heads, head_dim, scale, window: windows[layer] }
    }
}
