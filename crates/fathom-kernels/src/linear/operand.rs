//! Packed activations: the left-hand operand of matrix products.
//!
//! The layout is `[k blocks][rows][ROW_STRIDE words]`; a block of a row is [`ROW_WORDS`] words of
//! f32 or of bfloat16 pairs. An operand is packed once and read by all its products. Operations
//! that produce one (norm, gated activation) write it directly, so its f32 form is never stored.

use std::ops::Range;

use fathom_backend::Result;

use crate::cpu::Cpu;
use crate::gemm::{
    ForProduct, Product, ProductKernel, ROW_STRIDE, ROW_WORDS, Storage, k_block, pack_row,
};
use crate::memory::{ACTIVATIONS, Aligned, Rows, SharedMut};
use crate::simd::Simd;

/// Activations `[rows, columns]`, packed in the operand precision.
#[derive(Default)]
pub struct Operand {
    words: Aligned<u32>,
    rows: usize,
    columns: usize,
}

impl Operand {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn words(&self) -> *const u32 {
        self.words.as_ptr()
    }

    /// Changes the shape; contents become unspecified.
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) -> Result<()> {
        // With every product a block holds at least `ROW_WORDS` k, so there are at most this many
        // blocks.
        self.words.try_reserve(columns.div_ceil(ROW_WORDS) * rows * ROW_STRIDE, ACTIVATIONS)?;
        (self.rows, self.columns) = (rows, columns);
        Ok(())
    }

    /// A handle through which several threads write disjoint parts.
    pub(crate) fn shared(&mut self) -> SharedOperand {
        SharedOperand { words: SharedMut::new(&mut self.words), rows: self.rows }
    }
}

/// An operand that several threads write, each its own rows or columns.
#[derive(Clone, Copy)]
pub(crate) struct SharedOperand {
    words: SharedMut<u32>,
    rows: usize,
}

impl SharedOperand {
    /// Pointer to block `block` of row `row`: k from `block · k_block` on.
    ///
    /// # Safety
    /// `row` and `block` are within the operand.
    pub(crate) unsafe fn block(self, row: usize, block: usize) -> *mut u32 {
        // SAFETY: by the caller's contract the offset is within `words`.
        unsafe { self.words.pointer().add((block * self.rows + row) * ROW_STRIDE) }
    }
}

/// Runs a kernel that packs operands with the product that `cpu`'s matrix products use.
pub(crate) fn run(cpu: &Cpu, kernel: impl ProductKernel) {
    let (storage, precision) = (Storage::of_cache(cpu.precision), cpu.precision);
    cpu.isa.run_product(ForProduct { storage, precision, kernel });
}

pub(crate) fn pack(cpu: &Cpu, x: &Rows, out: &mut Operand) -> Result<()> {
    out.resize(x.rows(), x.columns())?;
    let out = out.shared();
    cpu.split_rows(x.rows(), x.as_slice().len(), |rows| run(cpu, Pack { x, rows, out }));
    Ok(())
}

/// Packs rows `rows` of x.
struct Pack<'a> {
    x: &'a Rows,
    rows: Range<usize>,
    out: SharedOperand,
}

impl ProductKernel for Pack<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        for row in self.rows {
            for (block, values) in self.x.row(row).chunks(k_block::<P>()).enumerate() {
                // SAFETY: threads have disjoint rows, `pack` has resized the operand for all rows
                // and blocks, and a block is ROW_STRIDE words.
                let out = unsafe { &mut *self.out.block(row, block).cast() };
                pack_row::<S, P>(s, round, values, out);
            }
        }
    }
}
