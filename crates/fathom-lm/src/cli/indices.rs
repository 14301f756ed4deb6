//! Lists of layers or positions on the command line: `3,17..22`, `-1`.

use std::str::FromStr;

use fathom_model::Error;

/// Comma-separated numbers and ranges: `3`, `17..22` (22 excluded), `17..=21`, `5..` (to the end).
/// Negative numbers count from the end, as in Python: `-1` is the last, `-3..` are the last three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indices(Vec<IndexRange>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct IndexRange {
    first: i64,
    end: RangeEnd,
    /// The range as typed, for messages.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeEnd {
    /// A single number.
    First,
    /// Up to the last.
    Open,
    Excluded(i64),
    Included(i64),
}

impl Indices {
    /// The indices below `limit`, ascending, without duplicates. `what` ("layer") is for messages.
    ///
    /// # Errors
    /// A number out of range, or an empty range.
    pub fn resolve(&self, what: &str, limit: usize) -> Result<Vec<usize>, Error> {
        let absent = |number: i64| {
            Error::Request(format!(
                "{what} {number} was asked for, but there are {limit}, counted from 0"
            ))
        };
        let count = i64::try_from(limit).unwrap_or(i64::MAX);
        let from_start = |number: i64| if number < 0 { number + count } else { number };
        let checked = |number: i64| match usize::try_from(from_start(number)) {
            Ok(index) if index < limit => Ok(index),
            _ => Err(absent(number)),
        };
        let mut numbers = Vec::new();
        for IndexRange { first, end, text } in &self.0 {
            let start = checked(*first)?;
            let end = match *end {
                RangeEnd::First => start + 1,
                RangeEnd::Open => limit,
                RangeEnd::Included(last) => checked(last)? + 1,
                RangeEnd::Excluded(end) if from_start(end) == count => limit,
                // The error names the last number of the range, which is the one out of range.
                RangeEnd::Excluded(end) if end > 0 => checked(end - 1)? + 1,
                RangeEnd::Excluded(end) => checked(end)?,
            };
            if start >= end {
                return Err(Error::Request(format!("the range `{text}` contains no {what}")));
            }
            numbers.extend(start..end);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// Whether any number counts from the end.
    pub fn counts_from_end(&self) -> bool {
        let negative = |range: &IndexRange| match range.end {
            RangeEnd::Excluded(end) | RangeEnd::Included(end) => range.first < 0 || end < 0,
            RangeEnd::First | RangeEnd::Open => range.first < 0,
        };
        self.0.iter().any(negative)
    }
}

impl FromStr for Indices {
    type Err = String;

    fn from_str(text: &str) -> Result<Indices, String> {
        text.split(',').map(|range| parse(range.trim())).collect::<Result<_, _>>().map(Indices)
    }
}

fn parse(range: &str) -> Result<IndexRange, String> {
    let error = || {
        format!(
            "`{range}` is neither a number nor a range such as `17..22`, `17..=21`, `17..` or \
             `-3..`"
        )
    };
    // The bound keeps later sums far from overflow.
    let number = |text: &str| {
        text.parse::<i64>().ok().filter(|n| n.unsigned_abs() < u64::MAX >> 2).ok_or_else(error)
    };
    let text = range.to_owned();
    let Some((first, end)) = range.split_once("..") else {
        return Ok(IndexRange { first: number(range)?, end: RangeEnd::First, text });
    };
    let first = number(first)?;
    let end = match end.strip_prefix('=') {
        _ if end.is_empty() => RangeEnd::Open,
        Some(end) => RangeEnd::Included(number(end)?),
        None => RangeEnd::Excluded(number(end)?),
    };
    let empty = match end {
        RangeEnd::Excluded(end) => (first < 0) == (end < 0) && first >= end,
        RangeEnd::Included(end) => (first < 0) == (end < 0) && first > end,
        RangeEnd::First | RangeEnd::Open => false,
    };
    match empty {
        true => Err(format!("the range `{range}` is empty")),
        false => Ok(IndexRange { first, end, text }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn resolve(text: &str, limit: usize) -> Result<Vec<usize>, String> {
        text.parse::<Indices>()?.resolve("layer", limit).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_ranges_mix() {
        assert_eq!(resolve("3,17..20", 48).unwrap(), [3, 17, 18, 19]);
        assert_eq!(resolve("1..=2, 0", 3).unwrap(), [0, 1, 2]);
        assert_eq!(resolve("2..,2", 4).unwrap(), [2, 3]);
    }

    #[test]
    fn negative_numbers_count_from_the_end() {
        assert_eq!(resolve("-1", 48).unwrap(), [47]);
        assert_eq!(resolve("-3..", 48).unwrap(), [45, 46, 47]);
        assert_eq!(resolve("-5..-1", 9).unwrap(), [4, 5, 6, 7]);
        assert_eq!(resolve("-2..=-1, 0", 9).unwrap(), [0, 7, 8]);
        assert_eq!(resolve("2..-1", 5).unwrap(), [2, 3]);
        assert_eq!(resolve("-2..5", 5).unwrap(), [3, 4]);
        assert_eq!(
            resolve("-5", 4).unwrap_err(),
            "layer -5 was asked for, but there are 4, counted from 0"
        );
        assert_eq!(resolve("3..-1", 4).unwrap_err(), "the range `3..-1` contains no layer");
        assert!(resolve("0..0", 4).is_err() && resolve("-1..0", 4).is_err());
        assert!("0,2..-1".parse::<Indices>().unwrap().counts_from_end());
        assert!(!"0,2..".parse::<Indices>().unwrap().counts_from_end());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(
            resolve("46..49", 48).unwrap_err(),
            "layer 48 was asked for, but there are 48, counted from 0"
        );
        assert!(resolve("9..", 4).unwrap_err().contains("layer 9 was asked for"));
        assert!(resolve(&format!("0..{}", usize::MAX - 1), 4).is_err());
    }

    #[test]
    fn a_syntax_error_names_the_range_that_is_wrong() {
        for bad in [
            "",
            "a",
            "1,,2",
            "3..1",
            "2..2",
            "--1",
            "-1..-1",
            "1...3",
            "1..=",
            &usize::MAX.to_string(),
        ] {
            assert!(bad.parse::<Indices>().is_err(), "{bad}");
        }
        assert!("1,x..3".parse::<Indices>().unwrap_err().contains("`x..3`"));
    }
}
