//! Keys that a [`KeyMask`](fathom_backend::KeyMask) hides from later queries.
//!
//! A block in which the mask hides nothing from a task's rows is computed as without a mask, with
//! the same bits. In any other block, consecutive rows that see the same keys are computed
//! together: their hidden keys get the score -∞, and the second product goes over the runs of keys
//! they see. So hidden values never enter a row's arithmetic, and a row's bits depend only on the
//! keys that it sees.

use std::ops::Range;

use super::kv::BLOCK;
use super::queries::{Queries, within_block};
use crate::gemm::ROW_STRIDE;

/// Keys of one block, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen(u128);

const _: () = assert!(BLOCK == u128::BITS as usize, "one bit per key");

impl Seen {
    /// The keys `keys` of a block.
    fn range(keys: Range<usize>) -> Seen {
        let below = |key: usize| if key < BLOCK { (1 << key) - 1 } else { u128::MAX };
        Seen(below(keys.end) & !below(keys.start))
    }

    pub(super) fn contains(self, key: usize) -> bool {
        self.0 >> key & 1 == 1
    }

    /// From the first of them to the last; empty if there are none.
    pub(super) fn hull(self) -> Range<usize> {
        match self.0 {
            0 => 0..0,
            bits => bits.trailing_zeros() as usize..BLOCK - bits.leading_zeros() as usize,
        }
    }

    /// The first run of consecutive keys at or after `key`.
    fn run_from(self, key: usize) -> Option<Range<usize>> {
        let rest = self.0 & Seen::range(key..BLOCK).0;
        let start = rest.trailing_zeros() as usize;
        let gaps = !self.0 & Seen::range(start..BLOCK).0;
        (start < BLOCK).then(|| start..gaps.trailing_zeros() as usize)
    }

    /// Runs of consecutive keys, ascending.
    pub(super) fn runs(self) -> impl Iterator<Item = Range<usize>> {
        std::iter::successors(self.run_from(0), move |run| self.run_from(run.end))
    }
}

impl Queries<'_> {
    /// Whether the mask hides any key of block `block` from any row.
    pub(super) fn hides(&self, block: usize) -> bool {
        let last = self.position + self.positions - 1;
        let keys = block * BLOCK..self.until.len().min((block + 1) * BLOCK).min(last);
        // A key is hidden from no query up to its own.
        keys.into_iter().any(|key| self.until[key] <= last)
    }

    /// The keys of block `block` that row `row` sees.
    pub(super) fn seen(&self, row: usize, block: usize) -> Seen {
        let position = self.position + row / self.group();
        let mut seen = Seen::range(within_block(&self.visible(row), block));
        let until = self.until.iter().skip(block * BLOCK).take(BLOCK);
        for (key, until) in until.enumerate() {
            if *until <= position && block * BLOCK + key != position {
                seen.0 &= !(1 << key);
            }
        }
        seen
    }

    /// The first rows of `rows` that see the same keys of block `block`, and these keys.
    pub(super) fn rows_alike(&self, rows: Range<usize>, block: usize) -> (Range<usize>, Seen) {
        let seen = self.seen(rows.start, block);
        // All heads of a position see the same keys.
        let next = |row: &usize| Some((row / self.group() + 1) * self.group());
        let positions = std::iter::successors(next(&rows.start), next);
        let end = positions
            .take_while(|row| *row < rows.end)
            .find(|row| self.seen(*row, block) != seen)
            .unwrap_or(rows.end);
        (rows.start..end, seen)
    }

    /// Sets the scores of the keys of block `block` that the mask hides from `rows` to -∞, so that
    /// their probabilities are 0. Row `rows.start` is the first of `scores`.
    pub(super) fn hide(&self, rows: Range<usize>, block: usize, scores: &mut [f32]) {
        if !self.hides(block) {
            return;
        }
        for (row, scores) in rows.zip(scores.chunks_mut(ROW_STRIDE)) {
            hide_unseen(self.seen(row, block), scores);
        }
    }
}

/// Sets the scores of a row's unseen keys in one block to -∞.
pub(super) fn hide_unseen(seen: Seen, scores: &mut [f32]) {
    for (key, score) in scores.iter_mut().take(BLOCK).enumerate() {
        if !seen.contains(key) {
            *score = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_hull_of_keys() {
        assert_eq!(Seen::range(0..BLOCK).runs().collect::<Vec<_>>(), vec![0..BLOCK]);
        assert_eq!(Seen::range(5..5).runs().count(), 0);
        assert_eq!(Seen::range(5..5).hull(), 0..0);
        let seen = Seen(Seen::range(0..3).0 | Seen::range(7..8).0 | Seen::range(126..BLOCK).0);
        assert_eq!(seen.runs().collect::<Vec<_>>(), [0..3, 7..8, 126..BLOCK]);
        assert_eq!(seen.hull(), 0..BLOCK);
        assert!(seen.contains(127) && !seen.contains(125));
        assert_eq!(Seen::range(9..11).hull(), 9..11);
    }
}
