//! A line of a prompt or trace file, encoded with a chat template: the result is valid ids, or an
//! error that names the line.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use fathom_model::{
    ChatTemplate, Prompt, Remarks, RenderOptions, RowFields, SpecialTokens, TextEncoder, Tokenizer,
    Trace,
};
use libfuzzer_sys::fuzz_target;

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer");

/// A template that reads all fields of a conversation.
const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}{{ m.name }}{{ m.reasoning_content }}\
    {% if m.content is string %}{{ m.content }}{% else %}\
    {% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\
    {{ m.tool_calls | tojson }}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";

static TEXT: LazyLock<Option<(Tokenizer, ChatTemplate)>> = LazyLock::new(|| {
    let special = SpecialTokens::default();
    let template = ChatTemplate::new(Path::new("chat_template.jinja"), TEMPLATE, special);
    Some((Tokenizer::from_dir(Path::new(TOKENIZER)).ok()?, template))
});

fuzz_target!(|line: &str| {
    let Some((tokenizer, template)) = &*TEXT else { panic!("the tokenizer is missing") };
    let encoder = TextEncoder {
        tokenizer: Some(tokenizer),
        template: Some(template),
        render: RenderOptions::default(),
        vocab_size: 4096,
    };
    let mut remarks = Remarks::new();
    let path = Path::new("lines.jsonl");
    let fields = RowFields::default();
    let check = |error: fathom_model::Error| {
        assert!(error.to_string().starts_with("lines.jsonl: line 1: "), "{error}");
    };
    match Trace::read(path, 1, line, &fields, &mut remarks) {
        Err(error) => check(error),
        Ok(traces) => {
            for trace in traces {
                match trace.token_ids(&encoder) {
                    Ok(trace) => {
                        assert!(!trace.ids.is_empty() && trace.prompt_len <= trace.ids.len());
                        assert!(trace.ids.iter().all(|id| *id < 4096));
                    }
                    Err(error) => check(error),
                }
            }
        }
    }
    let prompt = Prompt::read(path, 1, line, &fields, &mut remarks);
    if let Err(error) = prompt.and_then(|prompt| prompt.encode(&encoder)) {
        check(error);
    }
});
