//! Massive activations of a row.

use std::cmp::Reverse;

use fathom_backend::Massive;

use crate::isa::{Supported, Work};

/// The massive activations of a row.
pub fn massive(row: &[f32]) -> Massive {
    massive_on(Supported::best(), row)
}

/// Most rows have no component above [`Massive::ABOVE`], and in most others at least half of the
/// components are too large for any to be massive. Two cheap tests find out, without the median.
fn massive_on(isa: Supported, row: &[f32]) -> Massive {
    let largest = isa.run(Largest(row));
    if largest <= Massive::ABOVE || 2 * isa.run(Small { row, largest }) < row.len() {
        return Massive::default();
    }
    let median = median(row.iter().map(|x| x.abs()).collect());
    let is_massive = |x: f32| x > Massive::ABOVE && x > Massive::TIMES_MEDIAN * median;
    let components = row.iter().copied().enumerate();
    let mut found: Vec<(usize, f32)> = components.filter(|(_, x)| is_massive(x.abs())).collect();
    let count = found.len();
    if count > Massive::LISTED {
        found.sort_by_key(|(_, x)| Reverse(x.abs().to_bits())); // stable: equal ones stay by index
        found.truncate(Massive::LISTED);
        found.sort_by_key(|(index, _)| *index);
    }
    Massive { count, largest: found }
}

/// The median; of an even number of values, the mean of the two in the middle. There is at least
/// one value.
fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    let even = values.len().is_multiple_of(2);
    let (below, upper, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    match below.iter().copied().max_by(f32::total_cmp) {
        Some(lower) if even => (lower + *upper) / 2.0,
        _ => *upper,
    }
}

/// The largest |xᵢ|; 0 if there are none.
struct Largest<'a>(&'a [f32]);

impl Work for Largest<'_> {
    type Output = f32;
    /// Numbers ≥ 0 have the order of their bits, and the maximum of integers is vectorized by the
    /// compiler.
    #[inline(always)]
    fn run<const WIDTH: usize, const FUSED: bool>(self) -> f32 {
        let size = |x: &f32| x.to_bits() & 0x7fff_ffff;
        f32::from_bits(self.0.iter().fold(0, |largest: u32, x| largest.max(size(x))))
    }
}

/// The number of components that are so small that `largest` would be massive if one of them were
/// the median.
struct Small<'a> {
    row: &'a [f32],
    largest: f32,
}

impl Work for Small<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<const WIDTH: usize, const FUSED: bool>(self) -> usize {
        let small = |x: &f32| u32::from(Massive::TIMES_MEDIAN * x.abs() < self.largest);
        self.row.iter().fold(0, |count: u32, x| count + small(x)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, with a sorted copy of the row.
    fn by_definition(row: &[f32]) -> Massive {
        let mut sizes: Vec<f32> = row.iter().map(|x| x.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let (lower, upper) = (sizes[(row.len() - 1) / 2], sizes[row.len() / 2]);
        let bound = 1000.0 * ((lower + upper) / 2.0);
        let all = (0..row.len()).filter(|i| row[*i].abs() > 100.0 && row[*i].abs() > bound);
        let mut all: Vec<(usize, f32)> = all.map(|i| (i, row[i])).collect();
        let count = all.len();
        while all.len() > 8 {
            let least = all.iter().map(|(_, x)| x.abs()).fold(f32::INFINITY, f32::min);
            let last = all.iter().rposition(|(_, x)| x.abs() == least);
            all.remove(last.unwrap_or(0));
        }
        Massive { count, largest: all }
    }

    #[test]
    fn rows_of_every_length_and_kind() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let mut counts = [0; 12];
        for n in 1..150 {
            for large in 0..11 {
                for size in [50.0, 101.0, 1e4] {
                    let mut row: Vec<f32> = (0..n).map(|_| random() * size / 2000.0).collect();
                    for i in 0..large.min(n) {
                        let sign = if i % 3 == 0 { -1.0 } else { 1.0 };
                        row[(i * 37 + 5) % n] = sign * size * (1.0 + (i % 4) as f32);
                    }
                    let want = by_definition(&row);
                    for isa in Supported::all() {
                        assert_eq!(massive_on(isa, &row), want, "{n} {large} {size} {isa:?}");
                    }
                    counts[want.count] += 1;
                    let numbers: Vec<f32> = want.numbers().collect();
                    assert!(numbers.len() <= Massive::NUMBERS);
                    assert_eq!(Massive::from_numbers(|i| numbers[i]), want);
                }
            }
        }
        assert!(counts.iter().take(11).all(|count| *count > 0), "{counts:?}");
    }

    /// Both bounds are strict, and the median of an even number is between the two in the middle.
    #[test]
    fn values_at_the_bounds() {
        let row = |least: f32, size: f32| [0.1, least, size, -size];
        let count = |row: &[f32]| massive(row).count;
        // The median is (least + size) / 2 for four values: far too large.
        assert_eq!(count(&row(0.1, 200.0)), 0);
        assert_eq!(count(&[0.1, 0.1, 0.1, 100.0, 0.1]), 0);
        assert_eq!(count(&[0.1, 0.1, 0.1, 100.5, 0.1]), 1);
        assert_eq!(count(&[0.125, 0.0, 0.125, 0.125, -125.0]), 0);
        assert_eq!(count(&[0.125, 0.0, 0.125, 0.125, -125.1]), 1);
        // Median 0.15: the bound is 150.
        assert_eq!(count(&[0.0, 0.1, 0.2, 149.0]), 0);
        assert_eq!(massive(&[0.0, 0.1, 0.2, 151.0]).largest, [(3, 151.0)]);
        assert_eq!(massive(&[]), Massive::default());
    }

    #[test]
    fn values_that_are_not_finite_do_not_panic() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for n in 1..20 {
                massive(&vec![x; n]);
                massive(&[vec![0.0; n], vec![x; n]].concat());
            }
        }
    }
}
