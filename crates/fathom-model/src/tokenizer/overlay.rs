//! Adds the declared tokens to the tokenizer of `tokenizer.json`, as transformers 5 does in
//! `TokenizersBackend`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use tokenizers::AddedToken;

use super::declared::{Declared, Unread};
use super::files::{ADDED_TOKENS, CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER};
use super::guarded;
use super::token::Token;
use crate::sanitize::sanitize;
use crate::{Error, Remark, Result};

/// Limit on the size of all added tokens: the bytes of their texts plus [`BYTES_EACH`] per token.
/// A hundred thousand tokens of ordinary length fit. The automaton that finds them in a text takes
/// about seventy times as much memory.
const MAX_BYTES: usize = 4 << 20;
const BYTES_EACH: usize = 16;

/// An entry of `added_tokens` in `tokenizer.json`.
#[derive(Deserialize)]
pub(super) struct AddedTokenEntry {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// Adds the declared tokens that `tokenizer.json` lacks, and sets the declared flags of those it
/// has.
///
/// New tokens get consecutive ids from the next free id on, regardless of the declared ids, as in
/// transformers and the `tokenizers` crate. An id that differs from the declared one causes a
/// remark, and so do changed flags, new tokens and ignored declarations. Returns the declarations,
/// completed by those of `tokenizer.json`, and the remarks.
///
/// # Errors
/// There are more than [`MAX_BYTES`] of new tokens, or the `tokenizers` crate rejects them.
pub(super) fn add_declared(
    inner: &mut tokenizers::Tokenizer,
    dir: &Path,
    mut declared: Declared,
    listed: Vec<AddedTokenEntry>,
) -> Result<(Declared, Vec<Remark>)> {
    let mut ids: Vec<(&'static str, u32, String)> =
        listed.iter().map(|listed| (TOKENIZER, listed.id, listed.token.content.clone())).collect();
    let from_file = declared.ids_from;
    ids.extend(declared.with_ids.iter().map(|(id, token)| (from_file, *id, token.content.clone())));
    let flags = changed_flags(inner, &declared);
    // Without added_tokens_decoder, transformers uses `added_tokens` of tokenizer.json instead.
    if from_file != CONFIG {
        for AddedTokenEntry { id, token } in &listed {
            declared.declare(ADDED_TOKENS, *id, Token::from(token));
        }
        let listed: HashSet<&str> = listed.iter().map(|listed| &*listed.token.content).collect();
        let held =
            |unread: &Unread| unread.file == ADDED_TOKENS && listed.contains(&*unread.content);
        declared.unread.retain(|unread| !held(unread));
    }

    let tokens = missing(inner, &declared);
    let known: HashSet<&str> = ids.iter().map(|(.., content)| content.as_str()).collect();
    let without_id: Vec<String> = tokens
        .iter()
        .filter(|token| !known.contains(&*token.content) && !token.content.is_empty())
        .filter(|token| inner.token_to_id(&token.content).is_none())
        .map(|token| token.content.clone())
        .collect();

    let new = tokens.iter().filter(|token| inner.token_to_id(&token.content).is_none());
    let (mut count, mut bytes) = (0, 0);
    new.for_each(|token| (count, bytes) = (count + 1, bytes + token.content.len() + BYTES_EACH));
    let highest = inner.get_added_vocabulary().get_added_tokens_decoder().keys().max();
    let room = u32::MAX - highest.copied().unwrap_or(0);
    if bytes > MAX_BYTES || count > room as usize {
        let problem = format!("cannot be extended by {count} tokens of {bytes} bytes: too many");
        return Err(Error::file(&dir.join(TOKENIZER), problem));
    }
    guarded(|| inner.add_tokens(tokens)).map_err(|problem| {
        let problem = format!("cannot be extended by the declared tokens: {problem}");
        Error::file(&dir.join(TOKENIZER), problem)
    })?;

    let mut remarks = Vec::new();
    let mut about = |kind, file: &str, found: Vec<String>, text: &str| {
        if let Some(first) = found.first() {
            let more = match found.len() {
                1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            remarks.push(Remark::file(kind, &dir.join(file), format!("{first}{more}: {text}")));
        }
    };
    for file in [TOKENIZER, CONFIG, ADDED_TOKENS] {
        let differ = ids.iter().filter_map(|(declared_in, id, content)| {
            let given = inner.token_to_id(content).filter(|given| given != id)?;
            (*declared_in == file).then(|| {
                format!("token `{}` is declared as id {id}, but gets id {given}", sanitize(content))
            })
        });
        let text = "ids are given in order from the end of the vocabulary, as transformers does";
        about("added-token-id", file, differ.collect(), text);
    }
    about(
        "added-token-flags",
        CONFIG,
        flags,
        "the flags given here are used, as transformers does",
    );
    let found = without_id.iter().map(|content| {
        let id =
            inner.token_to_id(content).map_or(String::new(), |id| format!("; it gets id {id}"));
        format!("token `{}` is named, but is not in {TOKENIZER}{id}", sanitize(content))
    });
    let text = "the model may never have seen it";
    about("added-token-new", CONFIG, found.collect(), text);
    for file in [CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS] {
        let differ = declared.unread.iter().filter(|unread| unread.file == file);
        let differ = differ.filter(|unread| is_missed(inner, &declared, unread)).map(|unread| {
            let id = unread.id.map_or(String::new(), |id| format!(" as id {id}"));
            format!("`{}` declares `{}`{id}", sanitize(&unread.field), sanitize(&unread.content))
        });
        let text = "not read, as in transformers, because another declaration takes precedence";
        about("unread-token", file, differ.collect(), text);
    }
    Ok((declared, remarks))
}

/// The tokens to add, in transformers' order: tokens declared with ids, then named tokens, then the
/// others.
fn missing(inner: &tokenizers::Tokenizer, declared: &Declared) -> Vec<AddedToken> {
    let held = inner.get_added_vocabulary().get_added_tokens_decoder();
    let mut tokens: Vec<&Token> = declared.with_ids.values().collect();
    let known: HashSet<&str> = held
        .values()
        .map(|token| token.content.as_str())
        .chain(tokens.iter().map(|token| token.content.as_str()))
        .collect();
    let mut seen: HashSet<&Token> = tokens.iter().copied().collect();
    let named = declared.named.iter().map(|(_, token)| token);
    for token in named.chain(&declared.extra) {
        if !known.contains(&*token.content) && seen.insert(token) {
            tokens.push(token);
        }
    }
    let names: HashSet<&str> = declared.named.iter().map(|(_, token)| &*token.content).collect();
    let special = |token: &Token| match token.flags {
        // Named tokens are always special.
        Some(mut flags) if names.contains(&*token.content) => {
            flags.special = true;
            Token { flags: Some(flags), ..token.clone() }.to_added()
        }
        _ => token.to_added(),
    };
    tokens.into_iter().map(special).collect()
}

/// Describes the tokens whose flags for matching (all but `special`) differ between
/// `added_tokens_decoder` and `tokenizer.json`.
fn changed_flags(inner: &tokenizers::Tokenizer, declared: &Declared) -> Vec<String> {
    if declared.ids_from != CONFIG {
        return Vec::new();
    }
    let held: HashMap<&str, &AddedToken> = inner
        .get_added_vocabulary()
        .get_added_tokens_decoder()
        .values()
        .map(|token| (token.content.as_str(), token))
        .collect();
    let matching =
        |token: &AddedToken| (token.single_word, token.lstrip, token.rstrip, token.normalized);
    let by_id: &BTreeMap<u32, Token> = &declared.with_ids;
    let changed = by_id.values().filter(|token| {
        held.get(&*token.content).is_some_and(|held| matching(held) != matching(&token.to_added()))
    });
    changed
        .map(|token| {
            format!("token `{}` has different flags in {TOKENIZER}", sanitize(&token.content))
        })
        .collect()
}

/// Whether an ignored declaration would have changed something.
fn is_missed(inner: &tokenizers::Tokenizer, declared: &Declared, unread: &Unread) -> bool {
    let given = inner.token_to_id(&unread.content);
    let other_name = unread.field.ends_with("_token")
        && unread.id.is_none()
        && declared.get(&unread.field) != Some(&*unread.content);
    let other_id = unread.id.is_some_and(|id| given.is_some_and(|given| u64::from(given) != id));
    given.is_none() || other_name || other_id
}
