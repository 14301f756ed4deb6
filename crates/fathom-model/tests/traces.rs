//! Trace and prompt files: valid and invalid lines, error messages, and the resulting ids.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fathom_model::{
    ChatTemplate, Prompt, PromptContent, RenderOptions, SpecialTokens, TextEncoder, Tokenizer,
    Trace, TraceContent, TraceReader, read_prompts,
};
use proptest::prelude::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tokenizer");

fn read(bytes: &[u8]) -> Result<Vec<Trace>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("traces.jsonl");
    fs::write(&path, bytes).unwrap();
    let traces: fathom_model::Result<Vec<Trace>> = TraceReader::open(&path).unwrap().collect();
    traces.map_err(|error| error.to_string())
}

fn refused(line: &[u8]) -> String {
    let mut bytes = b"{\"input_ids\": [1]}\n\n".to_vec();
    bytes.extend_from_slice(line);
    let message = read(&bytes).unwrap_err();
    assert!(message.contains("traces.jsonl: line 3: "), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

fn prompt(source: &str) -> Result<Prompt, String> {
    Prompt::parse(Path::new("p.jsonl"), 1, source).map_err(|error| error.to_string())
}

#[test]
fn published_traces_load_as_they_are() {
    let reader = TraceReader::open(Path::new(&format!("{DATA}/traces/published.jsonl"))).unwrap();
    let traces: Vec<Trace> = reader.map(Result::unwrap).collect();
    assert_eq!(traces.iter().map(|trace| trace.index).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(traces.iter().map(|trace| trace.line).collect::<Vec<_>>(), [1, 2, 3]);
    let TraceContent::Text { prompt, output } = &traces[0].content else { panic!("not text") };
    assert!(prompt.starts_with("You are given a math problem.\n\nProblem: Every morning"));
    assert!(output.starts_with(".\n\nOkay, so I have this math problem"));
}

#[test]
fn explicit_ids() {
    let traces = read(
        b"\xEF\xBB\xBF{\"input_ids\": [1, 4294967295], \"prompt_len\": 1, \
          \"more\": {\"x\": []}}\r\n\
          \r\n  \n{\"id\": 7, \"input_ids\": [3], \"prompt\": null}",
    )
    .unwrap();
    let ids = |input_ids, prompt_len| TraceContent::Ids { input_ids, prompt_len };
    assert_eq!(traces[0].content, ids(vec![1, u32::MAX], 1));
    assert_eq!((traces[0].line, traces[0].index), (1, 0));
    assert_eq!(traces[1].content, ids(vec![3], 0));
    assert_eq!((traces[1].line, traces[1].index), (4, 7));
    let index = |line: &str| read(line.as_bytes()).unwrap()[0].index;
    assert_eq!(index(r#"{"index": 4, "sample_idx": 5, "id": 6, "input_ids": [1]}"#), 4);
    assert_eq!(index(r#"{"sample_idx": 5, "id": 6, "input_ids": [1]}"#), 5);
    assert_eq!(index(r#"{"index": "x", "id": -3, "input_ids": [1]}"#), 0);
}

#[test]
fn lines_that_are_not_traces_are_refused() {
    for (line, expected) in [
        ("nonsense", "is not valid JSON (column"),
        ("{\"prompt\": \"a\"", "is not valid JSON (column"),
        ("[1, 2]", "must be a JSON object"),
        ("3", "must be a JSON object"),
        ("{}", "has neither `input_ids` nor `prompt` and `output`; a trace is"),
        (r#"{"prompt": "a"}"#, "has `prompt` but no `output`"),
        (r#"{"output": "a"}"#, "has `output` but no `prompt`"),
        (r#"{"prompt": "", "output": ""}"#, "are both empty"),
        (r#"{"prompt": 3, "output": ""}"#, "`prompt` must be a string"),
        (r#"{"prompt": "a", "output": [3]}"#, "`output` must hold texts or messages"),
        (r#"{"input_ids": []}"#, "`input_ids` is empty"),
        (r#"{"input_ids": "1 2"}"#, "`input_ids` must be a list of token ids"),
        (r#"{"input_ids": [1, -2]}"#, "found -2, which is negative"),
        (r#"{"input_ids": [1, 2.5]}"#, "found 2.5, which is not a token id"),
        (r#"{"input_ids": [1, "2"]}"#, "`input_ids` must be a list of token ids"),
        (r#"{"input_ids": [[1], 2]}"#, "`input_ids` must be a list of token ids"),
        (r#"{"input_ids": [4294967296]}"#, "found 4294967296, which is too large"),
        (r#"{"input_ids": [99999999999999999999]}"#, "found 100000000000000000000, which"),
        (r#"{"input_ids": [1], "prompt_len": 2}"#, "`prompt_len` is 2 but there are only 1"),
        (r#"{"input_ids": [1], "prompt_len": -1}"#, "`prompt_len` must be a whole number"),
    ] {
        let message = refused(line.as_bytes());
        assert!(message.contains(expected), "{line}: {message}");
    }
    assert!(refused(b"{\"prompt\": \"\xff\"}").contains("is not UTF-8 text (byte 12)"));
    let deep = format!("{{\"input_ids\": {}", "[".repeat(100_000));
    refused(deep.as_bytes());
}

#[test]
fn endless_lines_are_refused_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("traces.jsonl");
    // Sparse: takes no disk.
    fs::File::create(&path).unwrap().set_len(1 << 32).unwrap();
    let message = TraceReader::open(&path).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(message.contains("line 1: is longer than 64 MiB"), "{message}");
}

#[test]
fn files_that_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let message = TraceReader::open(&dir.path().join("none.jsonl")).err().unwrap().to_string();
    assert!(message.contains("none.jsonl: cannot be opened"), "{message}");
    let message = TraceReader::open(dir.path()).err().unwrap().to_string();
    assert!(message.contains("is a directory"), "{message}");
}

fn byte_level() -> Tokenizer {
    Tokenizer::from_dir(Path::new(FIXTURE)).unwrap()
}

fn encoder<'a>(
    tokenizer: Option<&'a Tokenizer>,
    template: Option<&'a ChatTemplate>,
) -> TextEncoder<'a> {
    TextEncoder { tokenizer, template, render: RenderOptions::default(), vocab_size: 4096 }
}

fn text(prompt: &str, output: &str) -> Trace {
    let content = TraceContent::Text { prompt: prompt.to_owned(), output: output.to_owned() };
    Trace { path: "t.jsonl".into(), line: 5, index: 4, content }
}

#[test]
fn text_through_the_chat_template() {
    let tokenizer = byte_level();
    let template = ChatTemplate::from_dir(Path::new(FIXTURE)).unwrap().unwrap();
    let trace = text("Hi", "Hello").token_ids(&encoder(Some(&tokenizer), Some(&template))).unwrap();
    let whole = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello";
    assert_eq!(tokenizer.decode(&trace.ids).unwrap(), whole);
    assert_eq!(tokenizer.decode(&trace.ids[trace.prompt_len..]).unwrap(), "Hello");
    assert_eq!(trace.ids[0], 1, "<|im_start|> is one token");
    assert_eq!((trace.index, trace.line), (4, 5));
}

#[test]
fn text_without_a_template() {
    let tokenizer = byte_level();
    let trace = text("Hi", " there").token_ids(&encoder(Some(&tokenizer), None)).unwrap();
    assert_eq!(tokenizer.decode(&trace.ids).unwrap(), "Hi there");
    // Special tokens written in the prompt are recognised.
    let trace =
        text("<|im_start|>user\nHi", "").token_ids(&encoder(Some(&tokenizer), None)).unwrap();
    assert_eq!(trace.ids[0], 1);
    assert_eq!(trace.prompt_len, trace.ids.len());
}

/// A Llama-like directory: the tokenizer adds BOS and so does the template.
#[test]
fn one_bos_with_a_template_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    fs::copy(format!("{DATA}/tokenizers/metaspace.json"), file("tokenizer.json")).unwrap();
    fs::write(file("tokenizer_config.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)
        .unwrap();
    fs::copy(format!("{DATA}/chat_templates/llama2.jinja"), file("chat_template.jinja")).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let template = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
    let bos = tokenizer.bos_id().unwrap();
    for template in [Some(&template), None] {
        let trace = text("the fox", "dog").token_ids(&encoder(Some(&tokenizer), template)).unwrap();
        assert_eq!(trace.ids.iter().filter(|id| **id == bos).count(), 1);
        assert_eq!(trace.ids[0], bos);
    }
    let message =
        text("<s>the fox", "dog").token_ids(&encoder(Some(&tokenizer), None)).unwrap_err();
    let message = message.to_string();
    assert!(
        message.starts_with("t.jsonl: line 5: the token ids begin with BOS (1) twice"),
        "{message}"
    );
}

fn ids_trace(input_ids: &[u32]) -> Trace {
    let content = TraceContent::Ids { input_ids: input_ids.to_vec(), prompt_len: 1 };
    Trace { path: "t.jsonl".into(), line: 5, index: 4, content }
}

#[test]
fn ids_outside_the_vocabulary() {
    let trace = ids_trace(&[1, 4095]).token_ids(&encoder(None, None)).unwrap();
    assert_eq!((trace.ids, trace.prompt_len), (vec![1, 4095], 1));
    let message = ids_trace(&[1, 2, 4096]).token_ids(&encoder(None, None)).unwrap_err().to_string();
    assert_eq!(
        message,
        "t.jsonl: line 5: token id 4096 at position 2 is outside the model's vocabulary of 4096"
    );
}

#[test]
fn text_needs_a_tokenizer() {
    let message = text("a", "b").token_ids(&encoder(None, None)).unwrap_err().to_string();
    assert!(message.starts_with("t.jsonl: line 5: holds text, but"), "{message}");
}

#[test]
fn the_templates_refusal_names_the_template() {
    let tokenizer = byte_level();
    let source = "{{ raise_exception('no user here') }}";
    let template =
        ChatTemplate::new(Path::new("m/chat_template.jinja"), source, SpecialTokens::default());
    let encoder = encoder(Some(&tokenizer), Some(&template));
    let message = text("a", "b").token_ids(&encoder).unwrap_err().to_string();
    assert_eq!(
        message,
        "t.jsonl: line 5: the chat template refuses the conversation: no user here \
         (m/chat_template.jinja)"
    );
}

#[test]
fn published_prompts_load_as_they_are() {
    let prompts = read_prompts(Path::new(&format!("{DATA}/traces/prompts.jsonl"))).unwrap();
    let begins: Vec<String> = prompts
        .iter()
        .map(|prompt| match &prompt.content {
            PromptContent::Text(text) => text.chars().take(15).collect(),
            PromptContent::Messages(_) => panic!("messages"),
        })
        .collect();
    let expected = [
        "\nSolve the foll",
        "Summarize: (CNN",
        "Q: If there are",
        "Please help me ",
        "Every morning A",
        "Convert the poi",
    ];
    assert_eq!(begins, expected);
}

#[test]
fn prompt_lines() {
    let content = |source: &str| prompt(source).unwrap().content;
    assert_eq!(
        content(r#"{"question": "q", "problem": "p"}"#),
        PromptContent::Text("p".to_owned()),
        "problem comes before question"
    );
    assert_eq!(content(r#"{"turns": ["one", "two"]}"#), PromptContent::Text("one".to_owned()));
    let PromptContent::Messages(messages) =
        content(r#"{"messages": [{"role": "user", "content": "Hi", "name": "x"}]}"#)
    else {
        panic!("not messages")
    };
    assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("user", "Hi"));
    for (line, expected) in [
        ("{}", "has none of `prompt`, `problem`"),
        (r#"{"prompt": ""}"#, "`prompt` is empty"),
        (r#"{"prompt": 1}"#, "`prompt` must be a string"),
        (r#"{"turns": []}"#, "`turns` is empty"),
        (r#"{"turns": [1]}"#, "`turns` must be a list of strings"),
        (r#"{"messages": []}"#, "`messages` is empty"),
        (r#"{"messages": [{"role": "user"}]}"#, "`messages` must be a list of objects"),
        ("x", "is not valid JSON"),
    ] {
        let message = prompt(line).unwrap_err();
        assert!(message.contains(expected) && message.contains("p.jsonl: line 1"), "{message}");
    }
}

#[test]
fn prompt_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompts.txt");
    fs::write(&path, "first\n\n{\"prompt\": \"second\"}\r\n").unwrap();
    let prompts = read_prompts(&path).unwrap();
    let texts: Vec<_> =
        prompts.iter().map(|prompt| (prompt.line, prompt.content.clone())).collect();
    let second = PromptContent::Text("{\"prompt\": \"second\"}".to_owned());
    assert_eq!(texts, [(1, PromptContent::Text("first".to_owned())), (3, second)]);
    fs::write(&path, "\n\n").unwrap();
    assert!(read_prompts(&path).unwrap_err().to_string().contains("holds no prompts"));
}

#[test]
fn prompt_ids_end_where_the_answer_begins() {
    let tokenizer = byte_level();
    let template = ChatTemplate::from_dir(Path::new(FIXTURE)).unwrap().unwrap();
    let ids = prompt(
        r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}"#,
    )
    .unwrap()
    .token_ids(&encoder(Some(&tokenizer), Some(&template)))
    .unwrap();
    assert_eq!(
        tokenizer.decode(&ids).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    );
    let messages = prompt(r#"{"messages": [{"role": "user", "content": "U"}]}"#).unwrap();
    let message = messages.token_ids(&encoder(Some(&tokenizer), None)).unwrap_err().to_string();
    assert_eq!(
        message,
        "p.jsonl: line 1: messages need a chat template, and the model directory has none"
    );
}

proptest! {
    #[test]
    fn no_line_panics(line in prop_oneof![
        ".*",
        "[\\[\\]{}\":,0-9a-z .\\-e\\\\]{0,80}",
        "\\{\"(input_ids|prompt|output|index|prompt_len|messages|turns)\": ?\
            [\\[\\]{}\":,0-9 .\\-e]{0,30}\\}?",
    ]) {
        let path = Path::new("t.jsonl");
        let errors = [Trace::parse(path, 1, &line).err(), Prompt::parse(path, 1, &line).err()];
        for error in errors.into_iter().flatten() {
            prop_assert!(error.to_string().starts_with("t.jsonl: line 1: "), "{error}");
        }
    }

    #[test]
    fn no_file_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }

    #[test]
    fn ids_come_back(ids in prop::collection::vec(any::<u32>(), 1..50)) {
        let line = serde_json::json!({ "input_ids": ids }).to_string();
        let trace = Trace::parse(Path::new("t.jsonl"), 1, &line).unwrap();
        prop_assert_eq!(trace.content, TraceContent::Ids { input_ids: ids, prompt_len: 0 });
    }
}
