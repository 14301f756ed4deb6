//! Untrusted `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`: the result
//! is a tokenizer whose ids are in its vocabulary, or a one-line error that names the file.
#![no_main]

use fathom_model::{Tokenizer, TokenizerFiles};
use libfuzzer_sys::fuzz_target;

const TOKENIZERS: [&str; 2] = [
    include_str!("../../crates/fathom-model/tests/data/tokenizers/parity/legacy_prepend.json"),
    include_str!("../../crates/fathom-model/tests/data/tokenizers/parity/wordpiece.json"),
];

// The input is the three files separated by `---`. An empty one counts as not existing.
fuzz_target!(|text: &str| {
    let mut texts = text.splitn(3, "\n---\n");
    let mut next = || texts.next().filter(|text| !text.trim().is_empty()).map(str::to_owned);
    let (config, special_tokens_map, added_tokens) = (next(), next(), next());
    for tokenizer in TOKENIZERS {
        let files = TokenizerFiles {
            dir: "m".into(),
            tokenizer: tokenizer.to_owned(),
            config: config.clone(),
            special_tokens_map: special_tokens_map.clone(),
            added_tokens: added_tokens.clone(),
        };
        let mut tokenizer = match Tokenizer::from_files(&files) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with("m/") && !message.contains('\n'), "{message:?}");
                continue;
            }
        };
        let size = tokenizer.vocab_size();
        let check = |ids: &[u32]| {
            for id in ids {
                assert!((*id as usize) < size && tokenizer.id_to_token(*id).is_some(), "{id}");
            }
        };
        // The text of the files contains the tokens they declare.
        for bos in [false, true] {
            check(&tokenizer.encode(text, bos).unwrap());
        }
        check(&tokenizer.encode_continuation(text).unwrap());
        for remark in tokenizer.remarks() {
            assert!(!remark.to_string().contains('\n'), "{remark}");
        }
        if tokenizer.set_bos(Some(true)).is_ok() {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids.first().copied(), tokenizer.bos_id());
        }
    }
});
