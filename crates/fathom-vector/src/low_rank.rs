//! Low-rank changes of a weight matrix, as an adapter brings them: `W + scale · B·A`.
//!
//! Every element is computed in one order, in f32, on every machine: the sum over the rank from its
//! first term on, each term added by a fused multiply-add; times the scale; plus the weight;
//! rounded to the weight's type. That is what PyTorch computes up to the rank at which its library
//! cuts the sum into blocks (more than 100), so that a merge has the bits of PEFT's.

use fathom_backend::{DType, WeightView};
use half::f16;

use crate::isa::{Supported, Work};

/// A change of a weight matrix `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `[rows, rank]`, row-major.
    pub b: &'a [f32],
    /// `[rank, columns]`, row-major.
    pub a: &'a [f32],
    /// Columns of `b`, rows of `a`; at least 1.
    pub rank: usize,
    /// Factor on the product.
    pub scale: f32,
    /// Whether the change is rounded to the weight's type before it is added, not only the sum.
    pub rounded: bool,
}

/// `weight` with the changes added one after the other, each sum rounded to the weight's type: the
/// bytes of a matrix of the same shape and type. Large ones are computed by all cores.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn add_low_rank(weight: WeightView<'_>, changes: &[LowRank<'_>]) -> Vec<u8> {
    add_on(Supported::best(), weight, changes)
}

fn add_on(isa: Supported, weight: WeightView<'_>, changes: &[LowRank<'_>]) -> Vec<u8> {
    /// Multiplications that are worth a thread.
    const WORTH_A_THREAD: usize = 1 << 22;
    let WeightView { bytes, dtype, rows, columns } = weight;
    for LowRank { b, a, rank, .. } in changes {
        assert_eq!((b.len(), a.len()), (rows * rank, rank * columns), "shapes of a change");
    }
    let mut out = bytes.to_vec();
    if out.is_empty() || changes.is_empty() {
        return out;
    }
    let work = changes.iter().map(|change| change.rank).sum::<usize>() * rows * columns;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let part = rows.div_ceil(cores.min(work / WORTH_A_THREAD).max(1));
    let add = |(i, out)| isa.run(AddRows { first: i * part, out, dtype, columns, changes });
    let mut parts = out.chunks_mut(part * columns * dtype.size()).enumerate();
    let mine = parts.next();
    std::thread::scope(|scope| {
        let add = &add;
        for part in parts {
            scope.spawn(move || add(part));
        }
        mine.into_iter().for_each(add);
    });
    out
}

/// Changes rows `first..`, which `out` holds the bytes of.
struct AddRows<'a> {
    first: usize,
    out: &'a mut [u8],
    dtype: DType,
    columns: usize,
    changes: &'a [LowRank<'a>],
}

/// Columns whose sums are kept in registers.
const BLOCK: usize = 64;
/// Rows that share a block of A.
const ROWS: usize = 64;

impl Work for AddRows<'_> {
    type Output = ();
    // The compiler makes vectors of it by itself: `mul_add` is an instruction where the set has
    // one, and the same number elsewhere.
    #[inline(always)]
    fn run<const WIDTH: usize, const FUSED: bool>(self) {
        let AddRows { first, out, dtype, columns, changes } = self;
        let row = columns * dtype.size();
        let mut block = Vec::new(); // [rank, BLOCK] of A
        for (i, out) in out.chunks_mut(ROWS * row).enumerate() {
            for change in changes {
                let b = &change.b[(first + i * ROWS) * change.rank..];
                for from in (0..columns).step_by(BLOCK) {
                    copy_block(change.a, columns, from, &mut block);
                    let place = from * dtype.size()..row.min((from + BLOCK) * dtype.size());
                    let rows = out.chunks_mut(row).zip(b.chunks_exact(change.rank));
                    for (out, b) in rows {
                        add(&mut out[place.clone()], dtype, &sums(b, &block), change);
                    }
                }
            }
        }
    }
}

/// Columns `from..from + BLOCK` of A, one row after the other: so they stay in the nearest cache,
/// which rows that lie a power of two apart would push each other out of. Zeros beyond the last
/// column.
#[inline(always)]
fn copy_block(a: &[f32], columns: usize, from: usize, block: &mut Vec<f32>) {
    block.clear();
    for a in a.chunks_exact(columns) {
        let a = &a[from..columns.min(from + BLOCK)];
        block.extend_from_slice(a);
        block.resize(block.len() + BLOCK - a.len(), 0.0);
    }
}

/// `Σ_k b[k] · a[k]`, for `BLOCK` columns.
#[inline(always)]
fn sums(b: &[f32], a: &[f32]) -> [f32; BLOCK] {
    let mut sums = [0.0; BLOCK];
    for (&b, a) in b.iter().zip(a.as_chunks::<BLOCK>().0) {
        for (sum, &a) in sums.iter_mut().zip(a) {
            *sum = b.mul_add(a, *sum);
        }
    }
    sums
}

/// Adds the change to up to `BLOCK` elements.
#[inline(always)]
fn add(out: &mut [u8], dtype: DType, sums: &[f32; BLOCK], change: &LowRank<'_>) {
    let LowRank { scale, rounded, .. } = *change;
    match dtype {
        DType::F32 => {
            for (out, sum) in out.as_chunks_mut().0.iter_mut().zip(sums) {
                *out = (f32::from_le_bytes(*out) + sum * scale).to_le_bytes();
            }
        }
        DType::Bf16 => {
            let round = |x: f32| if rounded { widen(nearest(x)) } else { x };
            for (out, sum) in out.as_chunks_mut().0.iter_mut().zip(sums) {
                let old = widen(u16::from_le_bytes(*out));
                *out = nearest(old + round(sum * scale)).to_le_bytes();
            }
        }
        DType::F16 => {
            let round = |x: f32| if rounded { f16::from_f32(x).to_f32() } else { x };
            for (out, sum) in out.as_chunks_mut().0.iter_mut().zip(sums) {
                let old = f16::from_le_bytes(*out).to_f32();
                *out = f16::from_f32(old + round(sum * scale)).to_le_bytes();
            }
        }
    }
}

/// A bfloat16 as f32.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16, ties to even, without a branch that would keep the compiler from making
/// vectors of it. Not for NaN: finite weights and changes give infinity at worst, or infinity minus
/// infinity, which is the NaN that stays one here.
#[inline(always)]
fn nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::element;

    /// Numbers about 1 with all bits of the fraction in use.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed | 1;
        let number = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(number).collect()
    }

    fn bytes(values: &[f32], dtype: DType) -> Vec<u8> {
        let bytes = |x: &f32| match dtype {
            DType::F32 => x.to_le_bytes().to_vec(),
            DType::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }

    /// The definition, an element at a time.
    fn naive(weight: &WeightView<'_>, changes: &[LowRank<'_>]) -> Vec<u8> {
        let WeightView { bytes: weight, dtype, columns, .. } = *weight;
        let through = |x: f32| element(&bytes(&[x], dtype), dtype);
        let new = |(i, old): (usize, &[u8])| {
            let (row, column) = (i / columns, i % columns);
            let mut value = element(old, dtype);
            for LowRank { b, a, rank, scale, rounded } in changes {
                let mut sum = 0.0;
                for k in 0..*rank {
                    sum = b[row * rank + k].mul_add(a[k * columns + column], sum);
                }
                let change = sum * scale;
                value = through(value + if *rounded { through(change) } else { change });
            }
            bytes(&[value], dtype)
        };
        weight.chunks(dtype.size()).enumerate().flat_map(new).collect()
    }

    #[test]
    fn every_shape_and_type_has_the_bits_of_the_definition() {
        // The last shape is worth several threads.
        for (rows, columns, rank) in
            [(1, 1, 1), (3, 63, 2), (2, 64, 5), (5, 65, 3), (7, 200, 16), (300, 1000, 40)]
        {
            let (b, a) = (numbers(1, rows * rank), numbers(2, rank * columns));
            let (b2, a2) = (numbers(3, rows), numbers(4, columns));
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let weight = bytes(&numbers(5, rows * columns), dtype);
                let weight = WeightView { bytes: &weight, dtype, rows, columns };
                for rounded in [false, true] {
                    let one = LowRank { b: &b, a: &a, rank, scale: 0.3, rounded };
                    let other = LowRank { b: &b2, a: &a2, rank: 1, scale: -1.7, rounded: false };
                    let changes = [one, other];
                    let expected = naive(&weight, &changes);
                    assert!(add_low_rank(weight, &changes) == expected);
                    for isa in Supported::all() {
                        let ours = add_on(isa, weight, &changes);
                        let what = format!("{rows} {columns} {rank} {dtype:?} {rounded} {isa:?}");
                        assert!(ours == expected, "{what}");
                        assert!(ours != weight.bytes, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_change_is_none() {
        let weight = bytes(&numbers(5, 6), DType::Bf16);
        let view = WeightView { bytes: &weight, dtype: DType::Bf16, rows: 2, columns: 3 };
        assert_eq!(add_low_rank(view, &[]), weight);
    }
}
