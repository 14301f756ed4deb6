//! The tokenizer of the planted model: words are single tokens, any other text is split into bytes.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Beginning of every sequence.
pub(super) const BOS: &str = "<|begin_of_text|>";
/// Beginning of a message.
pub(super) const IM_START: &str = "<|im_start|>";
/// End of a message, and the EOS token.
pub(super) const IM_END: &str = "<|im_end|>";

/// The contents of `chat_template.jinja`.
pub(super) const CHAT_TEMPLATE: &str = "\
{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The pre-tokenizer's regular expression. Each match is looked up in the vocabulary.
const PIECE: &str = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s";

/// Words that are one token without a space before them, as at the start of a line.
const CAPITALISED: &[&str] = &[
    "Again", "Find", "Hence", "However", "If", "It", "Let", "Now", "So", "The", "Then", "Wait",
    "We", "What",
];

/// Words that are one token after a space.
const WORDS: &[&str] = &[
    "a", "add", "again", "and", "answer", "are", "b", "be", "but", "check", "done", "for", "from",
    "give", "hold", "holds", "however", "if", "in", "is", "it", "know", "let", "maybe", "must",
    "need", "not", "now", "number", "of", "once", "rest", "right", "see", "so", "step", "sum",
    "take", "than", "that", "the", "then", "this", "to", "twice", "wait", "we", "what", "when",
    "x", "y", "z", "+", "=", "-", "*",
];

/// Role names, which are one token without a space before them.
const BARE: &[&str] = &["user", "assistant", "system"];

/// All tokens. Ids 0 to 255 are the bytes.
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    pub(super) fn new() -> Vocabulary {
        let bytes = (0..=u8::MAX).map(|byte| byte_char(byte).to_string());
        let spaced = WORDS.iter().map(|word| byte_chars(&format!(" {word}")));
        let plain = CAPITALISED.iter().chain(BARE).map(|word| (*word).to_owned());
        let special = [BOS, IM_START, IM_END].map(str::to_owned);
        let tokens: Vec<String> = bytes.chain(spaced).chain(plain).chain(special).collect();
        let ids = tokens.iter().cloned().zip(0..).collect();
        Vocabulary { tokens, ids }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The id of the token with a text; `None` if the text is not a single token.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        match self.ids.get(text) {
            Some(id) if is_special(text) => Some(*id),
            _ => self.ids.get(&byte_chars(text)).copied(),
        }
    }

    /// The ids of a text without special tokens.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        pieces(text).flat_map(|piece| self.piece_ids(piece)).collect()
    }

    fn piece_ids(&self, piece: &str) -> Vec<u32> {
        match self.id(piece) {
            Some(id) => vec![id],
            None => piece.bytes().map(u32::from).collect(),
        }
    }

    /// The contents of `tokenizer.json`: byte-level BPE without merges. Pieces in the vocabulary
    /// become one token (`ignore_merges`), and others one token per byte.
    pub(super) fn tokenizer_json(&self) -> Value {
        let vocab: Map<String, Value> =
            self.tokens.iter().cloned().zip((0..self.len()).map(Value::from)).collect();
        let added = |token: &str| {
            json!({"id": self.ids[token], "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        let bos = json!({"SpecialToken": {"id": BOS, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let second = json!({"Sequence": {"id": "B", "type_id": 0}});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [added(BOS), added(IM_START), added(IM_END)],
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PIECE}, "behavior": "Isolated",
                 "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                 "use_regex": false},
            ]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [bos, text],
                "pair": [bos, text, second],
                "special_tokens": {BOS: {"id": BOS, "ids": [self.ids[BOS]], "tokens": [BOS]}},
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                        "use_regex": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                      "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                      "vocab": vocab, "merges": []},
        })
    }

    /// The contents of `tokenizer_config.json`.
    pub(super) fn tokenizer_config_json(&self) -> Value {
        json!({
            "add_bos_token": true,
            "add_eos_token": false,
            "bos_token": BOS,
            "eos_token": IM_END,
            "clean_up_tokenization_spaces": false,
            "tokenizer_class": "PreTrainedTokenizerFast",
        })
    }
}

fn is_special(text: &str) -> bool {
    [BOS, IM_START, IM_END].contains(&text)
}

/// The character that represents a byte in GPT-2's byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|earlier| !printable(*earlier)).count() as u32;
    char::from_u32(0x100 + nth).unwrap_or('\u{FFFD}')
}

fn byte_chars(text: &str) -> String {
    text.bytes().map(byte_char).collect()
}

/// The matches of [`PIECE`] in a text, which cover all of it.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let len = piece_len(rest);
        let (piece, after) = rest.split_at(len);
        rest = after;
        (len > 0).then_some(piece)
    })
}

/// Length in bytes of the first piece; 0 for an empty text.
fn piece_len(text: &str) -> usize {
    let (space, word) = match text.strip_prefix(' ') {
        Some(word) => (1, word),
        None => (0, text),
    };
    let run = |of: fn(char) -> bool| word.find(|c| !of(c)).unwrap_or(word.len());
    let mark = |c: char| !c.is_whitespace() && !c.is_alphabetic() && !c.is_numeric();
    match (run(char::is_alphabetic), run(mark)) {
        (0, 0) => text.chars().next().map_or(0, char::len_utf8),
        (letters, marks) => space + letters.max(marks),
    }
}
