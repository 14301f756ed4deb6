//! The interface of a matrix product: how its operands are multiplied, and the arguments of a
//! micro-kernel call.

use std::ops::Range;

use super::layout::{PANEL, ROW_WORDS, even_parts};
use crate::simd::Simd;

/// How packed words of A and W are multiplied.
pub(crate) trait Product: Sized + Send + Sync + 'static {
    /// Words of A per step.
    const A_WORDS: usize;
    /// k per step.
    const K: usize;
    /// Whether A is packed as bfloat16 pairs.
    const A_PAIRS: bool;
    /// Number of k that are reduced together before they are added to the accumulator. Grouping
    /// affects the bits, so groups begin at multiples of it, and a group that is partly visible to
    /// a row is computed in full, with zeros for the rest.
    const K_GROUP: usize = Self::K;
    /// Panels per call of [`Product::tiles`] for weights in memory. Each panel is one stream from
    /// memory.
    const TILE_PANELS: usize = 1;

    /// Maximum number of rows of a register tile (MR).
    fn tile_rows<S: Simd>() -> usize {
        S::TILE_ROWS
    }

    /// Divides rows into register tiles.
    fn row_tiles<S: Simd>(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        even_parts(rows, S::TILE_ROWS)
    }

    /// Panels per call for `rows` rows and cached weights: enough accumulators to hide latency.
    fn cached_panels<S: Simd>(rows: usize) -> usize {
        (S::tile_vectors(rows) * S::LANES / PANEL).max(1)
    }

    /// Longest slice of k for which the panels of a call, and the rows that pass over them, fit
    /// into L1.
    fn k_slice<S: Simd>(_rows: usize) -> usize {
        k_block::<Self>()
    }

    /// Runs `rows ≤ tile_rows` rows over `vectors` vectors of columns, in whole panels, from `tile`
    /// on.
    ///
    /// # Safety
    /// The contract of [`super::microkernel::tile`], for all `vectors`.
    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile);
}

/// A product computed in vector registers.
pub(crate) trait RegisterProduct: Product {
    /// One step of k: `acc[r][v] += A[r] · W[v]`.
    ///
    /// # Safety
    /// `a` is readable for `ROWS` rows of `A_WORDS` words, `ROW_STRIDE` words apart; each pointer
    /// of `w`, aligned to a vector, for `LANES` words.
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
    );
}

/// Number of k per packed row (KC).
pub(crate) const fn k_block<P: Product>() -> usize {
    ROW_WORDS / P::A_WORDS * P::K
}

/// The arguments of one micro-kernel call.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// A, at the first row and k.
    pub(crate) a: *const u32,
    /// W, at the first column and k.
    pub(crate) w: *const u32,
    /// Distance between panels, in words.
    pub(crate) panel_stride: usize,
    /// Steps of k.
    pub(crate) steps: usize,
    /// First element of C.
    pub(crate) c: *mut f32,
    /// Distance between rows of C, in elements.
    pub(crate) c_stride: usize,
    /// Whether to continue from the accumulators in C; otherwise they start at zero.
    pub(crate) resume: bool,
    /// Bias to add at the end, one per column; null for none.
    pub(crate) bias: *const f32,
    /// Where to prefetch W into L1, and the advance in words per step.
    pub(crate) prefetch: (*const u32, usize),
    /// Where to prefetch A for later tiles into L2, and the advance in words per step. Ignored by
    /// tile registers.
    pub(crate) prefetch_a: (*const u32, usize),
}
