//! Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), in f32.
//!
//! A row is read twice, the second time from L1 (3.5 KiB at 896 columns). If a product follows, the
//! norm writes the product's operand directly: 2 bytes per element in bfloat16, instead of writing
//! 4 bytes and reading them again for packing. That moves 6 bytes per element instead of 14.

use std::ops::Range;

use fathom_backend::Result;

use crate::cpu::Cpu;
use crate::gemm::{Product, ProductKernel, ROW_WORDS, k_block, pack_row};
use crate::linear::operand::{self, Operand, SharedOperand};
use crate::memory::{Rows, Vector};
use crate::simd::{Kernel, Simd};

pub(crate) fn rms_norm(cpu: &Cpu, x: &Rows, weight: &Vector, eps: f32, out: &mut Rows) {
    let columns = x.columns();
    assert_eq!(weight.len(), columns, "norm weight");
    assert_eq!((out.rows(), out.columns()), (x.rows(), columns), "norm output");
    let out = out.shared();
    cpu.split_rows(x.rows(), x.as_slice().len(), |rows| {
        for row in rows {
            // SAFETY: threads have disjoint rows of `out`, which has the shape of `x` (asserted).
            let out = unsafe { out.slice(row * columns..(row + 1) * columns) };
            out.copy_from_slice(x.row(row));
            cpu.isa.run(RmsNorm { x: out, weight, eps });
        }
    });
}

/// RMS norm written as a product's operand: the bits of [`rms_norm`], packed.
pub(crate) fn rms_norm_operand(
    cpu: &Cpu,
    x: &Rows,
    weight: &Vector,
    eps: f32,
    out: &mut Operand,
) -> Result<()> {
    assert_eq!(weight.len(), x.columns(), "norm weight");
    out.resize(x.rows(), x.columns())?;
    let out = out.shared();
    cpu.split_rows(x.rows(), x.as_slice().len(), |rows| {
        operand::run(cpu, NormAndPack { x, rows, weight, eps, out });
    });
    Ok(())
}

pub(crate) fn head_norm(cpu: &Cpu, x: &mut Rows, weight: &Vector, eps: f32) {
    let (columns, head_dim) = (x.columns(), weight.len());
    assert_eq!(columns % head_dim.max(1), 0, "heads of {head_dim} in {columns} columns");
    let (rows, work) = (x.rows(), x.as_slice().len());
    let x = x.shared();
    cpu.split_rows(rows, work, |rows| {
        // SAFETY: threads have disjoint rows of `x`.
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
        let scale = inverse_rms(s, x, eps);
        for (x, w) in x.chunks_mut(S::LANES).zip(weight.chunks(S::LANES)) {
            let normed = normed(s, x, scale, w);
            s.store_some(x, normed);
        }
    }
}

/// RMS norm of rows `rows` of x, packed into an operand.
struct NormAndPack<'a> {
    x: &'a Rows,
    rows: Range<usize>,
    weight: &'a [f32],
    eps: f32,
    out: SharedOperand,
}

impl ProductKernel for NormAndPack<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let NormAndPack { x, rows, weight, eps, out } = self;
        let mut block_values = [0.0; 2 * ROW_WORDS]; // the longest k block of any product
        for row in rows {
            let x = x.row(row);
            let scale = inverse_rms(s, x, eps);
            let blocks = x.chunks(k_block::<P>()).zip(weight.chunks(k_block::<P>()));
            for (block, (x, weight)) in blocks.enumerate() {
                let values = &mut block_values[..x.len()];
                let vectors = x.chunks(S::LANES).zip(weight.chunks(S::LANES));
                for (out, (x, w)) in values.chunks_mut(S::LANES).zip(vectors) {
                    s.store_some(out, normed(s, x, scale, w));
                }
                // SAFETY: threads have disjoint rows, `rms_norm_operand` has resized the operand
                // for all rows and blocks, and a block is ROW_STRIDE words.
                let out = unsafe { &mut *out.block(row, block).cast() };
                pack_row::<S, P>(s, round, values, out);
            }
        }
    }
}

/// `1 / √(mean(x²) + eps)`
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> S::F32 {
    let mut squares = s.splat(0.0);
    for x in x.chunks(S::LANES) {
        let x = s.load_some(x);
        squares = s.fma(x, x, squares);
    }
    let mean = s.sum(squares) / x.len() as f32;
    s.splat(1.0 / (mean + eps).sqrt())
}

/// Normalizes a vector of x, then multiplies by the weight: the order of HuggingFace.
#[inline(always)]
fn normed<S: Simd>(s: S, x: &[f32], scale: S::F32, weight: &[f32]) -> S::F32 {
    s.mul(s.mul(s.load_some(x), scale), s.load_some(weight))
}
