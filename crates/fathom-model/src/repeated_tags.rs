//! Finds tags that a prompt ends with and its output repeats, most often `<think>`.

use crate::sanitize::sanitize;

/// Longest tag name that is recognised, in characters.
const MAX_TAG: usize = 64;

/// Tags at the end of a prompt that are repeated at the start of its output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RepeatedTags<'a> {
    /// Length in bytes of the output's repeated beginning, white space included.
    pub bytes: usize,
    tags: &'a str,
}

impl RepeatedTags<'_> {
    /// The tags in backquotes, for a message.
    pub fn quoted(&self) -> String {
        format!("`{}`", sanitize(self.tags))
    }
}

/// Whether an output begins like a tag. If not, [`repeated_tags`] finds nothing for any prompt.
pub(crate) fn may_repeat_tags(output: &str) -> bool {
    output.trim_start().starts_with(['<', '['])
}

/// Finds the longest suffix of `prompt` that begins with a tag (`<think>`, `<|channel|>`,
/// `[THINK]`) and that `output` begins with. White space at the end of `prompt` and at the start of
/// `output` is ignored. Only whole tags count: a `>` that both share is not a match.
pub(crate) fn repeated_tags<'a>(prompt: &'a str, output: &str) -> Option<RepeatedTags<'a>> {
    let tags = prompt.trim_end();
    let space = &prompt[tags.len()..];
    let body = output.trim_start();
    // The first match is the longest.
    let starts = tags.match_indices(['<', '[']).map(|(at, _)| &tags[at..]);
    let tags = starts.filter(|rest| begins_with_tag(rest)).find(|rest| body.starts_with(rest))?;
    let after = &body[tags.len()..];
    let same = space.chars().zip(after.chars()).take_while(|(a, b)| a == b);
    let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
    Some(RepeatedTags { bytes: output.len() - after.len() + same, tags })
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
        repeated_tags(prompt, output).map_or(output, |repeated| &output[repeated.bytes..])
    }

    #[test]
    fn repeated_whole_tags_are_removed() {
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
    fn nothing_else_is_removed() {
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
