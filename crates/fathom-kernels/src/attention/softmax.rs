//! The online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867) of a register tile in one block
//! of keys.
//!
//! A row of 128 scores is 8 vectors of 16 lanes: a load and a maximum each, then about 14
//! operations each for `2^y`, the sum and the rounding. That is 60 to 70 cycles, against 256 for
//! the row's share of the two products at a head dimension of 64 in bf16. This holds only if rows
//! overlap, because the maximum of a row has a latency of about 40 cycles, as does `2^y` of a
//! vector. So all rows of the tile go through each phase together, several vectors go through `2^y`
//! in lockstep ([`crate::simd::exp`]), and per-row scalars (maximum, rescaling factor) are computed
//! for many rows in one vector.

use std::ops::Range;

use super::kv::BLOCK;
use super::queries::{mask, same_within_block, within_block};
use crate::cpu::AttentionScratch;
use crate::gemm::{Product, ROW_STRIDE};
use crate::simd::exp::{exp2, exp2_scaled};
use crate::simd::{MAX_LANES, Simd};

/// At least [`Product::tile_rows`] of every product, and a multiple of MAX_LANES.
const MAX_TILE_ROWS: usize = 32;

/// Converts the scores of `tile` in `block` to probabilities relative to the rows' new maxima, and
/// rescales the rows' sums and O to the new maxima. `scale` includes log₂e; `width` is the number
/// of columns of O.
#[inline(always)]
pub(super) fn softmax<S: Simd, P: Product>(
    s: S,
    scratch: &mut AttentionScratch,
    tile: Range<usize>,
    block: usize,
    scale: f32,
    width: usize,
) {
    assert!(tile.len() <= MAX_TILE_ROWS, "a register tile of {} rows", tile.len());
    let AttentionScratch { scores, probabilities, visible, split, .. } = scratch;
    let visible = &visible[tile.clone()];
    let same = same_within_block(visible, block);
    let keys_of = |row: usize| same.clone().unwrap_or_else(|| within_block(&visible[row], block));
    // The scale is positive, so the largest score is also the largest scaled score.
    let mut largest = [f32::NEG_INFINITY; MAX_TILE_ROWS];
    let rows_of_scores = scores.chunks_mut(ROW_STRIDE).take(tile.len());
    for (row, (scores, largest)) in rows_of_scores.zip(&mut largest).enumerate() {
        let keys = keys_of(row);
        *largest = largest_score::<S, P>(s, &mut scores[..BLOCK], &keys) * scale;
    }

    let mut old = [f32::NEG_INFINITY; MAX_TILE_ROWS];
    old[..tile.len()].copy_from_slice(&split.max[tile.clone()]);
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
        let sum = exponentials::<S, P>(s, scores, pairs, &keys, scale, max[row]);
        let lanes = &mut split.lane_sums[(tile.start + row) * MAX_LANES..][..S::LANES];
        let mut so_far = s.load_some(lanes);
        if max[row] > old[row] {
            split.max[tile.start + row] = max[row];
            let rescale = s.splat(rescale[row]);
            so_far = s.mul(so_far, rescale);
            let out = &mut split.out[(tile.start + row) * width..][..width];
            for out in out.chunks_exact_mut(S::LANES) {
                s.store_some(out, s.mul(s.load_some(out), rescale));
            }
        }
        s.store_some(lanes, s.add(so_far, sum));
    }
}

/// Vectors of a block processed together.
const UNROLL: usize = 4;

/// The largest score of `keys`. Sets the other scores in the same vectors to -∞.
#[inline(always)]
fn largest_score<S: Simd, P: Product>(s: S, scores: &mut [f32], keys: &Range<usize>) -> f32 {
    let mut largest = [s.splat(f32::NEG_INFINITY); UNROLL];
    if *keys == (0..BLOCK) {
        for group in scores.chunks_exact(UNROLL * S::LANES) {
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

/// Writes `p = 2^(scale·x - max)` for the scores x of `keys`, in the form the second product reads:
/// bf16 `pairs`, or f32 in place. Returns the sum of p before rounding, lane by lane.
#[inline(always)]
fn exponentials<S: Simd, P: Product>(
    s: S,
    scores: &mut [f32],
    pairs: &mut [u16],
    keys: &Range<usize>,
    scale: f32,
    max: f32,
) -> S::F32 {
    let (scale, minus_max) = (s.splat(scale), s.splat(-max));
    let mut sum = [s.splat(0.0); UNROLL];
    if *keys == (0..BLOCK) {
        let groups = scores.chunks_exact_mut(UNROLL * S::LANES);
        for (x, pairs) in groups.zip(pairs.chunks_exact_mut(UNROLL * S::LANES)) {
            let p: [_; UNROLL] = exp2_scaled(s, x, scale, minus_max);
            let to = x.chunks_exact_mut(S::LANES).zip(pairs.chunks_exact_mut(S::LANES));
            for ((sum, p), (x, pairs)) in sum.iter_mut().zip(p).zip(to) {
                *sum = s.add(*sum, p);
                store_probabilities::<S, P>(s, p, x, pairs);
            }
        }
    } else {
        for (x, key) in vectors_mut::<S, P>(scores, keys) {
            let [p] = exp2_scaled(s, x, scale, minus_max);
            sum[0] = s.add(sum[0], p);
            store_probabilities::<S, P>(s, p, x, &mut pairs[key..]);
        }
    }
    let [a, b, c, d] = sum;
    s.add(s.add(a, b), s.add(c, d))
}

/// Writes a vector of probabilities in the form the second product reads: to `pairs` or to `x`. A
/// product that reads f32 gets them unrounded in bfloat16 precision too: rounding would make it no
/// faster, and costs a quarter of the softmax where it is not a single instruction.
#[inline(always)]
fn store_probabilities<S: Simd, P: Product>(s: S, p: S::F32, x: &mut [f32], pairs: &mut [u16]) {
    if P::A_PAIRS {
        assert!(pairs.len() >= S::LANES);
        // SAFETY: `pairs` holds LANES elements, as asserted.
        unsafe { s.store_bf16(pairs.as_mut_ptr(), p) };
    } else {
        s.store_some(x, p);
    }
}

/// The vectors of a block that hold any of `keys`, rounded to whole groups of k, because the second
/// product reads whole groups. Each comes with its first key.
#[inline(always)]
fn vectors_mut<'a, S: Simd, P: Product>(
    scores: &'a mut [f32],
    keys: &Range<usize>,
) -> impl Iterator<Item = (&'a mut [f32], usize)> {
    let unit = S::LANES.max(P::K_GROUP);
    let start = keys.start / unit * unit;
    let end = keys.end.next_multiple_of(unit).max(start);
    scores[start..end].chunks_exact_mut(S::LANES).zip((start..end).step_by(S::LANES))
}
