//! Compares small templates with their rendering in HuggingFace transformers.
//!
//! All published templates render identically (`chat_template.rs`). These snippets test corners of
//! the language, some of which only Jinja2 supports. `data/jinja/departures.json` lists the
//! snippets that differ, so that every change is noticed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fathom_model::{ChatTemplate, Message, RenderOptions, SpecialTokens};
use serde_json::Value;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/jinja");

fn json(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{DATA}/{name}")).unwrap()).unwrap()
}

#[test]
fn snippets_render_or_are_refused_as_in_python_but_for_those_listed() {
    let expected = json("expected.json");
    let mut variables = expected["variables"].as_object().unwrap().clone();
    let messages = variables.shift_remove("messages").unwrap();
    let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
    let options = RenderOptions { variables, ..RenderOptions::default() };
    let (mut departures, mut count) = (BTreeSet::new(), 0);
    for case in expected["cases"].as_object().unwrap().values().flat_map(|v| v.as_array().unwrap())
    {
        count += 1;
        let source = case["source"].as_str().unwrap();
        let template = ChatTemplate::new(Path::new("t"), source, SpecialTokens::default());
        let same = match (template.render(&messages, &options), case["text"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            departures.insert(source.to_owned());
        }
    }
    assert!(count > 1000);
    if std::env::var_os("FATHOM_UPDATE").is_some() {
        let text = serde_json::to_string_pretty(&departures).unwrap() + "\n";
        fs::write(format!("{DATA}/departures.json"), text).unwrap();
    }
    let listed: BTreeSet<String> = serde_json::from_value(json("departures.json")).unwrap();
    let new: Vec<_> = departures.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&departures).collect();
    assert!(new.is_empty(), "differ from transformers and are not listed: {new:#?}");
    assert!(gone.is_empty(), "no longer differ, remove them from departures.json: {gone:#?}");
}
