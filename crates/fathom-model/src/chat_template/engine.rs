//! Runs one template inside its bounds.

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

/// The longest published template is below 30 KB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Tokens of one `{{ … }}` or `{% … %}`, and `elif`s of one template: both nest in the syntax tree.
const MAX_NESTING_TOKENS: usize = 2000;
/// Steps a template may take whatever the conversation; real ones take some hundred per message.
const BASE_STEPS: u64 = 1_000_000;
const STEPS_PER_MESSAGE: u64 = 10_000;
/// Bytes a template may build or look through; real ones go through a conversation a few times.
const BASE_BYTES: u64 = 32 << 20;
const BYTES_PER_INPUT_BYTE: u64 = 256;
/// Macros calling macros, blocks in blocks: four levels for a macro, one for a block.
const MAX_RECURSION: usize = 240;
/// Room for all the recursion allowed above, whatever thread rendering was asked on.
const STACK_BYTES: usize = 64 << 20;

const WHITESPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// Renders a template; the error completes the sentence "the chat template …".
pub(super) fn run(
    source: &str,
    variables: &Map<String, serde_json::Value>,
    date: jiff::civil::Date,
) -> Result<String, String> {
    // The stack of the calling thread may be small and a template nests as deeply as it may.
    thread::scope(|scope| {
        let render = || render(source, variables, date).map_err(describe);
        match thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, render) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err("cannot be rendered".to_owned())),
            Err(error) => Err(format!(
                "cannot be rendered, for no thread can be started: {error}; is the limit on processes \
                 reached?"
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
    // Jinja2 reads every kind of line end as `\n`, in text and in literals.
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

/// `{% generation %}` marks what the assistant says, for training. Rendering needs it gone, with
/// what its tags do to the white space around them.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let Ok(tag) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else {
        return Cow::Borrowed(source);
    };
    tag.replace_all(source, |found: &regex::Captures| {
        let tag = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {tag} {}%}}", &found[1], &found[3])
    })
}

/// Refuses what would nest too deeply (long expressions are deep trees, and so are chains of
/// `elif`), and statements about other templates.
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
                let problem = format!("uses `{name}`, but there are no other templates");
                return Err(Error::new(ErrorKind::SyntaxError, problem));
            }
            _ => {}
        }
        tag_begins = matches!(token, Token::BlockStart);
        tokens += 1;
        if tokens > MAX_NESTING_TOKENS || elifs > MAX_NESTING_TOKENS {
            let problem = format!("has too long an expression in line {}", span.start_line);
            return Err(Error::new(ErrorKind::SyntaxError, problem));
        }
    }
    Ok(())
}

/// A Jinja error as the rest of a sentence.
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
        ErrorKind::OutOfFuel => format!("takes too many steps: a loop without end?{place}"),
        ErrorKind::SyntaxError => format!("is not valid: {detail}{place}"),
        _ => format!("fails: {detail}{place}"),
    }
}
