//! What a matrix product is to those who multiply: how two operands meet, and one call of its tile.

use std::ops::Range;

use super::layout::{PANEL, ROW_WORDS, even_parts};
use crate::simd::Simd;

/// How a word of A meets a word of W.
pub(crate) trait Product: Sized + Send + Sync + 'static {
    /// Words of A consumed by a step.
    const A_WORDS: usize;
    /// k consumed by a step.
    const K: usize;
    /// Whether A is rounded to bfloat16 pairs.
    const A_PAIRS: bool;
    /// k added up among themselves before they meet the chain so far. How k falls into groups is in
    /// the bits: groups lie at multiples of it, and one that a row has in part is computed as a
    /// whole, with zeros.
    const GROUP: usize = Self::K;
    /// Panels of weights that one call of [`Product::tiles`] should take: one is one stream from
    /// memory.
    const TILE_PANELS: usize = 1;

    /// Most rows of a register tile.
    fn tile_rows<S: Simd>() -> usize {
        S::TILE_ROWS
    }

    /// Cuts rows into register tiles.
    fn row_tiles<S: Simd>(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        even_parts(rows, S::TILE_ROWS)
    }

    /// The same for `rows` rows and weights that lie in a cache: enough chains to hide latency.
    fn cached_panels<S: Simd>(rows: usize) -> usize {
        (S::tile_vectors(rows) * S::LANES / PANEL).max(1)
    }

    /// Longest k over which the slices of the panels of a call, and of the rows that pass over
    /// them, fit into L1.
    fn k_slice<S: Simd>(_rows: usize) -> usize {
        k_block::<Self>()
    }

    /// Runs `rows ≤ tile_rows` rows over `vectors` vectors of columns, whole panels, `tile` naming
    /// the first.
    ///
    /// # Safety
    /// As [`super::microkernel::tile`], for all `vectors`.
    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile);
}

/// A product in vector registers.
pub(crate) trait RegisterProduct: Product {
    /// One step of k: `acc[r][v] += A[r] · W[v]`.
    ///
    /// # Safety
    /// `a` reaches `ROWS` rows of `A_WORDS` words, each of `w` a vector of words.
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
    );
}

/// k that fit into one packed row.
pub(crate) const fn k_block<P: Product>() -> usize {
    ROW_WORDS / P::A_WORDS * P::K
}

/// One call of the register tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// First row of A at the first k.
    pub(crate) a: *const u32,
    /// First column of W at the first k.
    pub(crate) w: *const u32,
    /// Words from a panel to the next.
    pub(crate) panel_stride: usize,
    /// Steps of k.
    pub(crate) steps: usize,
    /// First element of C.
    pub(crate) c: *mut f32,
    /// Elements from a row of C to the next.
    pub(crate) c_stride: usize,
    /// Whether C holds the chain so far; otherwise it starts at zero.
    pub(crate) resume: bool,
    /// Added at the end, one per column; null for none.
    pub(crate) bias: *const f32,
    /// Where in W to prefetch from meanwhile, and by how many words to move on each step.
    pub(crate) prefetch: (*const u32, usize),
    /// The same in A, into L2: what later tiles read. Only vector registers heed it.
    pub(crate) prefetch_a: (*const u32, usize),
}
