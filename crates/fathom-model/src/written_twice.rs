//! What a prompt ends with and an output begins with: `<think>`, most often.

use crate::sanitize::sanitize;

/// Longest tag that is looked for.
const MAX_TAG: usize = 64;

/// A beginning of an output that its prompt ends with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrittenTwice<'a> {
    /// How much of the output's beginning is there already.
    pub bytes: usize,
    tags: &'a str,
}

impl WrittenTwice<'_> {
    /// It, for a message.
    pub fn shown(&self) -> String {
        format!("`{}`", sanitize(self.tags))
    }
}

/// Whether an output begins as a tag does: worth looking at the end of its prompt for.
pub(crate) fn may_be_written_twice(output: &str) -> bool {
    output.trim_start().starts_with(['<', '['])
}

/// Finds tags (`<think>`, `<|channel|>`, `[THINK]`) from which on `prompt`, but for white space at
/// its end, is what `output` begins with. Only whole tags count: a prompt that ends with `>` and an
/// output that begins with `>` have nothing in common.
pub(crate) fn written_twice<'a>(prompt: &'a str, output: &str) -> Option<WrittenTwice<'a>> {
    let tags = prompt.trim_end();
    let space = &prompt[tags.len()..];
    let body = output.trim_start();
    // The first such place is the longest.
    let starts = tags.match_indices(['<', '[']).map(|(at, _)| &tags[at..]);
    let tags = starts.filter(|rest| begins_with_tag(rest)).find(|rest| body.starts_with(rest))?;
    let after = &body[tags.len()..];
    let same = space.chars().zip(after.chars()).take_while(|(a, b)| a == b);
    let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
    Some(WrittenTwice { bytes: output.len() - after.len() + same, tags })
}

/// Whether a text begins with a tag in angle or square brackets.
fn begins_with_tag(text: &str) -> bool {
    let close = if text.starts_with('<') { '>' } else { ']' };
    let inside = |c: &char| !c.is_whitespace() && !matches!(c, '<' | '>' | '[' | ']');
    let name = text.chars().skip(1).take(MAX_TAG).take_while(inside).count();
    name > 0 && text.chars().nth(1 + name) == Some(close)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rest<'a>(prompt: &str, output: &'a str) -> &'a str {
        written_twice(prompt, output).map_or(output, |twice| &output[twice.bytes..])
    }

    #[test]
    fn whole_tags_that_are_there_already() {
        for (prompt, output, expected) in [
            ("<｜Assistant｜><think>\n", "<think>\nSix", "Six"),
            ("<｜Assistant｜><think>\n", "<think>\n\nSix", "\nSix"),
            ("<｜Assistant｜><think>\n", "<think>Six", "Six"),
            ("<｜Assistant｜><think>\n", "\n<think>\nSix", "Six"),
            ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\nSix", "Six"),
            ("[/INST][THINK]", "[THINK]Six", "Six"),
            ("<|start|>assistant", "<|start|>assistant<|channel|>", "<|channel|>"),
        ] {
            assert_eq!(rest(prompt, output), expected, "{prompt:?} {output:?}");
        }
    }

    #[test]
    fn nothing_else_is_taken_off() {
        for (prompt, output) in [
            ("<|im_start|>assistant\n", "\nSix"),
            ("<|im_start|>assistant\n", "assistant\n"),
            ("<think>\n", "Six <think>"),
            ("<think>\n\n</think>\n\n", "<think>\nSix"),
            ("a <b> c>", "> quoted"),
            ("<think>", "<thinking>"),
            ("<>", "<>"),
            ("", "<think>"),
            ("<think>", ""),
        ] {
            assert_eq!(rest(prompt, output), output, "{prompt:?} {output:?}");
        }
    }
}
