//! The MLP of a decoder layer, within a pass and by itself.

use std::mem;

use fathom_kernels::Backend;

use crate::taps::{Part, Taps};
use crate::{Error, Model, Result, Site};

/// The MLP's stages, `[n, intermediate]` each.
pub(crate) struct MlpRows<B: Backend> {
    gate: B::Rows,
    up: B::Rows,
    act: B::Rows,
}

impl<B: Backend> MlpRows<B> {
    pub fn new(b: &B, n: usize, intermediate: usize) -> MlpRows<B> {
        let rows = || b.alloc(n, intermediate);
        MlpRows { gate: rows(), up: rows(), act: rows() }
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
        let mut out = b.alloc(n, hidden);
        let mut work = MlpRows::new(b, n, self.config.intermediate);
        self.mlp_rows(layer, &x, &mut work, &mut out, &mut Taps::new(None, layers), &[])?;
        Ok(b.host_rows(&out, 0..n, &mut Vec::new()).to_vec())
    }

    /// out = W_down · (silu(W_gate · x) ⊙ (W_up · x))
    pub(crate) fn mlp_rows(
        &self,
        l: usize,
        x: &B::Rows, // [n, hidden]
        work: &mut MlpRows<B>,
        out: &mut B::Rows, // [n, hidden]
        taps: &mut Taps<'_>,
        parts: &[Part],
    ) -> Result<()> {
        let (b, layer) = (&self.backend, &self.layers[l]);
        let MlpRows { gate, up, act } = work;
        b.linear(&layer.gate, x, gate);
        b.linear(&layer.up, x, up);
        taps.tap(b, Site::MlpGate, l, gate, parts)?;
        taps.tap(b, Site::MlpUp, l, up, parts)?;
        if taps.wants(Site::MlpAct, l) {
            b.silu(gate, act);
            taps.tap(b, Site::MlpAct, l, act, parts)?;
            mem::swap(act, gate);
            b.mul(gate, up, act);
        } else {
            b.silu_mul(gate, up, act);
        }
        taps.tap(b, Site::MlpElementwise, l, act, parts)?;
        b.linear(&layer.down, act, out);
        Ok(())
    }
}
