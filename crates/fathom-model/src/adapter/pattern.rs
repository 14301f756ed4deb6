//! Regular expressions of configs, with the syntax of Python's `re`.

use fancy_regex::{Regex, RegexBuilder};

use crate::sanitize::sanitize;

/// Maximum length of a pattern in bytes.
const MAX_LEN: usize = 1 << 16;
/// Maximum backtracking steps of a match. Module names are short.
const MAX_BACKTRACKS: usize = 10_000;
/// Maximum size of a compiled pattern in bytes.
const MAX_COMPILED: usize = 1 << 20;

/// A compiled pattern. Error strings complete a sentence that begins with the field's name.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Matches where `re.fullmatch(pattern, …)` does.
    pub(super) fn whole(pattern: &str) -> Result<Pattern, String> {
        Pattern::within(r"\A(?:", pattern, r")\z")
    }

    /// Matches where PEFT's `get_pattern_key` does: a whole name, or its end after a dot.
    pub(super) fn ending(pattern: &str) -> Result<Pattern, String> {
        Pattern::within(r"\A(?:.*\.)?(?:", pattern, r")\z")
    }

    /// Matches a module that `pattern` names, or one inside it, as PEFT does for
    /// `modules_to_save`.
    pub(super) fn module(pattern: &str) -> Result<Pattern, String> {
        Pattern::within(r"\A(?:|.*\.)(?:", pattern, r")(?:\z|\.)")
    }

    /// Finds the number of the layer after `pattern`, as PEFT does with `layers_pattern`.
    pub(super) fn layer(pattern: &str) -> Result<Pattern, String> {
        Pattern::within(r"\A.*\.(?:", pattern, r")\.(\d+)\.")
    }

    fn within(before: &str, pattern: &str, after: &str) -> Result<Pattern, String> {
        if pattern.len() > MAX_LEN {
            return Err(format!("is {} bytes long, expected at most {MAX_LEN}", pattern.len()));
        }
        // Compiled alone first: `a)|(b` is invalid, but valid between `before` and `after`.
        compile(pattern)?;
        compile(&format!("{before}{pattern}{after}")).map(Pattern)
    }

    pub(super) fn is_match(&self, name: &str) -> Result<bool, String> {
        self.0.is_match(name).map_err(|error| failed(name, &error))
    }

    /// The number in the last group of a match.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, String> {
        let found = self.0.captures(name).map_err(|error| failed(name, &error))?;
        let last = found.and_then(|found| found.get(found.len() - 1));
        Ok(last.and_then(|group| group.as_str().parse().ok()))
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(pattern);
    builder.backtrack_limit(MAX_BACKTRACKS).delegate_size_limit(MAX_COMPILED);
    builder.build().map_err(|error| {
        let (pattern, error) = (sanitize(pattern), sanitize(&error.to_string()));
        format!("is not a usable regular expression, `{pattern}`: {error}")
    })
}

fn failed(name: &str, error: &fancy_regex::Error) -> String {
    format!("cannot be compared with `{}`: {}", sanitize(name), sanitize(&error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_where_pythons_do() {
        let q = "model.layers.11.self_attn.q_proj";
        for (pattern, whole, ending) in [
            // Expected values are from re.fullmatch and get_pattern_key of PEFT 0.17.1.
            ("q_proj", false, true),
            ("self_attn.q_proj", false, true),
            ("attn.q_proj", false, false),
            (r".*\.q_proj", true, true),
            (r"^model\.layers\.11\..*", true, true),
            (r"q_proj|v_proj", false, true),
            (r"model.layers.1.self_attn.q_proj", false, false),
            (r"(?!.*k_proj).*_proj$", true, true),
            (r"(?!.*q_proj).*_proj", false, false),
            (r".*\.\d+\..*(?<=q)_proj", true, true),
        ] {
            assert_eq!(Pattern::whole(pattern).unwrap().is_match(q), Ok(whole), "{pattern}");
            assert_eq!(Pattern::ending(pattern).unwrap().is_match(q), Ok(ending), "{pattern}");
        }
        assert_eq!(Pattern::layer("layers").unwrap().number(q), Ok(Some(11)));
        assert_eq!(Pattern::layer("[^.]*").unwrap().number(q), Ok(Some(11)));
        assert_eq!(Pattern::layer("blocks").unwrap().number(q), Ok(None));
        let module = |pattern| Pattern::module(pattern).unwrap().is_match(q).unwrap();
        assert_eq!(["q_proj", "layers.11", "proj", "1"].map(module), [true, true, false, false]);
    }

    #[test]
    fn patterns_that_cannot_be_used_are_refused() {
        for pattern in ["(", "a)|(b", "[", "*"] {
            let problem = Pattern::whole(pattern).unwrap_err();
            assert!(problem.starts_with("is not a usable regular expression"), "{problem}");
        }
        let problem = Pattern::whole(&"a".repeat(1 << 17)).unwrap_err();
        assert!(problem.contains("expected at most 65536"), "{problem}");
        // Memory and time are bounded.
        assert!(Pattern::whole("((a{1000}){1000}){1000}").is_err());
        let slow = Pattern::whole(r"(a|a|aa)*(?=b)\1*c").unwrap();
        assert!(slow.is_match(&"a".repeat(60)).unwrap_err().starts_with("cannot be compared"));
    }
}
