//! The MLP of a decoder layer, within a pass and standalone.

use fathom_backend::Backend;

use crate::taps::{PassTaps, Taps};
use crate::{Error, Result, Site, Transformer};

/// The MLP's intermediate values for a probe, `[n, intermediate]` each.
pub(crate) struct Stages<B: Backend> {
    gate: B::Rows,
    up: B::Rows,
    act: B::Rows,
    product: B::Rows,
}

impl<B: Backend> Stages<B> {
    /// Empty until a probe asks for a stage.
    pub fn new(b: &B, intermediate: usize) -> Result<Stages<B>> {
        let rows = || b.alloc(0, intermediate);
        Ok(Stages { gate: rows()?, up: rows()?, act: rows()?, product: rows()? })
    }

    fn resize(&mut self, b: &B, n: usize, intermediate: usize) -> Result<()> {
        for rows in [&mut self.gate, &mut self.up, &mut self.act, &mut self.product] {
            b.resize(rows, n, intermediate)?;
        }
        Ok(())
    }
}

impl<B: Backend> Transformer<B> {
    /// The output of layer `layer`'s MLP for normed inputs (`mlp_in`). `rows` and the result are
    /// `[n, hidden]`, row-major; the result is bitwise equal to `mlp_out` in a pass.
    ///
    /// # Errors
    /// The model has no such layer, or the length of `rows` is not a multiple of `hidden`.
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
        let mut x = b.alloc(n, hidden)?;
        b.write_rows(&mut x, 0, rows)?;
        let (mut operand, mut gated) = (b.new_operand(), b.new_operand());
        b.operand(&x, &mut operand)?;
        let mut stages = Stages::new(b, self.config.intermediate)?;
        let mut no_taps = Taps::new(None, layers);
        let mut taps = PassTaps::new(b, &mut no_taps, &[], Vec::new())?;
        self.gated(layer, &operand, &mut gated, &mut stages, &mut taps)?;
        b.linears(&[&self.layers[layer].down], &gated, &mut [&mut x])?;
        Ok(b.host_rows(&x, 0..n, &mut Vec::new())?.to_vec())
    }

    /// out = silu(W_gate · x) ⊙ (W_up · x). The stages are materialised only if a probe wants one.
    pub(crate) fn gated(
        &self,
        l: usize,
        x: &B::Operand,       // [n, hidden]
        out: &mut B::Operand, // [n, intermediate]
        stages: &mut Stages<B>,
        taps: &mut PassTaps<'_, '_, B>,
    ) -> Result<()> {
        let (b, layer) = (&self.backend, &self.layers[l]);
        let sites = [Site::MlpGate, Site::MlpUp, Site::MlpAct, Site::MlpElementwise];
        if !sites.iter().any(|&site| taps.wants(site, l)) {
            return Ok(b.gated(&layer.gate, &layer.up, x, out)?);
        }
        stages.resize(b, taps.rows(), self.config.intermediate)?;
        let Stages { gate, up, act, product } = stages;
        b.linears(&[&layer.gate, &layer.up], x, &mut [gate, up])?;
        taps.tap(Site::MlpGate, l, gate)?;
        taps.tap(Site::MlpUp, l, up)?;
        b.silu(gate, act)?;
        taps.tap(Site::MlpAct, l, act)?;
        b.mul(act, up, product)?;
        taps.tap(Site::MlpElementwise, l, product)?;
        Ok(b.operand(product, out)?)
    }
}
