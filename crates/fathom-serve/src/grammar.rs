//! Constraints of texts to JSON, by llguidance.
//!
//! A grammar is compiled once, by the thread that receives the request; each text, and each of the
//! two models, then follows it with its own copy.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use fathom_decode::{Constraint, TokenMask};
use fathom_model::{Error, Result, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

/// Largest number of values (objects, arrays, strings, numbers, …) of a schema.
const MAX_SCHEMA_VALUES: usize = 20_000;

/// Largest number of bytes of all strings and keys of a schema.
const MAX_SCHEMA_BYTES: usize = 120_000;

/// Deepest nesting of a schema's objects and arrays.
const MAX_SCHEMA_DEPTH: usize = 64;

/// White space between two JSON tokens: a space, or a new line with its indentation, as
/// `json.dumps` writes them. A small model repeats what it may repeat.
const WHITESPACE: &str = r"(\x20|\x0A\x20{0,16})";

/// Compiles grammars for the tokens of one model. Clones share the tokens.
#[derive(Clone)]
pub struct Grammars {
    factory: Arc<ParserFactory>,
}

/// A compiled grammar.
pub struct Grammar {
    /// In its initial state.
    matcher: Mutex<Matcher>,
}

impl Grammars {
    /// For the tokens of `tokenizer` with ids < `vocab`; those of `eos` end a text. This visits the
    /// whole vocabulary, which takes about a second.
    ///
    /// # Errors
    /// No end-of-text token in the vocabulary, without which no constrained text could end.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<Grammars> {
        let eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let Some(&first) = eos.first() else {
            return Err(refused(
                "this model has no end-of-text token, so a text cannot be constrained to JSON",
            ));
        };
        let mut words: Vec<Vec<u8>> = tokenizer.bytes_of_tokens(vocab);
        // A token without bytes is never allowed, but llguidance needs bytes for those of `eos`.
        for &id in &eos {
            let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            word.extend_from_slice(format!("[{id}]").as_bytes());
            words[id as usize] = word;
        }
        let size =
            u32::try_from(words.len()).map_err(|_| refused("the vocabulary is too large"))?;
        let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&eos);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| refused(&sentence(error)))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Grammars { factory: Arc::new(factory) })
    }

    /// Any JSON object.
    ///
    /// # Errors
    /// None for a usable tokenizer.
    pub fn json_object(&self) -> Result<Grammar> {
        self.json_schema(&json!({"type": "object"}))
    }

    /// JSON that a schema describes: the subset of JSON Schema that llguidance implements. Objects
    /// have their properties in the order of the schema.
    ///
    /// # Errors
    /// A schema that is no object, too large, too deep, invalid, impossible to satisfy, or uses a
    /// keyword that is not supported.
    pub fn json_schema(&self, schema: &Value) -> Result<Grammar> {
        self.compile(TopLevelGrammar::from_json_schema(prepared(schema)?))
    }

    /// Text with any number of passages of JSON that `schema` describes, each between `open` and
    /// `close`; at most one if not `several`. `open` occurs nowhere else.
    ///
    /// # Errors
    /// As [`Grammars::json_schema`].
    pub fn json_between(
        &self,
        open: &str,
        close: &str,
        schema: &Value,
        several: bool,
    ) -> Result<Grammar> {
        let (open, close, schema) = (json!(open), json!(close), prepared(schema)?);
        let times = if several { "*" } else { "?" };
        // A lazy lexeme ends as soon as it can: text cannot run over `open`.
        self.compile(TopLevelGrammar::from_lark(format!(
            "start: passage{times} END\n\
             passage: opened SPACE %json {schema} SPACE {close}\n\
             opened[lazy]: TEXT {open}\n\
             SPACE: /[ \\n]{{0,4}}/\n\
             TEXT: /(?s:.*)/\n\
             END: /(?s:.*)/ & ~(/(?s:.*)/ {open} /(?s:.*)/)\n"
        )))
    }

    fn compile(&self, grammar: TopLevelGrammar) -> Result<Grammar> {
        let unusable =
            |problem: String| refused(&format!("the JSON schema cannot be used: {problem}"));
        let parser = llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.factory.create_parser(grammar)
        }));
        let mut matcher = Matcher::new(parser);
        if let Some(problem) = matcher.get_error() {
            return Err(unusable(sentence(problem)));
        }
        // A schema that nothing satisfies fails here, not in the middle of a batch.
        matcher.compute_mask().map_err(|error| unusable(sentence(error)))?;
        Ok(Grammar { matcher: Mutex::new(matcher) })
    }
}

impl Grammar {
    /// The constraint of a text that begins now.
    pub fn constraint(&self) -> Box<dyn Constraint> {
        // Nothing panics while it holds the lock.
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(Following { matcher: matcher.deep_clone(), after_end: 0 })
    }
}

/// A text that follows a grammar.
struct Following {
    matcher: Matcher,
    /// Tokens after the text was complete: end-of-text tokens.
    after_end: usize,
}

impl Following {
    /// Whether the text is complete, so that only an end-of-text token may follow.
    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

impl Constraint for Following {
    fn allowed(&mut self) -> Result<TokenMask> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        Ok(TokenMask::from_words(allowed.as_slice().to_vec()))
    }

    fn advance(&mut self, token: u32) -> Result<()> {
        if self.is_complete() {
            self.after_end += 1;
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(failed)
    }

    fn roll_back(&mut self, tokens: usize) -> Result<()> {
        let after_end = tokens.min(self.after_end);
        self.after_end -= after_end;
        self.matcher.rollback(tokens - after_end).map_err(failed)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        let (matcher, after_end) = (self.matcher.deep_clone(), self.after_end);
        Box::new(Following { matcher, after_end })
    }
}

/// A schema as llguidance gets it.
fn prepared(schema: &Value) -> Result<Value> {
    check_size(schema)?;
    let Value::Object(schema) = schema else {
        return Err(refused("the JSON schema is no object"));
    };
    if schema.contains_key("x-guidance") {
        return Err(refused(
            "the JSON schema has the keyword `x-guidance`, which is not supported",
        ));
    }
    let mut schema = schema.clone();
    schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITESPACE}));
    Ok(Value::Object(schema))
}

/// Checks the size and depth of a schema before anything else reads it.
fn check_size(schema: &Value) -> Result<()> {
    let (mut values, mut bytes) = (0, 0);
    let mut rest = vec![(schema, 1)];
    while let Some((value, depth)) = rest.pop() {
        values += 1;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => rest.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => {
                bytes += fields.keys().map(String::len).sum::<usize>();
                rest.extend(fields.values().map(|field| (field, depth + 1)));
            }
            _ => {}
        }
        for (what, size, most) in [
            ("values", values, MAX_SCHEMA_VALUES),
            ("levels", depth, MAX_SCHEMA_DEPTH),
            ("bytes of text", bytes, MAX_SCHEMA_BYTES),
        ] {
            if size > most {
                return Err(refused(&format!(
                    "the JSON schema is too large; expected at most {most} {what}"
                )));
            }
        }
    }
    Ok(())
}

fn refused(problem: &str) -> Error {
    Error::Request(problem.to_owned())
}

fn failed(error: impl Display) -> Error {
    Error::Request(format!("the text cannot go on under its grammar: {}", sentence(error)))
}

/// The first line of an error of llguidance; its state and backtrace follow in others.
fn sentence(error: impl Display) -> String {
    let text = error.to_string();
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("unknown");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}
