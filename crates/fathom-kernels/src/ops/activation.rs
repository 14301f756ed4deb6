//! Element-wise operations and argmax.
//!
//! They are memory-bound if rows come from memory: 8 or 12 bytes per element for about ten
//! instructions. A pass without probes does these operations in the products' epilogues instead,
//! where the operands are in L2. The operations here serve passes with probes, and the epilogues
//! are tested against them.

use crate::cpu::Cpu;
use crate::memory::{Rows, SharedMut};
use crate::simd::exp::silu as silu_of;
use crate::simd::{Kernel, Simd};

pub(crate) fn silu(cpu: &Cpu, x: &Rows, out: &mut Rows) {
    elementwise(cpu, x, x, out, Op::Silu);
}

pub(crate) fn mul(cpu: &Cpu, x: &Rows, y: &Rows, out: &mut Rows) {
    elementwise(cpu, x, y, out, Op::Mul);
}

pub(crate) fn add_assign(cpu: &Cpu, x: &mut Rows, y: &Rows) {
    let (rows, columns) = (x.rows(), x.columns());
    assert_eq!((y.rows(), y.columns()), (rows, columns), "shapes of a sum");
    let x = x.shared();
    cpu.split_rows(rows, rows * columns, |rows| {
        // SAFETY: threads have disjoint rows of `x`.
        let x = unsafe { x.slice(rows.start * columns..rows.end * columns) };
        for (x, y) in x.iter_mut().zip(y.slice(rows)) {
            *x += y;
        }
    });
}

pub(crate) fn argmax(cpu: &Cpu, x: &Rows, limit: usize) -> Vec<u32> {
    let limit = limit.min(x.columns());
    let mut best = vec![0; x.rows()];
    let shared = SharedMut::new(&mut best);
    cpu.split_rows(x.rows(), x.rows() * limit, |rows| {
        for row in rows {
            let index = cpu.isa.run(Argmax { x: &x.row(row)[..limit] });
            // SAFETY: threads have disjoint rows, and `best` has one element per row.
            unsafe { *shared.pointer().add(row) = index as u32 };
        }
    });
    best
}

#[derive(Clone, Copy)]
enum Op {
    Silu,
    Mul,
}

fn elementwise(cpu: &Cpu, x: &Rows, y: &Rows, out: &mut Rows, op: Op) {
    let (rows, columns) = (x.rows(), x.columns());
    assert_eq!((y.rows(), y.columns()), (rows, columns), "shapes of operands");
    assert_eq!((out.rows(), out.columns()), (rows, columns), "shape of the output");
    let out = out.shared();
    cpu.split_rows(rows, rows * columns, |rows| {
        // SAFETY: threads have disjoint rows of `out`, which has the shape of `x` (asserted).
        let out = unsafe { out.slice(rows.start * columns..rows.end * columns) };
        cpu.isa.run(Elementwise { x: x.slice(rows.clone()), y: y.slice(rows), out, op });
    });
}

struct Elementwise<'a> {
    x: &'a [f32],
    y: &'a [f32],
    out: &'a mut [f32],
    op: Op,
}

impl Kernel for Elementwise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let operands = self.x.chunks(S::LANES).zip(self.y.chunks(S::LANES));
        for ((x, y), out) in operands.zip(self.out.chunks_mut(S::LANES)) {
            let x = s.load_some(x);
            let result = match self.op {
                Op::Silu => silu_of(s, [x])[0],
                Op::Mul => s.mul(x, s.load_some(y)),
            };
            s.store_some(out, result);
        }
    }
}

/// Index of the first largest element; 0 if all are NaN.
struct Argmax<'a> {
    x: &'a [f32],
}

impl Kernel for Argmax<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let mut best = s.splat(f32::NEG_INFINITY);
        let vectors = self.x.chunks_exact(S::LANES);
        let rest = vectors.remainder();
        for x in vectors {
            // `Simd::max` returns its second argument if the first is NaN, so NaN is skipped.
            best = s.max(s.load_some(x), best);
        }
        let best = rest.iter().fold(s.max_lane(best), |best, &x| if x > best { x } else { best });
        self.x.iter().position(|&x| x == best).unwrap_or(0)
    }
}
