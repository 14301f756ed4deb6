//! The MLP of a decoder layer, within a pass and by itself.

use fathom_kernels::Backend;

use crate::taps::{Part, Taps};
use crate::{Error, Model, Result, Site};

/// The MLP's stages, `[n, intermediate]` each, for a probe to see.
pub(crate) struct Stages<B: Backend> {
    gate: B::Rows,
    up: B::Rows,
    act: B::Rows,
    product: B::Rows,
}

impl<B: Backend> Stages<B> {
    /// Without memory until a probe asks.
    pub fn new(b: &B, intermediate: usize) -> Stages<B> {
        let rows = || b.alloc(0, intermediate);
        Stages { gate: rows(), up: rows(), act: rows(), product: rows() }
    }

    fn resize(&mut self, b: &B, n: usize, intermediate: usize) {
        for rows in [&mut self.gate, &mut self.up, &mut self.act, &mut self.product] {
            b.resize(rows, n, intermediate);
        }
    }
}

impl<B: Backend> Model<B> {
    /// What layer `layer`'s MLP makes of normed inputs (`mlp_in`): `rows` and the result are
    /// `[n, hidden]`, row-major. The bits are those of `mlp_out` in a pass.
    ///
    /// # Errors
    /// A layer the model does not have, or rows of another width.
    pub fn mlp(&self, layer: usize, rows: &[f32]) -> Result<Vec<f32>> {
        let (hidden, layers) = (self.config.hidden, self.config.layers);
        if layer >= layers || !rows.len().is_multiple_of(hidden) {
            return Err(Error::Request(format!(
                "{} values were given to the MLP of layer {layer}, expected rows of {hidden} and a \
                 layer of 0..={}",
                rows.len(),
                layers - 1
            )));
        }
        let b = &self.backend;
        let n = rows.len() / hidden;
        let mut x = b.alloc(n, hidden);
        b.write_rows(&mut x, 0, rows);
        let (mut operand, mut gated) = (B::Operand::default(), B::Operand::default());
        b.operand(&x, &mut operand);
        let mut stages = Stages::new(b, self.config.intermediate);
        self.gated(layer, &operand, &mut gated, &mut stages, &mut Taps::new(None, layers), &[])?;
        b.linears(&[&self.layers[layer].down], &gated, &mut [&mut x]);
        Ok(b.host_rows(&x, 0..n, &mut Vec::new()).to_vec())
    }

    /// out = silu(W_gate · x) ⊙ (W_up · x); the stages by themselves only if a probe wants one.
    pub(crate) fn gated(
        &self,
        l: usize,
        x: &B::Operand,       // [n, hidden]
        out: &mut B::Operand, // [n, intermediate]
        stages: &mut Stages<B>,
        taps: &mut Taps<'_>,
        parts: &[Part],
    ) -> Result<()> {
        let (b, layer) = (&self.backend, &self.layers[l]);
        let sites = [Site::MlpGate, Site::MlpUp, Site::MlpAct, Site::MlpElementwise];
        if !sites.iter().any(|&site| taps.wants(site, l)) {
            b.gated(&layer.gate, &layer.up, x, out);
            return Ok(());
        }
        stages.resize(b, parts.last().map_or(0, |part| part.rows.end), self.config.intermediate);
        let Stages { gate, up, act, product } = stages;
        b.linears(&[&layer.gate, &layer.up], x, &mut [gate, up]);
        taps.tap(b, Site::MlpGate, l, gate, parts)?;
        taps.tap(b, Site::MlpUp, l, up, parts)?;
        b.silu(gate, act);
        taps.tap(b, Site::MlpAct, l, act, parts)?;
        b.mul(act, up, product);
        taps.tap(b, Site::MlpElementwise, l, product, parts)?;
        b.operand(product, out);
        Ok(())
    }
}
