//! Numbers as text.

/// A share in percent with up to two decimals: `82.55%`, `74%`, `100%`.
pub fn percent(share: f64) -> String {
    format!("{}%", trim(format!("{share:.2}")))
}

/// `1 trace`, `30 traces`.
pub fn plural(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {what}{s}", grouped(count))
}

/// `12 345 678`.
pub(crate) fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A factor with up to two decimals, or in scientific notation from a million on.
pub(crate) fn factor(x: f32) -> String {
    if x < 1e6 { trim(format!("{x:.2}")) } else { format!("{x:.1e}") }
}

/// Ascending numbers as ranges: `3–8, 10`.
pub(crate) fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let text = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}–{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn trim(decimal: String) -> String {
    decimal.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper prints shares both with and without trailing zeros; we print them without.
    #[test]
    fn shares_have_up_to_two_decimals() {
        let shares = [100.0, 0.0, 74.0, 99.53, 100.0 * 5.0 / 39.0, 100.0 / 3.0, 0.001];
        let expected = ["100%", "0%", "74%", "99.53%", "12.82%", "33.33%", "0%"];
        assert_eq!(shares.map(percent), expected);
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 12_345_678].map(grouped), ["0", "999", "1 000", "12 345 678"]);
        assert_eq!((plural(1, "trace"), plural(0, "trace")), ("1 trace".into(), "0 traces".into()));
    }

    #[test]
    fn ranges_join_neighbours() {
        assert_eq!(ranges(&[3, 4, 5, 8, 10, 11]), "3–5, 8, 10–11");
        assert_eq!((ranges(&[]), ranges(&[7])), (String::new(), "7".to_owned()));
    }

    #[test]
    fn factors_are_short() {
        assert_eq!([1.0, 1.504, f32::MAX].map(factor), ["1", "1.5", "3.4e38"]);
    }
}
