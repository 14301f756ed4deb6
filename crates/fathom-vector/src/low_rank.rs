//! Low-rank updates of a weight matrix, as in a LoRA adapter: `W + scale · B·A`.
//!
//! Every element is computed in f32 in the same order on every CPU: the sum over the rank,
//! accumulated in order by fused multiply-adds; times the scale; plus the weight; rounded to the
//! weight's type. PyTorch computes the same, so a merge has the bits of PEFT's, up to the rank at
//! which PyTorch's BLAS splits the sum into blocks (above 100).

use fathom_backend::{DType, WeightView};
use half::f16;

use crate::isa::{Supported, Work};

/// An update of a weight matrix `[rows, columns]`.
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
    /// Whether the update is rounded to the weight's type before it is added. The sum always is.
    pub rounded: bool,
}

/// Adds the updates to `weight` in order, rounding each sum to the weight's type. Returns the bytes
/// of a matrix of the same shape and type. Large matrices are computed on all cores.
///
/// # Panics
/// If the shapes do not match.
pub fn add_low_rank(weight: WeightView<'_>, changes: &[LowRank<'_>]) -> Vec<u8> {
    add_on(Supported::best(), weight, changes)
}

fn add_on(isa: Supported, weight: WeightView<'_>, changes: &[LowRank<'_>]) -> Vec<u8> {
    /// Multiplications per thread, at least.
    const WORK_PER_THREAD: usize = 1 << 22;
    let WeightView { bytes, dtype, rows, columns } = weight;
    for LowRank { b, a, rank, .. } in changes {
        assert_eq!(
            (b.len(), a.len()),
            (rows * rank, rank * columns),
            "shapes of a low-rank update"
        );
    }
    let mut out = bytes.to_vec();
    if out.is_empty() || changes.is_empty() {
        return out;
    }
    let work = changes.iter().map(|change| change.rank).sum::<usize>() * rows * columns;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let part = rows.div_ceil(cores.min(work / WORK_PER_THREAD).max(1));
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

/// Updates rows from `first` on, whose bytes are `out`.
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
    // The compiler vectorizes this. Without a fused instruction, `mul_add` is a slow library call
    // with the same result.
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

/// Packs columns `from..from + BLOCK` of A contiguously, zero-padded beyond the last column. The
/// packed block stays in L1; rows of A that are a power of two apart would evict each other.
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

/// Adds the update to up to `BLOCK` elements.
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

/// Rounds to the nearest bfloat16, ties to even, without a branch that would prevent vectorization.
/// Not valid for every NaN. Finite weights and updates produce at most infinities and the NaN of
/// infinity minus infinity, which stays a NaN.
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

    /// Numbers in [-1, 1) that use all bits of the fraction.
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

    /// The definition, element by element.
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
    fn every_shape_and_type_returns_the_bits_of_the_definition() {
        // The last shape is large enough for several threads.
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
    fn no_updates_leave_the_weight_unchanged() {
        let weight = bytes(&numbers(5, 6), DType::Bf16);
        let view = WeightView { bytes: &weight, dtype: DType::Bf16, rows: 2, columns: 3 };
        assert_eq!(add_low_rank(view, &[]), weight);
    }
}
