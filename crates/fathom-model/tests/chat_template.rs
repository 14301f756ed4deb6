//! Chat templates: rendering as in HuggingFace, and limits on malicious templates.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fathom_model::{ChatTemplate, Message, RenderOptions, SpecialTokens};
use proptest::prelude::*;
use serde_json::Value;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/chat_templates");

fn special(tokens: &Value) -> SpecialTokens {
    let token = |name: &str| tokens[name].as_str().map(str::to_owned);
    SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token"),
        unk: token("unk_token"),
        pad: token("pad_token"),
    }
}

fn options(kwargs: &Value) -> RenderOptions {
    let mut variables = kwargs.as_object().unwrap().clone();
    let mut flag = |name: &str| variables.shift_remove(name).map(|flag| flag.as_bool().unwrap());
    RenderOptions {
        add_generation_prompt: flag("add_generation_prompt"),
        enable_thinking: flag("enable_thinking"),
        date: None,
        variables,
    }
}

#[test]
fn every_family_renders_as_hugging_face_renders_it() {
    let expected = fs::read_to_string(format!("{DATA}/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let special = special(&expected["special_tokens"]);
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() > 600);
    let mut wrong = Vec::new();
    for case in cases {
        let name = |key: &str| case[key].as_str().unwrap();
        let path = Path::new(DATA).join(name("template"));
        let template =
            ChatTemplate::new(&path, fs::read_to_string(&path).unwrap(), special.clone());
        let messages = &expected["conversations"][name("conversation")];
        let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
        let rendered = template.render(&messages, &options(&expected["options"][name("options")]));
        let same = match (&rendered, case["text"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(error), None) => error.to_string().ends_with(&format!(": {}", name("error"))),
            _ => false,
        };
        if !same {
            wrong.push(format!("{case:#}\nbut got {rendered:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong[0]);
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(Path::new("chat_template.jinja"), source, SpecialTokens::default())
}

fn render(source: &str) -> Result<String, String> {
    let messages = [Message::user("hello")];
    template(source).render(&messages, &RenderOptions::default()).map_err(|error| error.to_string())
}

fn message(source: &str) -> String {
    let begin = Instant::now();
    let shown: String = source.chars().take(200).collect();
    let message = render(source).expect_err(&shown);
    assert!(begin.elapsed() < Duration::from_secs(20), "{shown} took {:?}", begin.elapsed());
    assert!(message.starts_with("chat_template.jinja: the chat template "), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn a_templates_exception_message_is_shown() {
    let message = message("{{ raise_exception('Only user roles here!') }}");
    assert_eq!(
        message,
        "chat_template.jinja: the chat template refuses the conversation: Only user roles here!"
    );
}

#[test]
fn messages_of_templates_stay_one_short_line() {
    let message = message("{{ raise_exception('a\n' * 100000) }}");
    assert!(
        message.contains("conversation: a\\na\\n") && message.chars().count() < 400,
        "{message}"
    );
}

#[test]
fn faults_name_the_line() {
    assert!(message("\n{% for %}").contains("is not valid"), "syntax");
    assert!(message("a\n{{ x.y.z }}").contains("(line 2)"));
    assert!(message("{{ 'a' | nosuch }}").contains("filter nosuch is unknown"));
    assert!(message("{{ nosuch() }}").contains("nosuch is unknown"));
    assert!(message("{% include 'other' %}").contains("uses `include`"));
    assert!(message("{{ missing | tojson }}").contains("cannot be written as JSON"));
    assert_eq!(render("{{ 'é' | tojson(true) }}").unwrap(), r#""\u00e9""#);
}

#[test]
fn endless_templates_are_stopped() {
    let loops = "{% for i in range(99) %}".repeat(5) + &"{% endfor %}".repeat(5);
    assert!(message(&loops).contains("too many steps"));
    for recursing in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) }}{% endmacro %}{{ f(10000) }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ] {
        assert!(message(recursing).contains("recursion"), "{recursing}: {}", message(recursing));
    }
}

/// Huge values must be rejected before they are built.
#[test]
fn templates_that_build_huge_values_are_stopped() {
    for giant in [
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000000 * 'x' }}",
        "{{ [1] * 1000000000000 }}",
        "{% set ns = namespace(s='x') %}\
         {% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}\
         {% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}\
         {% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% macro f(s, n) %}{% if n %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}\
         {{ f('x', 50) }}",
        "{% set ns = namespace(l=[1]) %}\
         {% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}\
         {% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}\
         {% for i in range(60) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}\
         {{ ns.l | tojson }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{{ ('b' * 1000000).join(range(100000)) }}",
        "{{ range(100000) | join('b' * 1000000) }}",
        "{{ ('a\n' * 100000) | indent(1000000) }}",
        "{{ 'a' | indent(1000000000000) }}",
        "{{ {'a': [1, 2]} | tojson(indent=1000000000000) }}",
        "{{ range(100000) | list | tojson(indent=1000000) }}",
        "{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% set ns = namespace(l=[]) %}\
         {% for i in range(100000) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% set ns = namespace(l=[]) %}\
         {% for i in range(100000) %}{% set ns.l = ns.l + [s | upper] %}{% endfor %}",
    ] {
        assert!(message(giant).contains("more text than"), "{giant}: {}", message(giant));
    }
    let raw = format!(
        "{{% for i in range(100000) %}}{}{{% endfor %}}",
        "some text that is written again and again ".repeat(1000)
    );
    assert!(message(&raw).contains("more text than"));
}

#[test]
fn deeply_nested_templates_are_refused() {
    let nested = "{% set ns = namespace(l=[]) %}\
                  {% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}";
    assert!(message(nested).contains("nested more than"));
    let cycle = "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}";
    assert!(message(cycle).contains("nested more than"));
    let many = 100_000;
    for deep in [
        format!("{{{{ {}1 }}}}", "1 ~ ".repeat(many)),
        format!("{{{{ {}1 }}}}", "not ".repeat(many)),
        format!("{{{{ {}1 }}}}", "-".repeat(many)),
        format!("{{{{ {}1{} }}}}", "(".repeat(many), ")".repeat(many)),
        format!("{{{{ {}1{} }}}}", "[".repeat(many), "]".repeat(many)),
        format!("{{{{ 'x'{} }}}}", " | upper".repeat(many)),
        format!("{{{{ x{} }}}}", ".y".repeat(many)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(many / 2)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(many / 2)),
        "{% if 1 %}".repeat(many),
        "{% for x in y %}".repeat(many / 2),
    ] {
        message(&deep);
    }
    message(&"x".repeat(2 << 20));
}

/// Bugs of minijinja: each of these templates makes it panic or hang.
#[test]
fn faults_of_the_engine_are_contained() {
    assert_eq!(render("{{ 'aaa'.count('') }}").unwrap(), "4");
    message("{{ range(-9223372036854775807, 9223372036854775807, -1) | length }}{{ x.y.z }}");
    message("{{ range(9223372036854775807, -9223372036854775807, -1) }}");
    message("{{ [1, 2] * 9223372036854775807 }}");
    message("{{ loop.cycle() }}");
    message("{% for x in [1] %}{{ loop.cycle() }}{% endfor %}");
    assert_eq!(
        render("{% for x in [1, 2, 3] %}{{ loop.cycle('a', 'b') }}{% endfor %}").unwrap(),
        "aba"
    );
    for block in ["with", "set s", "filter upper"] {
        let end = block.split(' ').next().unwrap();
        let jump = format!("{{% {block} %}}{{% break %}}{{% end{end} %}}");
        let looped = format!("{{% for x in [1] %}}{jump}{{% endfor %}}");
        assert!(message(&looped).contains("no loop directly around it"), "{looped}");
    }
    message("{% for x in [1] %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}");
    message("{% continue %}");
}

#[test]
fn white_space_around_generation_tags() {
    assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c").unwrap(), "abc");
    assert_eq!(render("a {% generation %} b {% endgeneration %} c").unwrap(), "a  b  c");
    assert_eq!(render("a\n  {%generation%}\nb\n  {%endgeneration%}\nc").unwrap(), "a\nb\nc");
}

#[test]
fn absent_variables_are_undefined() {
    let source = "{{ tools is defined }} {{ documents is defined }} \
                  {{ add_generation_prompt is defined }} {{ enable_thinking is defined }} \
                  {{ bos_token is defined }}";
    assert_eq!(render(source).unwrap(), "False False False False False");
}

#[test]
fn the_date_can_be_set() {
    let source = template("{{ strftime_now('%d %b %Y') }}");
    let mut options = RenderOptions::default();
    assert_eq!(source.render(&[], &options).unwrap(), "26 Jul 2024");
    options.date = Some(jiff::civil::date(2031, 1, 2));
    assert_eq!(source.render(&[], &options).unwrap(), "02 Jan 2031");
    assert!(message("{{ strftime_now('%') }}").contains("strftime_now"));
}

fn from_files(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    ChatTemplate::from_dir(dir.path()).map_err(|error| error.to_string())
}

fn text_from_files(files: &[(&str, &str)]) -> String {
    from_files(files).unwrap().unwrap().render(&[], &RenderOptions::default()).unwrap()
}

#[test]
fn where_the_template_is_found() {
    let jinja = ("chat_template.jinja", "from jinja {{ bos_token }}");
    let string = ("tokenizer_config.json", r#"{"bos_token": "<s>", "chat_template": "string"}"#);
    let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(text_from_files(&[jinja, string, json]), "from jinja <s>");
    assert_eq!(text_from_files(&[string, json]), "string");
    // In transformers, processors read chat_template.json, but tokenizers do not.
    assert!(from_files(&[json]).unwrap().is_none());
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "list"}]}"#;
    assert_eq!(text_from_files(&[("tokenizer_config.json", list)]), "list");
    let only = r#"{"chat_template": [{"name": "rag", "template": "only"}]}"#;
    assert_eq!(text_from_files(&[("tokenizer_config.json", only)]), "only");
    assert!(from_files(&[]).unwrap().is_none());
    assert!(from_files(&[("tokenizer_config.json", "{}")]).unwrap().is_none());
}

#[test]
fn templates_of_other_kinds_are_refused() {
    for (text, expected) in [
        (r#"{"chat_template": 3}"#, "`chat_template` must be a string or a list"),
        (r#"{"chat_template": []}"#, "`chat_template` must be a list with a"),
        (
            r#"{"chat_template": [{"name": "a", "template": ""}, {"name": "b", "template": ""}]}"#,
            "`chat_template` must be a list with a",
        ),
        ("[", "is not valid JSON"),
    ] {
        let message = from_files(&[("tokenizer_config.json", text)]).unwrap_err();
        assert!(
            message.contains(expected) && message.contains("tokenizer_config.json"),
            "{message}"
        );
    }
}

fn rendered(files: &[(&str, &str)], tools: Value) -> Result<String, String> {
    let variables = [("tools".to_owned(), tools)].into_iter().collect();
    let template = from_files(files)?.unwrap();
    template
        .render(&[], &RenderOptions { variables, ..RenderOptions::default() })
        .map_err(|error| error.to_string())
}

/// The expected texts are from `AutoTokenizer.from_pretrained(dir).apply_chat_template(...,
/// tools=...)` of transformers 5.24.
#[test]
fn which_template_is_rendered_with_tools() {
    let jinja = ("chat_template.jinja", "jinja");
    let tools = ("additional_chat_templates/tool_use.jinja", "extra tools");
    let rag = ("additional_chat_templates/rag.jinja", "extra rag");
    let other = ("additional_chat_templates/default.jinja", "extra default");
    let string = ("tokenizer_config.json", r#"{"chat_template": "string"}"#);
    let list = r#"{"chat_template": [{"name": "default", "template": "one"},
        {"name": "tool_use", "template": "list tools"}, {"name": "default", "template": "list"}]}"#;
    let list = ("tokenizer_config.json", list);
    let object = r#"{"chat_template": {"default": "object", "tool_use": "object tools"}}"#;
    let object = ("tokenizer_config.json", object);
    for (files, without, with) in [
        (&[jinja, string][..], "jinja", "jinja"),
        (&[jinja, list], "jinja", "jinja"),
        (&[jinja, tools, string], "jinja", "extra tools"),
        (&[jinja, tools, rag], "jinja", "extra tools"),
        (&[jinja, other], "extra default", "extra default"),
        (&[list], "list", "list tools"),
        (&[object], "object", "object tools"),
    ] {
        assert_eq!(rendered(files, Value::Null).unwrap(), without, "{files:?}");
        assert_eq!(rendered(files, serde_json::json!([])).unwrap(), with, "{files:?}");
    }
    let only_tools =
        ("tokenizer_config.json", r#"{"chat_template": {"tool_use": "x", "rag": "y"}}"#);
    for files in [&[tools][..], &[tools, string], &[only_tools]] {
        rendered(files, serde_json::json!([])).unwrap();
        let message = rendered(files, Value::Null).unwrap_err();
        assert!(message.contains("none called `default`"), "{message}");
    }
    let message = from_files(&[rag, string]).unwrap_err();
    assert!(message.contains("holds templates called `rag`"), "{message}");
}

#[test]
fn unused_templates_get_a_remark() {
    let jinja = ("chat_template.jinja", "jinja");
    let string = ("tokenizer_config.json", r#"{"chat_template": "string"}"#);
    let same = ("tokenizer_config.json", r#"{"chat_template": "jinja"}"#);
    let json = ("chat_template.json", r#"{"chat_template": "jinja"}"#);
    let broken = ("chat_template.json", "{");
    let one = r#"{"chat_template": [{"name": "rag", "template": "only"}]}"#;
    for (files, remarks) in [
        (&[jinja][..], &[][..]),
        (&[jinja, same, json], &[]),
        (
            &[jinja, string],
            &["tokenizer_config.json: `chat_template` is not read: chat_template.jinja"],
        ),
        (&[string, json], &["chat_template.json: is not read, as in transformers"]),
        (&[jinja, broken], &["chat_template.json: is not read, as in transformers"]),
        (
            &[("tokenizer_config.json", one)],
            &["a list of one template called `rag`, which is used"],
        ),
        (
            &[("chat_template.jinja", "\u{feff}x")],
            &["begins with a byte order mark, which is kept"],
        ),
    ] {
        let template = from_files(files).unwrap().unwrap();
        let shown: Vec<String> = template.remarks().iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), remarks.len(), "{files:?}: {shown:?}");
        assert!(shown.iter().zip(remarks).all(|(shown, part)| shown.contains(part)), "{shown:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::unread(dir.path()).is_empty());
    fs::write(dir.path().join(json.0), json.1).unwrap();
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    let [remark] = &ChatTemplate::unread(dir.path())[..] else { panic!("one remark") };
    assert!(remark.to_string().contains("copy the template into chat_template.jinja"), "{remark}");
}

#[test]
fn empty_templates_are_refused() {
    for files in [
        [("chat_template.jinja", "")],
        [("chat_template.jinja", "\n \n")],
        [("tokenizer_config.json", r#"{"chat_template": ""}"#)],
    ] {
        let message = from_files(&files).unwrap_err();
        assert!(message.contains("holds an empty chat template"), "{message}");
    }
    // A byte order mark is part of the text, as in Python.
    assert_eq!(text_from_files(&[("chat_template.jinja", "\u{feff}x")]), "\u{feff}x");
}

/// A random piece of a template.
fn piece() -> impl Strategy<Value = String> {
    let tokens = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{%-",
        "-%}",
        "{#",
        "#}",
        "for",
        "endfor",
        "in",
        "if",
        "elif",
        "else",
        "endif",
        "set",
        "endset",
        "macro",
        "endmacro",
        "call",
        "endcall",
        "filter",
        "endfilter",
        "with",
        "endwith",
        "break",
        "continue",
        "recursive",
        "loop",
        "loop.last",
        "messages",
        "message",
        "ns",
        "namespace",
        "range",
        "raise_exception",
        "strftime_now",
        "caller",
        "varargs",
        "kwargs",
        "f",
        "x",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "|",
        ".",
        ",",
        ":",
        "~",
        "+",
        "-",
        "*",
        "**",
        "/",
        "//",
        "%",
        "==",
        "<",
        "=",
        "not",
        "and",
        "or",
        "is",
        "defined",
        "none",
        "true",
        "0",
        "1",
        "-1",
        "9223372036854775807",
        "1e308",
        "'a'",
        "'%d'",
        "''",
        "'\\'",
        "tojson",
        "indent",
        "join",
        "replace",
        "split",
        "list",
        "sort",
        "first",
        "length",
        "map",
        "select",
        "upper",
        "items",
        "generation",
        "endgeneration",
        "raw",
        "endraw",
        " ",
        "\n",
        "é",
        "\u{0}",
    ];
    prop_oneof![8 => prop::sample::select(tokens.to_vec()).prop_map(str::to_owned), 1 => ".{0,4}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_template_panics(pieces in prop::collection::vec(piece(), 0..40), space in any::<bool>()) {
        // A panic on the rendering thread is reported with this message.
        let source = pieces.join(if space { " " } else { "" });
        if let Err(message) = render(&source) {
            prop_assert!(!message.ends_with("cannot be rendered"), "{source}");
        }
    }

    #[test]
    fn no_expression_panics(pieces in prop::collection::vec(piece(), 1..12)) {
        let expression = pieces.join(" ");
        let source = format!("{{% for x in messages %}}{{{{ {expression} }}}}{{% endfor %}}");
        if let Err(message) = render(&source) {
            prop_assert!(!message.ends_with("cannot be rendered"), "{source}");
        }
    }

    #[test]
    fn a_conversation_is_data(content in ".*") {
        // The content of a message is neither executed nor escaped.
        let messages = [Message::user(content.clone())];
        let template = template("{{ messages[0].content }}");
        let text = template.render(&messages, &RenderOptions::default()).unwrap();
        prop_assert_eq!(text, content);
    }
}
