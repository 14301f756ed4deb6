//! Runs a template within its limits.

use std::borrow::Cow;
use std::error::Error as _;
use std::thread;

use minijinja::machinery::{
    CodeGenerator, Span, Token, Vm, WhitespaceConfig, make_string_output, parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Error, ErrorKind, Value};
use regex::Regex;
use serde_json::Map;

use super::budget::{Budget, Stop};
use super::environment::environment;
use super::instrument;
use crate::sanitize::sanitize;

/// Maximum length of a template; the longest published one is below 30 KB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Maximum number of tokens in one `{{ … }}` or `{% … %}`, and of `elif`s in a template. Both can
/// nest that deep in the syntax tree.
const MAX_NESTING_TOKENS: usize = 2000;
/// Instruction limit of a rendering; published templates take a few hundred per message.
const BASE_STEPS: u64 = 1_000_000;
const STEPS_PER_MESSAGE: u64 = 10_000;
/// Limit on the bytes built or read; published templates read a conversation a few times.
const BASE_BYTES: u64 = 32 << 20;
const BYTES_PER_INPUT_BYTE: u64 = 256;
/// Maximum recursion of the engine: a macro call counts as four levels, a block as one.
const MAX_RECURSION: usize = 240;
/// Stack size of the rendering thread, enough for the nesting and recursion allowed above.
const STACK_BYTES: usize = 64 << 20;

const WHITESPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// Renders a template; the error completes the sentence "the chat template …".
pub(super) fn run(
    source: &str,
    variables: &Map<String, serde_json::Value>,
    date: jiff::civil::Date,
) -> Result<String, String> {
    // The calling thread's stack may be too small for a deeply nested template.
    thread::scope(|scope| {
        let render = || render(source, variables, date).map_err(describe);
        match thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, render) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err("cannot be rendered".to_owned())),
            Err(error) => Err(format!(
                "cannot be rendered because no thread can be started: {error}; is the limit on \
                 processes reached?"
            )),
        }
    })
}

fn render(
    source: &str,
    variables: &Map<String, serde_json::Value>,
    date: jiff::civil::Date,
) -> Result<String, Error> {
    if source.len() > MAX_SOURCE_BYTES {
        let problem = format!("is larger than {} KiB", MAX_SOURCE_BYTES >> 10);
        return Err(Error::new(ErrorKind::SyntaxError, problem));
    }
    // Jinja2 converts all line endings to `\n`, in text and in literals.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = without_generation_tags(&source);
    check_tokens(&source)?;

    let root = Value::from_serialize(variables);
    let unlimited = Budget::new(u64::MAX);
    unlimited.charge(&root)?;
    let input_bytes = unlimited.used(u64::MAX);
    let budget = Budget::new(BASE_BYTES + input_bytes.saturating_mul(BYTES_PER_INPUT_BYTE));
    let messages = variables.get("messages").and_then(|messages| messages.as_array());
    let messages = messages.map_or(0, Vec::len) as u64;

    let mut env = environment(&budget, date);
    env.set_fuel(Some(BASE_STEPS + messages.saturating_mul(STEPS_PER_MESSAGE)));
    env.set_recursion_limit(MAX_RECURSION);

    let tree = parse(&source, "chat template", SyntaxConfig, WHITESPACE)?;
    if instrument::has_loose_jump(std::slice::from_ref(&tree), false) {
        let problem = "a `break` or `continue` has no loop directly around it";
        return Err(Error::new(ErrorKind::SyntaxError, problem));
    }
    let tree = instrument::statement(&tree);
    let mut generator = CodeGenerator::new("chat template", &source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    Vm::new(&env).eval(&instructions, root, &blocks, &mut output, AutoEscape::None)?;
    Ok(text)
}

/// Replaces the tags of `{% generation %}` blocks, which mark the assistant's text for training, by
/// tags of `{% if true %}`. Removing them would change the text, because tags also strip white
/// space.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let Ok(tag) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else {
        return Cow::Borrowed(source);
    };
    tag.replace_all(source, |found: &regex::Captures| {
        let tag = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {tag} {}%}}", &found[1], &found[3])
    })
}

/// Rejects long expressions and long chains of `elif`, whose syntax trees would be too deep, and
/// statements that refer to other templates.
fn check_tokens(source: &str) -> Result<(), Error> {
    let (mut tokens, mut elifs) = (0, 0);
    let mut tag_begins = false;
    for token in tokenize(source, false, SyntaxConfig, WHITESPACE) {
        let (token, span): (Token, Span) = token?;
        match token {
            Token::VariableStart | Token::BlockStart => tokens = 0,
            Token::Ident("elif") => elifs += 1,
            Token::Ident(name @ ("block" | "extends" | "from" | "import" | "include"))
                if tag_begins =>
            {
                let problem = format!("uses `{name}`, but there are no other templates to load");
                return Err(Error::new(ErrorKind::SyntaxError, problem));
            }
            _ => {}
        }
        tag_begins = matches!(token, Token::BlockStart);
        tokens += 1;
        if tokens > MAX_NESTING_TOKENS || elifs > MAX_NESTING_TOKENS {
            let problem = format!("has an expression that is too long in line {}", span.start_line);
            return Err(Error::new(ErrorKind::SyntaxError, problem));
        }
    }
    Ok(())
}

/// A Jinja error, worded to complete the sentence "the chat template …".
fn describe(error: Error) -> String {
    let place = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    let mut source = error.source();
    while let Some(cause) = source {
        match cause.downcast_ref::<Stop>() {
            Some(Stop::Refused(message)) => {
                return format!("refuses the conversation: {}", sanitize(message));
            }
            Some(stop) => return format!("{stop}{place}"),
            None => source = cause.source(),
        }
    }
    let detail = error.detail().map_or_else(|| error.kind().to_string(), sanitize);
    match error.kind() {
        ErrorKind::OutOfFuel => format!("takes too many steps: an endless loop?{place}"),
        ErrorKind::SyntaxError => format!("is not valid: {detail}{place}"),
        _ => format!("fails: {detail}{place}"),
    }
}
