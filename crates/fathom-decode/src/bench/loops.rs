//! Texts that end in a loop.

/// Where a text that ends in a loop of at least three rounds repeats for the first time; its length
/// if it does not.
pub(super) fn first_repetition(text: &[u32]) -> usize {
    let of_period = |period: usize| {
        let differs = |i: &usize| text[*i] != text[i - period];
        let start = (period..text.len()).rev().find(differs).map_or(period, |i| i + 1);
        (text.len() - start >= 2 * period).then_some(start)
    };
    (1..=text.len() / 3).filter_map(of_period).min().unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_of_three_rounds_ends_after_the_first() {
        for (text, expected) in [
            (&[][..], 0),
            (&[7], 1),
            (&[1, 2, 3, 4], 4),
            (&[1, 2, 2], 3),    // two rounds
            (&[1, 2, 2, 2], 2), // three
            (&[5, 1, 2, 1, 2, 1, 2], 3),
            (&[5, 1, 2, 1, 2, 1, 2, 1], 3), // the last round is incomplete
            (&[1, 2, 1, 2, 1, 2, 9], 7),    // it goes on
            (&[4, 4, 4, 4, 4, 4], 1),
        ] {
            assert_eq!(first_repetition(text), expected, "{text:?}");
        }
    }
}
