//! The tokens declared in `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`, with the precedence of `PreTrainedTokenizerBase._from_pretrained` in
//! transformers 5. `docs/parity.md` states the rules.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::files::{ADDED_TOKENS, CONFIG, SPECIAL_TOKENS_MAP, SideFiles};
use super::token::{Flags, Token, not_a_token};
use crate::sanitize::sanitize;
use crate::{Error, Result};

/// The standard names of special tokens, in transformers' order.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", PAD, "cls_token", "mask_token"];
const PAD: &str = "pad_token";
const EXTRA: &str = "extra_special_tokens";
/// The name of `extra_special_tokens` before transformers 5.
const ADDITIONAL: &str = "additional_special_tokens";
const OWN: &str = "model_specific_special_tokens";
const WITH_IDS: &str = "added_tokens_decoder";

/// The tokens that the files besides `tokenizer.json` declare.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// Named tokens (`bos_token`): those of [`NAMES`] first, then names specific to the model.
    pub named: Vec<(String, Token)>,
    /// Special tokens without a name.
    pub extra: Vec<Token>,
    /// Tokens declared with an id.
    pub with_ids: BTreeMap<u32, Token>,
    /// The file `with_ids` comes from.
    pub ids_from: &'static str,
    /// Whether a file has a `pad_token` key, even with the value null.
    has_pad_key: bool,
    /// Declarations that are ignored because another one takes precedence.
    pub unread: Vec<Unread>,
}

/// A declaration that is ignored.
#[derive(Debug)]
pub(crate) struct Unread {
    pub file: &'static str,
    pub field: String,
    pub content: String,
    /// The id it is declared with.
    pub id: Option<u64>,
}

impl Declared {
    /// Reads the declarations of all files.
    ///
    /// # Errors
    /// A declaration is not a token.
    pub fn gather(side: &SideFiles) -> Result<Declared> {
        let mut declared = Declared::default();
        let mut from_map = HashSet::new();
        let mut given = Map::new();
        // Tokens under names specific to the model. The key `add_bos_token` also ends in `_token`,
        // but its value is not a string, so it names no token.
        let mut own = Map::new();
        for (key, value) in &side.config {
            if is_own_name(key) && value.is_string() {
                own.insert(key.clone(), value.clone());
            } else if is_own_name(key)
                || NAMES.contains(&&**key)
                || [EXTRA, ADDITIONAL].contains(&&**key)
            {
                given.insert(key.clone(), value.clone());
            }
        }
        if given.contains_key(ADDITIONAL) && !given.get(EXTRA).is_some_and(is_truthy) {
            let old = given.shift_remove(ADDITIONAL).unwrap_or_default();
            given.insert(EXTRA.to_owned(), old);
        }
        take_own_names(&mut given, &mut own);
        if own.is_empty() {
            match side.config.get(OWN) {
                None | Some(Value::Null) => {}
                Some(Value::Object(names)) => own = names.clone(),
                Some(_) => return Err(side.problem(CONFIG, OWN, "must be an object of tokens")),
            }
        }

        match side.config.get(WITH_IDS) {
            Some(tokens) => {
                declared.read_decoder(side, tokens)?;
                declared.mark_old_files_unread(side);
            }
            None => {
                if let Some(map) = &side.special_tokens_map {
                    declared.lay_map_over(map, &mut given, &mut from_map);
                    take_own_names(&mut given, &mut own);
                }
                declared.read_added_tokens(side, &given, &from_map)?;
            }
        }
        declared.has_pad_key = given.contains_key(PAD);
        declared.read_named(side, &given, &own, &from_map)?;
        declared.read_extra(side, &given)?;
        Ok(declared)
    }

    /// The text of the token with a standard name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, token) = self.named.iter().take(NAMES.len()).find(|(key, _)| key == name)?;
        Some(&token.content)
    }

    /// Sets the padding token if no file has a `pad_token` key.
    pub fn default_pad(&mut self, content: String) {
        if !self.has_pad_key {
            let before = |name: &String| NAMES[..4].contains(&&**name);
            let at = self.named.iter().take_while(|(name, _)| before(name)).count();
            self.named.insert(at, (PAD.to_owned(), Token { content, flags: None }));
        }
    }

    /// `added_tokens_decoder`: `{"32000": {"content": "<x>", …}}`.
    fn read_decoder(&mut self, side: &SideFiles, tokens: &Value) -> Result<()> {
        let Value::Object(tokens) = tokens else {
            return Err(side.problem(CONFIG, WITH_IDS, "must be an object of tokens by id"));
        };
        self.ids_from = CONFIG;
        let path = side.dir.join(CONFIG);
        for (id, token) in tokens {
            let field = format!("{WITH_IDS}.{id}");
            let Ok(id) = id.parse() else {
                let problem =
                    format!("must be keyed by token ids below 2³², not by `{}`", sanitize(id));
                return Err(side.problem(CONFIG, WITH_IDS, &problem));
            };
            let Value::Object(token) = token else { return Err(not_a_token(&path, &field)) };
            self.declare(CONFIG, id, Token::from_object(&path, &field, token)?);
        }
        Ok(())
    }

    /// Adds a token with an id. A later token replaces an earlier one with the same id.
    pub fn declare(&mut self, file: &'static str, id: u32, token: Token) {
        self.ids_from = file;
        let content = token.content.clone();
        if let Some(Token { content: old, .. }) = self.with_ids.insert(id, token)
            && old != content
        {
            let field = old.clone();
            self.unread.push(Unread { file, field, content: old, id: Some(id.into()) });
        }
    }

    /// `added_tokens.json`: `{"<x>": 32000}`.
    fn read_added_tokens(
        &mut self,
        side: &SideFiles,
        given: &Map<String, Value>,
        from_map: &HashSet<String>,
    ) -> Result<()> {
        let Some(tokens) = &side.added_tokens else { return Ok(()) };
        let named = NAMES.iter().filter_map(|name| match given.get(*name)? {
            Value::String(content) => Some(content),
            // transformers compares before it converts the objects of tokenizer_config.json to
            // tokens, so only objects of special_tokens_map.json count here.
            Value::Object(token) if from_map.contains(*name) => match token.get("content")? {
                Value::String(content) => Some(content),
                _ => None,
            },
            _ => None,
        });
        let extra = given.get(EXTRA).and_then(Value::as_array).into_iter().flatten();
        let special: HashSet<&str> = named
            .map(String::as_str)
            .chain(extra.filter_map(Value::as_str))
            .filter(|content| !content.is_empty())
            .collect();
        for (content, id) in tokens {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                return Err(side.problem(ADDED_TOKENS, content, "must be a token id below 2³²"));
            };
            let special = special.contains(content.as_str());
            let flags = Flags { normalized: Some(!special), special, ..Flags::default() };
            self.declare(ADDED_TOKENS, id, Token { content: content.clone(), flags: Some(flags) });
        }
        Ok(())
    }

    /// Without `added_tokens_decoder`, `special_tokens_map.json` overrides `tokenizer_config.json`.
    fn lay_map_over(
        &mut self,
        map: &Map<String, Value>,
        given: &mut Map<String, Value>,
        from_map: &mut HashSet<String>,
    ) {
        for (key, value) in map {
            let mut value = value.clone();
            if key == EXTRA {
                if let (Value::Array(more), Some(Value::Array(known))) =
                    (&mut value, given.get(EXTRA))
                {
                    let known = known.iter().cloned();
                    *more = known.chain(std::mem::take(more)).collect();
                }
            } else if is_own_name(key) || NAMES.contains(&&**key) {
                if let Value::Object(token) = &mut value {
                    token.insert("special".to_owned(), Value::Bool(true));
                }
                if let (Some(old), Some(content)) =
                    (given.get(key).and_then(content_of), content_of(&value))
                    && old != content
                {
                    let (field, content) = (key.clone(), old.to_owned());
                    self.unread.push(Unread { file: CONFIG, field, content, id: None });
                }
                from_map.insert(key.clone());
            } else if key != ADDITIONAL {
                continue;
            }
            given.insert(key.clone(), value);
        }
    }

    /// Records the declarations of the two older files as unread: `added_tokens_decoder` replaces
    /// them.
    fn mark_old_files_unread(&mut self, side: &SideFiles) {
        let file = SPECIAL_TOKENS_MAP;
        for (field, value) in side.special_tokens_map.iter().flatten() {
            let tokens = match value {
                Value::Array(tokens) => tokens.as_slice(),
                token => std::slice::from_ref(token),
            };
            self.unread.extend(tokens.iter().filter_map(content_of).map(|content| Unread {
                file,
                field: field.clone(),
                content: content.to_owned(),
                id: None,
            }));
        }
        self.unread.extend(side.added_tokens.iter().flatten().map(|(content, id)| Unread {
            file: ADDED_TOKENS,
            field: content.clone(),
            content: content.clone(),
            id: id.as_u64(),
        }));
    }

    /// Reads the named tokens: [`NAMES`] first, then other names of `given`, then those of `own`.
    fn read_named(
        &mut self,
        side: &SideFiles,
        given: &Map<String, Value>,
        own: &Map<String, Value>,
        from_map: &HashSet<String>,
    ) -> Result<()> {
        let mut named: Vec<(&str, Option<Token>)> = NAMES.map(|name| (name, None)).to_vec();
        let mut at: HashMap<&str, usize> = NAMES.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let mut set = |name, token| match at.get(name) {
            Some(i) => named[*i].1 = Some(token),
            None => {
                at.insert(name, named.len());
                named.push((name, Some(token)));
            }
        };
        let by_content: HashMap<&str, &Token> =
            self.with_ids.values().map(|token| (token.content.as_str(), token)).collect();
        for (name, value) in given.iter().filter(|(name, value)| {
            // Under a name specific to the model, an object is a token only if its `__type` is
            // `AddedToken` or if it comes from special_tokens_map.json.
            let tagged = value.get("__type").and_then(Value::as_str) == Some("AddedToken");
            let own =
                is_own_name(name) && (value.is_string() || tagged || from_map.contains(*name));
            !value.is_null() && (own || NAMES.contains(&&***name))
        }) {
            let file = if from_map.contains(name) { SPECIAL_TOKENS_MAP } else { CONFIG };
            let path = side.dir.join(file);
            let Some(token) = Token::parse(&path, name, value)? else {
                if is_own_name(name) {
                    continue;
                }
                return Err(not_a_token(&path, name));
            };
            // A named token has the flags that were declared together with its id.
            let flagged = by_content.get(token.content.as_str());
            let token = match flagged {
                Some(flagged) if !is_own_name(name) => (*flagged).clone(),
                _ => token,
            };
            set(name, token);
        }
        for (name, value) in own {
            let path = side.dir.join(CONFIG);
            let token =
                Token::parse(&path, name, value)?.ok_or_else(|| not_a_token(&path, name))?;
            set(name, token);
        }
        self.named =
            named.into_iter().filter_map(|(name, token)| Some((name.to_owned(), token?))).collect();
        Ok(())
    }

    fn read_extra(&mut self, side: &SideFiles, given: &Map<String, Value>) -> Result<()> {
        let (key, value) = match (given.get(EXTRA), given.get(ADDITIONAL)) {
            (Some(extra), unread) => {
                let unread = unread.and_then(Value::as_array).into_iter().flatten();
                self.unread.extend(unread.filter_map(content_of).map(|content| Unread {
                    file: side.file_with(ADDITIONAL),
                    field: ADDITIONAL.to_owned(),
                    content: content.to_owned(),
                    id: None,
                }));
                (EXTRA, extra)
            }
            (None, Some(additional)) => (ADDITIONAL, additional),
            (None, None) => return Ok(()),
        };
        let file = side.file_with(key);
        let tokens = match value {
            Value::Null => return Ok(()),
            Value::Array(tokens) => tokens,
            _ => return Err(side.problem(file, key, "must be a list of tokens")),
        };
        let path = side.dir.join(file);
        for (i, token) in tokens.iter().enumerate() {
            let field = format!("{key}[{i}]");
            let token = Token::parse(&path, &field, token)?;
            self.extra.push(token.ok_or_else(|| not_a_token(&path, &field))?);
        }
        Ok(())
    }
}

impl SideFiles {
    fn problem(&self, file: &str, field: &str, problem: &str) -> Error {
        Error::field(&self.dir.join(file), sanitize(field), problem)
    }

    /// The file that declares a list of special tokens.
    fn file_with(&self, key: &str) -> &'static str {
        let with_ids = self.config.contains_key(WITH_IDS);
        match self.special_tokens_map.as_ref().is_some_and(|map| map.contains_key(key)) {
            true if !with_ids => SPECIAL_TOKENS_MAP,
            _ => CONFIG,
        }
    }
}

/// Moves the entries of `extra_special_tokens` to `own` if it is an object: its keys are names
/// specific to the model.
fn take_own_names(given: &mut Map<String, Value>, own: &mut Map<String, Value>) {
    if given.get(EXTRA).is_some_and(Value::is_object)
        && let Some(Value::Object(names)) = given.shift_remove(EXTRA)
    {
        own.extend(names);
    }
}

fn is_own_name(key: &str) -> bool {
    key.ends_with("_token") && !NAMES.contains(&key)
}

/// The text of a token given as a string or an object.
fn content_of(value: &Value) -> Option<&str> {
    match value {
        Value::Object(token) => token.get("content")?.as_str(),
        other => other.as_str(),
    }
}

/// Python's truth value.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(value) => !value.is_empty(),
        Value::Object(value) => !value.is_empty(),
    }
}
