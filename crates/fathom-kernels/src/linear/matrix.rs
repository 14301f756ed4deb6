//! Packed weight matrices.

use fathom_backend::{Result, WeightView};

use crate::cpu::Cpu;
use crate::gemm::{PANEL, Panels, Storage, pack_weights};
use crate::memory::{Aligned, Rows, SharedMut};

/// A packed weight matrix `[out, in]` with an optional bias `[out]`.
pub struct Linear {
    pub(super) weights: Panels,
    /// Zero-padded to whole panels.
    pub(super) bias: Option<Aligned<f32>>,
}

impl Linear {
    /// Output features.
    pub fn out_features(&self) -> usize {
        self.weights.columns
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.weights.k
    }

    /// Bytes of the packed weights and the bias, which is what a product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.weights.words)
            + self.bias.as_ref().map_or(0, |bias| size_of_val(&**bias))
    }
}

pub(crate) fn pack(cpu: &Cpu, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Result<Linear> {
    let bytes = weight.rows * weight.columns * weight.dtype.size();
    assert_eq!(weight.bytes.len(), bytes, "weight bytes for {}x{}", weight.rows, weight.columns);
    let storage = Storage::of_weights(weight.dtype, cpu.precision);
    let mut weights = Panels::zeroed(weight.rows, weight.columns, storage)?;
    let stride = weights.stride();
    let panels = weights.panels();
    let words = SharedMut::new(&mut weights.words);
    cpu.split(panels, |panels| {
        // SAFETY: threads have disjoint ranges of panels, each of `stride` words, within
        // `weights.words`.
        let part = unsafe { words.slice(panels.start * stride..panels.end * stride) };
        pack_weights(weight, storage, panels, part);
    });
    let bias = bias.map(|bias| {
        assert_eq!(bias.len(), weight.rows, "bias length");
        Aligned::copied_from(bias, panels * PANEL)
    });
    Ok(Linear { weights, bias })
}

pub(crate) fn embed(cpu: &Cpu, table: &Linear, ids: &[u32], out: &mut Rows) {
    let hidden = table.in_features();
    assert_eq!((out.rows(), out.columns()), (ids.len(), hidden), "embed output");
    let shared = out.shared();
    cpu.split_rows(ids.len(), ids.len() * hidden, |rows| {
        for row in rows {
            // SAFETY: threads have disjoint rows of `out` `[ids.len(), hidden]` (asserted).
            let out = unsafe { shared.slice(row * hidden..(row + 1) * hidden) };
            table.weights.read_column(ids[row] as usize, out);
        }
    });
}
