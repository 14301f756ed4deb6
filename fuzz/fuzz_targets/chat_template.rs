//! An untrusted chat template: rendering returns a text or an error, in bounded time and memory.
#![no_main]

use std::path::Path;

use fathom_model::{ChatTemplate, Message, RenderOptions, SpecialTokens};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|template: &str| {
    let special = SpecialTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    };
    let options = RenderOptions { add_generation_prompt: Some(true), ..RenderOptions::default() };
    let messages = [Message::new("system", "Be brief."), Message::user("What is 2 + 2?")];
    let template = ChatTemplate::new(Path::new("chat_template.jinja"), template, special);
    let _ = template.render(&messages, &options);
});
