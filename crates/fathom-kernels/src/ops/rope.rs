//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in HuggingFace's rotate-half
//! pairing.
//!
//! A pair takes six operations for 16 bytes read and 8 written. That is memory-bound if rows come
//! from memory, but a batch's rows have just been written and are mostly in L2. So work is divided
//! by rows, and no table is larger than the batch.

use fathom_backend::Rotary;

use crate::cpu::Cpu;
use crate::memory::Rows;
use crate::simd::{Kernel, Simd};

/// cos and sin `[rows, half]` of one pass.
pub(crate) struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Table {
    pub(crate) fn new(rotary: Rotary<'_>) -> Table {
        let Rotary { cos, sin, half } = rotary;
        assert_eq!(cos.len(), sin.len(), "rotary tables");
        assert_eq!(cos.len() % half.max(1), 0, "rotary table of width {half}");
        Table { cos: cos.to_vec(), sin: sin.to_vec(), half }
    }
}

pub(crate) fn rotate(cpu: &Cpu, x: &mut Rows, table: &Table, head_dim: usize) {
    let (rows, columns, half) = (x.rows(), x.columns(), table.half);
    assert!(
        2 * half <= head_dim && columns % head_dim == 0,
        "rotary {half} in heads of {head_dim}"
    );
    assert_eq!(table.cos.len(), rows * half, "rotary table rows");
    let work = rows * columns;
    let x = x.shared();
    cpu.split_rows(rows, work, |rows| {
        for row in rows {
            // SAFETY: threads have disjoint rows of `x`.
            let x = unsafe { x.slice(row * columns..(row + 1) * columns) };
            let angles = row * half..(row + 1) * half;
            let (cos, sin) = (&table.cos[angles.clone()], &table.sin[angles]);
            cpu.isa.run(Rotate { x, cos, sin, head_dim });
        }
    });
}

/// `(x_i, x_{i+half}) = (x_i·cos - x_{i+half}·sin, x_{i+half}·cos + x_i·sin)` in every head of one
/// row.
struct Rotate<'a> {
    x: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (low, high) = head.split_at_mut(half);
            let angles = self.cos.chunks(S::LANES).zip(self.sin.chunks(S::LANES));
            let pairs = low.chunks_mut(S::LANES).zip(high[..half].chunks_mut(S::LANES));
            for ((low, high), (cos, sin)) in pairs.zip(angles) {
                let (x, y) = (s.load_some(low), s.load_some(high));
                let (cos, sin) = (s.load_some(cos), s.load_some(sin));
                s.store_some(low, s.sub(s.mul(x, cos), s.mul(y, sin)));
                s.store_some(high, s.add(s.mul(y, cos), s.mul(x, sin)));
            }
        }
    }
}
