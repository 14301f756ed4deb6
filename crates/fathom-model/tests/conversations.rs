//! Conversations, padding and non-standard JSON in data sets: the resulting ids and remarks.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fathom_model::{
    ChatTemplate, Prompt, PromptOptions, Remark, Remarks, RowFields, SpecialTokens, TextEncoder,
    TokenizedTrace, Tokenizer, Trace, TraceContent, TraceReader, parse_template_kwargs,
};
use proptest::prelude::*;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tokenizer");

/// A template that renders all fields and variables.
const ALL: &str = "{%- if tools %}TOOLS {{ tools | tojson }}\n{% endif -%}\
    {%- for m in messages %}<|im_start|>{{ m.role }}\
    {% if m.name %} {{ m.name }}{% endif %}{{ '\n' }}\
    {%- if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif -%}\
    {{- m.content }}{% for call in m.tool_calls %}CALL {{ call.function.name }}{% endfor -%}\
    <|im_end|>\n{% endfor -%}\
    {%- if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}\
    {%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}\
    {%- endif %}";

/// A template that renders roles and texts only.
const PLAIN: &str = "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A template whose generation prompt ends with `<think>`, like DeepSeek-R1's.
const THINKING: &str = "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    <|im_end|>\n{% endfor %}\
    {%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n{{ '' }}{% endif %}";

/// A template that iterates over the parts of a content.
const PARTS: &str = "{%- for m in messages %}{{ m.role }}:\
    {%- if m.content is string %}{{ m.content }}{% else %}\
    {%- for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{{ '\n' }}{% endfor -%}\
    {%- if add_generation_prompt %}assistant:{% endif %}";

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(Path::new(FIXTURE)).unwrap()
}

struct Text {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Text {
    fn with(source: &str) -> Text {
        let path = Path::new("m/chat_template.jinja");
        let template = ChatTemplate::new(path, source, SpecialTokens::default());
        Text { tokenizer: tokenizer(), template }
    }

    fn encoder(&self, options: &PromptOptions) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: Some(&self.tokenizer),
            template: Some(&self.template),
            render: options.render(),
            vocab_size: 4096,
        }
    }

    /// A line as `scan` reads it: its text, with `¦` between prompt and answer, and the remarks.
    fn scan(&self, line: &str) -> Result<(String, Vec<Remark>), String> {
        self.scan_with(line, &PromptOptions::default())
    }

    fn scan_with(
        &self,
        line: &str,
        options: &PromptOptions,
    ) -> Result<(String, Vec<Remark>), String> {
        let mut remarks = Remarks::new();
        let trace = one(Path::new("t.jsonl"), 3, line, &mut remarks)
            .and_then(|trace| trace.token_ids(&self.encoder(options)))
            .map_err(|error| error.to_string())?;
        let TokenizedTrace { ids, prompt_len, remarks: more, .. } = trace;
        remarks.extend(more);
        let text = |ids: &[u32]| self.tokenizer.decode(ids).unwrap();
        let shown = format!("{}¦{}", text(&ids[..prompt_len]), text(&ids[prompt_len..]));
        Ok((shown, remarks.into_vec()))
    }

    /// A line as `generate` reads it.
    fn prompt(&self, line: &str) -> Result<(String, Vec<Remark>), String> {
        let mut remarks = Remarks::new();
        let encoded =
            Prompt::read(Path::new("p.jsonl"), 3, line, &RowFields::default(), &mut remarks)
                .and_then(|prompt| prompt.encode(&self.encoder(&PromptOptions::default())))
                .map_err(|error| error.to_string())?;
        remarks.extend(encoded.remarks);
        Ok((self.tokenizer.decode(&encoded.ids).unwrap(), remarks.into_vec()))
    }
}

fn one(path: &Path, line: usize, text: &str, remarks: &mut Remarks) -> fathom_model::Result<Trace> {
    let mut traces = Trace::read(path, line, text, &RowFields::default(), remarks)?;
    assert_eq!(traces.len(), 1);
    Ok(traces.remove(0))
}

fn kinds(remarks: &[Remark]) -> Vec<&str> {
    remarks.iter().map(|remark| &*remark.kind).collect()
}

#[test]
fn an_answer_at_the_end_is_the_output_of_a_scan() {
    let line = r#"{"messages": [{"role": "system", "content": "S"},
        {"role": "user", "content": "U"}, {"role": "assistant", "content": "\n<think>A"}]}"#;
    let head =
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n";
    let (text, remarks) = Text::with(PLAIN).scan(line).unwrap();
    assert_eq!((text, kinds(&remarks).len()), (format!("{head}¦\n<think>A"), 0));
    // The same as `prompt` and `output`.
    let same = r#"{"prompt": "U", "output": "A"}"#;
    let messages = r#"{"messages": [{"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"}]}"#;
    assert_eq!(Text::with(PLAIN).scan(same), Text::with(PLAIN).scan(messages));
    // The answer in a separate field.
    let own = r#"{"messages": [{"role": "user", "content": "U"}], "output": "A"}"#;
    assert_eq!(Text::with(PLAIN).scan(own), Text::with(PLAIN).scan(messages));
}

#[test]
fn an_answer_at_the_end_is_left_out_of_a_prompt() {
    let line = r#"{"messages": [{"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"}]}"#;
    let (text, remarks) = Text::with(PLAIN).prompt(line).unwrap();
    assert_eq!(text, "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(kinds(&remarks), ["answer-left-out"]);
    assert!(remarks[0].to_string().starts_with("p.jsonl: line 3: `messages` ends with"));
}

#[test]
fn conversations_that_are_not_traces_are_refused() {
    let text = Text::with(PLAIN);
    for (line, expected) in [
        (r#"{"messages": [{"role": "user", "content": "U"}]}"#, "do not end with an answer"),
        (
            r#"{"messages": [{"role": "user", "content": "U"},
                {"role": "assistant", "content": "A"}], "output": "B"}"#,
            "can be read as `messages` and as `messages` with `output`",
        ),
        (r#"{"messages": [{"role": "assistant", "content": "A"}]}"#, "only an answer"),
        (r#"{"messages": []}"#, "`messages` is empty"),
        (
            r#"{"messages": [{"role": "user", "content": 3},
                {"role": "assistant", "content": "A"}]}"#,
            "`messages` must be a list of objects",
        ),
        (r#"{"prompt": "U", "output": "A", "tools": "calc"}"#, "`tools` must be a list"),
        (r#"{"prompt": "U", "output": "A", "chat_template_kwargs": []}"#, "must be an object"),
        (
            r#"{"prompt": "U", "output": "A", "chat_template_kwargs": {"messages": []}}"#,
            "`chat_template_kwargs.messages` cannot be set",
        ),
    ] {
        let message = text.scan(line).unwrap_err();
        assert!(
            message.starts_with("t.jsonl: line 3: ") && message.contains(expected),
            "{message}"
        );
    }
    let message = text.prompt(r#"{"messages": [{"role": "assistant", "content": "A"}]}"#);
    assert!(message.unwrap_err().contains("only an answer"));
}

#[test]
fn a_template_gets_all_fields_and_variables() {
    let text = Text::with(ALL);
    let line = r#"{"messages": [{"role": "user", "content": "U", "name": "Ann"},
        {"role": "assistant", "content": "",
         "tool_calls": [{"id": "1", "function": {"name": "add"}}]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "assistant", "reasoning_content": "four", "content": "It is 4."}],
        "tools": [{"type": "function", "function": {"name": "add"}}]}"#;
    let (shown, remarks) = text.scan(line).unwrap();
    assert_eq!(
        shown,
        "TOOLS [{\"type\": \"function\", \"function\": {\"name\": \"add\"}}]\n\
         <|im_start|>user Ann\nU<|im_end|>\n\
         <|im_start|>assistant\nCALL add<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n\
         <|im_start|>assistant\n¦<think>\nfour\n</think>\n\nIt is 4."
    );
    assert_eq!(kinds(&remarks), [""; 0]);
    let line =
        r#"{"prompt": "U", "output": "A", "chat_template_kwargs": {"enable_thinking": false}}"#;
    let (shown, _) = text.scan(line).unwrap();
    assert!(shown.ends_with("assistant\n<think>\n\n</think>\n\n¦A"), "{shown}");
    // The line's variables override those for all lines.
    let template_kwargs = parse_template_kwargs(r#"{"enable_thinking": true}"#).unwrap();
    let options = PromptOptions { template_kwargs, ..PromptOptions::default() };
    assert_eq!(text.scan_with(line, &options).unwrap().0, shown);
    let (shown, _) = text.scan_with(r#"{"prompt": "U", "output": "A"}"#, &options).unwrap();
    assert!(shown.ends_with("assistant\n¦A"), "{shown}");
}

#[test]
fn fields_that_a_template_does_not_use_are_refused_by_name() {
    let text = Text::with(PLAIN);
    let turn = |field: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "U"}},
            {{"role": "assistant", "content": "A", {field}}},
            {{"role": "user", "content": "V"}}]}}"#
        )
    };
    for (line, field) in [
        (turn(r#""reasoning_content": "R""#), "`messages[1].reasoning_content`"),
        (turn(r#""tool_calls": [{"id": 1}]"#), "`messages[1].tool_calls`"),
        (turn(r#""name": "Ann""#), "`messages[1].name`"),
        (r#"{"prompt": "U", "tools": [{"type": "function"}]}"#.to_owned(), "`tools`"),
        (r#"{"prompt": "U", "documents": [{"title": "T"}]}"#.to_owned(), "`documents`"),
        (
            r#"{"prompt": "U", "chat_template_kwargs": {"enable_thinking": false}}"#.to_owned(),
            "`chat_template_kwargs.enable_thinking`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#.to_owned(),
            "a content part of type `image_url`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                {"type": "text", "text": "b"}]}]}"#
                .to_owned(),
            "`messages[0].content` has 2 parts",
        ),
    ] {
        let message = text.prompt(&line).unwrap_err();
        assert!(message.starts_with("p.jsonl: line 3: ") && message.contains(field), "{message}");
    }
    // Empty fields and ids of a message may be ignored.
    for field in [r#""reasoning_content": null"#, r#""tool_calls": []"#, r#""id": "m1""#] {
        let (_, remarks) = text.prompt(&turn(field)).unwrap();
        assert_eq!(kinds(&remarks), [""; 0], "{field}");
    }
    let (_, remarks) = text.prompt(&turn(r#""weight": 0"#)).unwrap();
    assert_eq!(kinds(&remarks), ["field-without-effect"]);
    assert!(remarks[0].text.contains("`messages[1].weight` has no effect"), "{remarks:?}");
}

#[test]
fn contents_in_parts() {
    let parts = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
        {"type": "text", "text": "b"}]}]}"#;
    assert_eq!(Text::with(PARTS).prompt(parts).unwrap().0, "user:[a][b]\nassistant:");
    let one = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}"#;
    assert_eq!(Text::with(PARTS).prompt(one).unwrap().0, "user:[a]\nassistant:");
    let (text, remarks) = Text::with(PLAIN).prompt(one).unwrap();
    assert_eq!(text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(kinds(&remarks), [""; 0]);
}

#[test]
fn a_tag_that_prompt_and_answer_share_is_written_once() {
    let text = Text::with(THINKING);
    for line in [
        r#"{"prompt": "U", "output": "<think>\nA"}"#,
        r#"{"messages": [{"role": "user", "content": "U"},
            {"role": "assistant", "content": "<think>\nA"}]}"#,
    ] {
        let (shown, remarks) = text.scan(line).unwrap();
        assert_eq!(shown, "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\n¦A");
        assert_eq!(kinds(&remarks), ["written-twice"]);
        assert!(remarks[0].text.contains("`<think>`"), "{remarks:?}");
        assert_eq!(
            (remarks[0].line, remarks[0].file.as_deref()),
            (Some(3), Some(Path::new("t.jsonl")))
        );
    }
    // A tag at the end of the user's message is not part of the generation prompt.
    let line = r#"{"prompt": "Say <b>", "output": "<b>"}"#;
    let (shown, remarks) = Text::with(PLAIN).scan(line).unwrap();
    assert!(shown.ends_with("¦<b>") && remarks.is_empty(), "{shown}");
}

#[test]
fn a_system_message_for_conversations_that_have_none() {
    let text = Text::with(PLAIN);
    let trace = |line: &str| Trace::parse(Path::new("t.jsonl"), 1, line).unwrap().with_system("S");
    let shown = |trace: Trace| {
        let ids = trace.token_ids(&text.encoder(&PromptOptions::default())).unwrap().ids;
        text.tokenizer.decode(&ids).unwrap()
    };
    let expected =
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA";
    assert_eq!(shown(trace(r#"{"prompt": "U", "output": "A"}"#)), expected);
    let own = r#"{"messages": [{"role": "system", "content": "T"},
        {"role": "user", "content": "U"}], "output": "A"}"#;
    assert_eq!(shown(trace(own)), expected.replace("\nS<", "\nT<"));
    let ids = trace(r#"{"input_ids": [5]}"#);
    assert_eq!(ids.content, TraceContent::Ids { input_ids: vec![5], prompt_len: 0 });
}

#[test]
fn choices_without_effect_are_refused() {
    let tokenizer = tokenizer();
    let check = |source: Option<&str>, options: &PromptOptions| {
        let template = source.map(|source| Text::with(source).template);
        options.check(Some(&tokenizer), template.as_ref()).map_err(|error| error.to_string())
    };
    let kwargs = |text| PromptOptions {
        template_kwargs: parse_template_kwargs(text).unwrap(),
        ..PromptOptions::default()
    };
    let system = PromptOptions { system: Some("S".to_owned()), ..PromptOptions::default() };
    let date =
        PromptOptions { date: Some(jiff::civil::date(2025, 1, 2)), ..PromptOptions::default() };
    let bos = PromptOptions { bos: Some(true), ..PromptOptions::default() };
    assert_eq!(check(Some(ALL), &kwargs(r#"{"enable_thinking": false}"#)), Ok(()));
    assert_eq!(check(Some(ALL), &system), Ok(()));
    assert_eq!(check(Some("{{ strftime_now('%d') }}"), &date), Ok(()));
    for (source, options, expected) in [
        (Some(ALL), kwargs(r#"{"enable_thinkin": false}"#), "has no use for `enable_thinkin`"),
        (Some(ALL), date.clone(), "--date: the chat template does not ask for the date"),
        (
            Some("{{ date_string }}"),
            date.clone(),
            "it reads `date_string`, which --template-kwargs can set",
        ),
        (Some("{{ messages[-1].content }}"), system.clone(), "leaves a system message out"),
        (None, system, "--system needs a chat template"),
        (None, date, "--date needs a chat template"),
        (None, bos, "--bos: the model's tokenizer names no BOS token"),
    ] {
        let message = check(source, &options).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
    for (text, expected) in [
        ("[]", "is not a JSON object"),
        ("{", "is not valid JSON"),
        (r#"{"messages": []}"#, "`messages` cannot be set"),
    ] {
        let message = parse_template_kwargs(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn padding_is_left_out() {
    let read = |line: &str| {
        let mut remarks = Remarks::new();
        let trace = one(Path::new("t.jsonl"), 1, line, &mut remarks);
        trace.map(|trace| (trace.content, remarks.into_vec())).map_err(|error| error.to_string())
    };
    let ids = |input_ids: &[u32], prompt_len| TraceContent::Ids {
        input_ids: input_ids.to_vec(),
        prompt_len,
    };
    let line = |mask: &str, len| {
        format!(
            r#"{{"input_ids": [9, 9, 1, 2, 9], "attention_mask": {mask}, "prompt_len": {len}}}"#
        )
    };
    let (content, remarks) = read(&line("[0, 0, 1, 1, 0]", 3)).unwrap();
    assert_eq!((content, kinds(&remarks)), (ids(&[1, 2], 1), vec!["padding"]));
    assert!(remarks[0].text.contains("2 tokens at the start and 1 at the end"), "{remarks:?}");
    let (content, _) = read(&line("[false, false, true, true, false]", 0)).unwrap();
    assert_eq!(content, ids(&[1, 2], 0));
    let (content, remarks) = read(&line("[1, 1, 1, 1, 1]", 5)).unwrap();
    assert_eq!((content, remarks.len()), (ids(&[9, 9, 1, 2, 9], 5), 0));
    assert_eq!(read(&line("null", 1)).unwrap().0, ids(&[9, 9, 1, 2, 9], 1));
    for (mask, len, expected) in [
        ("[1, 0, 1, 1, 1]", 0, "is 0 at position 1, in the middle"),
        ("[0, 1, 0, 1, 0]", 0, "is 0 at position 2, in the middle"),
        ("[0, 0, 0, 0, 0]", 0, "is 0 for every token"),
        ("[1, 1]", 0, "has 2 entries but there are 5"),
        ("[2, 1, 1, 1, 1]", 0, "must be a list of 0 and 1"),
        ("\"11111\"", 0, "must be a list of 0 and 1"),
        ("[0, 0, 1, 1, 1]", 2, "`prompt_len` is 2, but `attention_mask` is 0 for the first 2"),
    ] {
        let message = read(&line(mask, len)).unwrap_err();
        assert!(message.contains(expected), "{mask}: {message}");
    }
}

#[test]
fn json_as_python_writes_it() {
    let text = Text::with(PLAIN);
    let line = r#"{"prompt": "U", "output": "ok \ud83d end", "score": NaN, "loss": -Infinity}"#;
    let (shown, remarks) = text.scan(line).unwrap();
    assert!(shown.ends_with("¦ok \u{FFFD} end"), "{shown}");
    assert_eq!(kinds(&remarks), ["lone-surrogates"]);
    let line = r#"{"prompt": "U", "output": "A", "score": NaN}"#;
    assert_eq!(text.scan(line).unwrap().1, []);
    // pandas writes NaN for a missing text.
    let message = text.scan(r#"{"prompt": "U", "output": NaN}"#).unwrap_err();
    assert!(message.contains("has `prompt` but no `output`"), "{message}");
}

fn first(bytes: &[u8]) -> Result<TraceContent, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("traces.jsonl");
    fs::write(&path, bytes).unwrap();
    let trace = TraceReader::open(&path).and_then(|mut reader| reader.next().unwrap());
    trace.map(|trace| trace.content).map_err(|error| error.to_string())
}

#[test]
fn files_in_other_encodings_and_formats() {
    let line = "{\"prompt\": \"é😀\", \"output\": \"A\"}\r\n";
    let expected = TraceContent::Text { prompt: "é😀".to_owned(), output: "A".to_owned() };
    let units = || line.encode_utf16();
    let little: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain(units().flat_map(u16::to_le_bytes)).collect();
    let big: Vec<u8> = [0xFE, 0xFF].into_iter().chain(units().flat_map(u16::to_be_bytes)).collect();
    assert_eq!(first(&little).as_ref(), Ok(&expected));
    assert_eq!(first(&big).as_ref(), Ok(&expected));
    assert_eq!(first(line.as_bytes()).as_ref(), Ok(&expected));
    for (bytes, expected) in [
        (&b"BZh91AY"[..], "is bzip2-compressed"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"{\n  \"prompt\": \"a\"\n}\n", "expected one JSON object per line"),
    ] {
        let message = first(bytes).unwrap_err();
        assert!(message.contains("traces.jsonl: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn writers_of_ids_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.jsonl");
    let line = |weights: &str| {
        format!("{{\"input_ids\": [1], \"model\": \"a\", \"weights\": \"{weights}\"}}\n")
    };
    fs::write(&path, format!("{{\"input_ids\": [1]}}\n{}{}{}", line("x"), line("y"), line("x")))
        .unwrap();
    let mut reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.by_ref().filter(Result::is_ok).count(), 4);
    let writers: Vec<_> =
        reader.writers().iter().map(|w| (&*w.weights, &*w.model, w.line, w.lines)).collect();
    assert_eq!(writers, [("x", "a", 2, 2), ("y", "a", 3, 1)]);
    reader.clear_findings();
    assert!(reader.writers().is_empty());
}

proptest! {
    /// Any line is either encoded or refused with its line number.
    #[test]
    fn no_conversation_panics(
        line in "\\{\"messages\": \\[(\\{\"role\": \"(user|assistant|tool)\", \
            \"(content|name|tool_calls)\": (\"[a-z<>]{0,6}\"|null|\\[\\]|\
            \\[\\{\"type\": \"text\", \"text\": \"x\"\\}\\])\\},?){0,4}\\]\
            (, \"(tools|output|chat_template_kwargs|attention_mask)\": \
            (\\[\\]|\\{\\}|\"x\"|\\[1\\]))?\\}",
        source in prop_oneof![Just(ALL), Just(PLAIN), Just(THINKING), Just(PARTS)],
    ) {
        let text = Text::with(source);
        for result in [text.scan(&line), text.prompt(&line)] {
            if let Err(message) = result {
                prop_assert!(message.contains(".jsonl: line 3: "), "{}", message);
            }
        }
    }
}
