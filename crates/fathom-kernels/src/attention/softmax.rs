//! The online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867) of a register tile in one block
//! of keys.
//!
//! A row of 128 scores is 8 vectors of 16: a load and a maximum each, then some 14 operations each
//! for `2^y`, the sum and the rounding — 60 to 70 cycles, against 256 for the row's share of the
//! two products at a head of 64 in bf16. They are that few only if rows overlap: the maximum of a
//! row is a chain of some 40 cycles, and so is the power of a vector. So the tile's rows go through
//! each phase together, several vectors go through `2^y` step by step ([`crate::simd::exp`]), and
//! what is one number a row (maximum, rescaling) is computed for all rows in one vector.

use std::ops::Range;

use super::kv::BLOCK;
use super::queries::{mask, same_within_block, within_block};
use crate::cpu::AttentionScratch;
use crate::gemm::{Product, ROW_STRIDE};
use crate::simd::exp::{exp2, exp2_scaled};
use crate::simd::{MAX_LANES, Simd};

/// At least as many as [`Product::tile_rows`], and whole vectors.
const MAX_TILE_ROWS: usize = 32;

/// Scores of `tile` in `block` become probabilities relative to the rows' new maxima, and what the
/// rows have so far is rescaled to those. `scale` includes log₂e; `width` are the columns of O.
#[inline(always)]
pub(super) fn softmax<S: Simd, P: Product>(
    s: S,
    round: bool,
    scratch: &mut AttentionScratch,
    tile: Range<usize>,
    block: usize,
    scale: f32,
    width: usize,
) {
    assert!(tile.len() <= MAX_TILE_ROWS, "a register tile of {} rows", tile.len());
    let AttentionScratch { scores, probabilities, visible, part, .. } = scratch;
    let visible = &visible[tile.clone()];
    let same = same_within_block(visible, block);
    let keys_of = |row: usize| same.clone().unwrap_or_else(|| within_block(&visible[row], block));
    // The scale is positive: the largest score is the largest scaled.
    let mut largest = [f32::NEG_INFINITY; MAX_TILE_ROWS];
    let rows_of_scores = scores.chunks_mut(ROW_STRIDE).take(tile.len());
    for (row, (scores, largest)) in rows_of_scores.zip(&mut largest).enumerate() {
        let keys = keys_of(row);
        *largest = largest_score::<S, P>(s, &mut scores[..BLOCK], &keys) * scale;
    }

    let mut old = [f32::NEG_INFINITY; MAX_TILE_ROWS];
    old[..tile.len()].copy_from_slice(&part.max[tile.clone()]);
    let mut max = [0.0; MAX_TILE_ROWS];
    let mut rescale = [0.0; MAX_TILE_ROWS];
    for row in (0..tile.len()).step_by(S::LANES) {
        let before = s.load_some(&old[row..]);
        let after = s.max(s.load_some(&largest[row..]), before);
        s.store_some(&mut max[row..], after);
        let [change] = exp2(s, [s.sub(before, after)]);
        s.store_some(&mut rescale[row..], change);
    }

    let rows_of_scores = scores.chunks_mut(ROW_STRIDE).take(tile.len());
    let rows_of_pairs = probabilities.chunks_mut(ROW_STRIDE);
    for (row, (scores, pairs)) in rows_of_scores.zip(rows_of_pairs).enumerate() {
        let keys = keys_of(row);
        if keys.is_empty() {
            continue;
        }
        let pairs: &mut [u16] = bytemuck::cast_slice_mut(pairs);
        let (scores, pairs) = (&mut scores[..BLOCK], &mut pairs[..BLOCK]);
        let sum = exponentials::<S, P>(s, round, scores, pairs, &keys, scale, max[row]);
        let lanes = &mut part.lanes[(tile.start + row) * MAX_LANES..][..S::LANES];
        let mut so_far = s.load_some(lanes);
        if max[row] > old[row] {
            part.max[tile.start + row] = max[row];
            let rescale = s.splat(rescale[row]);
            so_far = s.mul(so_far, rescale);
            let out = &mut part.out[(tile.start + row) * width..][..width];
            for out in out.chunks_exact_mut(S::LANES) {
                s.store_some(out, s.mul(s.load_some(out), rescale));
            }
        }
        s.store_some(lanes, s.add(so_far, sum));
    }
}

/// Vectors of a block, of which so many are in flight at a time.
const GROUP: usize = 4;

/// The largest of the scores of `keys`; what lies beside them in their vectors becomes -∞.
#[inline(always)]
fn largest_score<S: Simd, P: Product>(s: S, scores: &mut [f32], keys: &Range<usize>) -> f32 {
    let mut largest = [s.splat(f32::NEG_INFINITY); GROUP];
    if *keys == (0..BLOCK) {
        for group in scores.chunks_exact(GROUP * S::LANES) {
            for (largest, x) in largest.iter_mut().zip(group.chunks_exact(S::LANES)) {
                *largest = s.max(*largest, s.load_some(x));
            }
        }
    } else {
        for (x, key) in vectors_mut::<S, P>(scores, keys) {
            let seen = mask(s, keys, key, s.load_some(x), f32::NEG_INFINITY);
            s.store_some(x, seen);
            largest[0] = s.max(largest[0], seen);
        }
    }
    let [a, b, c, d] = largest;
    s.max_lane(s.max(s.max(a, b), s.max(c, d)))
}

/// `p = 2^(scale·x - max)` of the scores x of `keys`, in the form the second product reads:
/// `pairs`, or in place. Returns their sum before any rounding, lane by lane.
#[inline(always)]
fn exponentials<S: Simd, P: Product>(
    s: S,
    round: bool,
    scores: &mut [f32],
    pairs: &mut [u16],
    keys: &Range<usize>,
    scale: f32,
    max: f32,
) -> S::F32 {
    let (scale, minus_max) = (s.splat(scale), s.splat(-max));
    let mut sum = [s.splat(0.0); GROUP];
    if *keys == (0..BLOCK) {
        let groups = scores.chunks_exact_mut(GROUP * S::LANES);
        for (x, pairs) in groups.zip(pairs.chunks_exact_mut(GROUP * S::LANES)) {
            let p: [_; GROUP] = exp2_scaled(s, x, scale, minus_max);
            let to = x.chunks_exact_mut(S::LANES).zip(pairs.chunks_exact_mut(S::LANES));
            for ((sum, p), (x, pairs)) in sum.iter_mut().zip(p).zip(to) {
                *sum = s.add(*sum, p);
                put::<S, P>(s, round, p, x, pairs);
            }
        }
    } else {
        for (x, key) in vectors_mut::<S, P>(scores, keys) {
            let [p] = exp2_scaled(s, x, scale, minus_max);
            sum[0] = s.add(sum[0], p);
            put::<S, P>(s, round, p, x, &mut pairs[key..]);
        }
    }
    let [a, b, c, d] = sum;
    s.add(s.add(a, b), s.add(c, d))
}

/// Writes a vector of probabilities in the form the second product reads: `pairs`, or `x`.
#[inline(always)]
fn put<S: Simd, P: Product>(s: S, round: bool, p: S::F32, x: &mut [f32], pairs: &mut [u16]) {
    if P::A_PAIRS {
        assert!(pairs.len() >= S::LANES);
        // SAFETY: asserted.
        unsafe { s.store_bf16(pairs.as_mut_ptr(), p) };
    } else {
        s.store_some(x, if round { s.round_bf16(p) } else { p });
    }
}

/// The vectors of a block that hold any of `keys`, in whole groups, all of which the second product
/// reads; each with its first key.
#[inline(always)]
fn vectors_mut<'a, S: Simd, P: Product>(
    scores: &'a mut [f32],
    keys: &Range<usize>,
) -> impl Iterator<Item = (&'a mut [f32], usize)> {
    let unit = S::LANES.max(P::GROUP);
    let start = keys.start / unit * unit;
    let end = keys.end.next_multiple_of(unit).max(start);
    scores[start..end].chunks_exact_mut(S::LANES).zip((start..end).step_by(S::LANES))
}
