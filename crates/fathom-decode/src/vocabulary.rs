//! Comparison of the vocabularies of target and draft.

use fathom_model::{Error, Result};

/// Size of the shared vocabulary: ids below it are the same token in both models. Vocabularies are
/// compared by token strings, because the widths of the logits include padding.
///
/// `target` and `draft` return the token string of an id, `None` if it has none. `ids` is the
/// number of ids to compare.
///
/// # Errors
/// Different vocabularies; the message has the first different id.
pub fn shared_vocabulary(
    target: impl Fn(u32) -> Option<String>,
    draft: impl Fn(u32) -> Option<String>,
    ids: u32,
) -> Result<usize> {
    let mut shared = 0;
    for id in 0..ids {
        let (in_target, in_draft) = (target(id), draft(id));
        if in_target != in_draft {
            let name = |token: Option<String>| {
                token.map_or("no token".to_owned(), |token| format!("`{token}`"))
            };
            return Err(Error::Request(format!(
                "the draft's tokenizer is not the target's: id {id} is {} in the target and {} in \
                 the draft; expected the same vocabulary",
                name(in_target),
                name(in_draft),
            )));
        }
        if in_target.is_some() {
            shared = id as usize + 1;
        }
    }
    Ok(shared)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &'static [&'static str]) -> impl Fn(u32) -> Option<String> {
        |id| tokens.get(id as usize).filter(|token| !token.is_empty()).map(|&token| token.into())
    }

    #[test]
    fn padding_is_no_difference_and_no_token() {
        let tokens = vocabulary(&["a", "b", "", "<eos>"]); // id 2 is a gap, 4.. is padding
        assert_eq!(shared_vocabulary(&tokens, &tokens, 152_064).unwrap(), 4);
    }

    #[test]
    fn the_first_difference_is_named() {
        let message = |draft| {
            let target = vocabulary(&["a", "b", "c"]);
            shared_vocabulary(target, vocabulary(draft), 8).unwrap_err().to_string()
        };
        let swapped = message(&["a", "c", "b"]);
        assert!(swapped.contains("id 1 is `b` in the target and `c` in the draft"), "{swapped}");
        let shorter = message(&["a", "b"]);
        assert!(shorter.contains("id 2 is `c` in the target and no token"), "{shorter}");
        let longer = message(&["a", "b", "c", "d"]);
        assert!(longer.contains("id 3 is no token in the target and `d`"), "{longer}");
    }
}
