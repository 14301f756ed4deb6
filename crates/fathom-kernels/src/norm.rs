//! Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), in f32.

use crate::cpu::Cpu;
use crate::rows::{Rows, Vector};
use crate::simd::{Kernel, Simd};

pub(crate) fn rms_norm(cpu: &Cpu, x: &Rows, weight: &Vector, eps: f32, out: &mut Rows) {
    let columns = x.columns();
    assert_eq!(weight.len(), columns, "norm weight");
    assert_eq!((out.rows(), out.columns()), (x.rows(), columns), "norm output");
    let out = out.shared();
    cpu.split_rows(x.rows(), x.as_slice().len(), |rows| {
        for row in rows {
            // SAFETY: threads have disjoint rows.
            let out = unsafe { out.slice(row * columns..(row + 1) * columns) };
            out.copy_from_slice(x.row(row));
            cpu.isa.run(RmsNorm { x: out, weight, eps });
        }
    });
}

pub(crate) fn head_norm(cpu: &Cpu, x: &mut Rows, weight: &Vector, eps: f32) {
    let (columns, head_dim) = (x.columns(), weight.len());
    assert_eq!(columns % head_dim.max(1), 0, "heads of {head_dim} in {columns} columns");
    let (rows, work) = (x.rows(), x.as_slice().len());
    let x = x.shared();
    cpu.split_rows(rows, work, |rows| {
        // SAFETY: threads have disjoint rows.
        let x = unsafe { x.slice(rows.start * columns..rows.end * columns) };
        for head in x.chunks_exact_mut(head_dim) {
            cpu.isa.run(RmsNorm { x: head, weight, eps });
        }
    });
}

/// `x = x / √(mean(x²) + eps) · weight` for one row or head.
struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RmsNorm { x, weight, eps } = self;
        let mut squares = s.splat(0.0);
        for x in x.chunks(S::LANES) {
            let x = s.load_some(x);
            squares = s.fma(x, x, squares);
        }
        let mean = s.sum(squares) / x.len() as f32;
        let scale = s.splat(1.0 / (mean + eps).sqrt());
        for (x, w) in x.chunks_mut(S::LANES).zip(weight.chunks(S::LANES)) {
            // Normalised first and weighted then, as HuggingFace does.
            let normalised = s.mul(s.load_some(x), scale);
            s.store_some(x, s.mul(normalised, s.load_some(w)));
        }
    }
}
