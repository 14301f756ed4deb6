//! Lists of layers and positions as people type them: `3,17..22`.

use std::ops::Range;
use std::str::FromStr;

use fathom_model::Error;

/// Numbers and ranges, comma separated: `3`, `17..22` (22 excluded), `17..=21`, `5..` (to the end).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indices(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Range(Range<usize>),
    From(usize),
}

impl Indices {
    /// The numbers themselves, ascending and each once. `what` ("layer") and `limit` (how many there
    /// are) bound them, so that a typo cannot ask for a list that fills the memory.
    ///
    /// # Errors
    /// A number that is not below `limit`.
    pub fn resolve(&self, what: &str, limit: usize) -> Result<Vec<usize>, Error> {
        let mut numbers = Vec::new();
        for part in &self.0 {
            let range = match part {
                Part::Range(range) => range.clone(),
                Part::From(start) => *start..limit.max(start + 1),
            };
            if range.end > limit {
                return Err(Error::Request(format!(
                    "{what} {} was asked for, but there are {limit}, counted from 0",
                    range.end - 1
                )));
            }
            numbers.extend(range);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }
}

impl FromStr for Indices {
    type Err = String;

    fn from_str(text: &str) -> Result<Indices, String> {
        text.split(',').map(|part| parse(part.trim())).collect::<Result<_, _>>().map(Indices)
    }
}

fn parse(part: &str) -> Result<Part, String> {
    let error = || {
        format!("`{part}` is neither a number nor a range such as `17..22`, `17..=21` or `17..`")
    };
    // One below the largest, so that a range can end behind it.
    let number = |text: &str| text.parse().ok().filter(|n| *n < usize::MAX).ok_or_else(error);
    let Some((start, end)) = part.split_once("..") else {
        let number = number(part)?;
        return Ok(Part::Range(number..number + 1));
    };
    let start = number(start)?;
    let range = match end.strip_prefix('=') {
        _ if end.is_empty() => return Ok(Part::From(start)),
        Some(end) => start..number(end)? + 1,
        None => start..number(end)?,
    };
    match range.is_empty() {
        true => Err(format!("the range `{part}` holds nothing")),
        false => Ok(Part::Range(range)),
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
    fn what_is_not_there_is_refused() {
        assert_eq!(
            resolve("46..49", 48).unwrap_err(),
            "layer 48 was asked for, but there are 48, counted from 0"
        );
        assert!(resolve("9..", 4).unwrap_err().contains("layer 9 was asked for"));
        assert!(resolve(&format!("0..{}", usize::MAX - 1), 4).is_err());
    }

    #[test]
    fn nonsense_is_refused_with_the_part_that_is_wrong() {
        for bad in ["", "a", "1,,2", "3..1", "2..2", "-1", "1...3", "1..=", &usize::MAX.to_string()]
        {
            assert!(bad.parse::<Indices>().is_err(), "{bad}");
        }
        assert!("1,x..3".parse::<Indices>().unwrap_err().contains("`x..3`"));
    }
}
