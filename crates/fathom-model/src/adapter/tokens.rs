//! Tokenizer and chat template in an adapter's directory, which are not used.

use std::fs;
use std::path::Path;

use crate::sanitize::sanitize;
use crate::{ChatTemplate, Remark, Tokenizer};

/// Remarks about a tokenizer or chat template in an adapter's directory that differs from the base
/// model's. Those of the base model are used.
pub fn adapter_text_remarks(adapter: &Path, base: &Path) -> Vec<Remark> {
    tokenizer(adapter, base).into_iter().chain(template(adapter, base)).collect()
}

fn tokenizer(adapter: &Path, base: &Path) -> Option<Remark> {
    const FILE: &str = "tokenizer.json";
    let path = adapter.join(FILE);
    let same = |one: &[u8], other: &[u8]| one == other;
    if !path.exists() || same(&fs::read(&path).ok()?, &fs::read(base.join(FILE)).ok()?) {
        return None;
    }
    let remark = |text: String| Some(Remark::file("adapter-tokenizer", &path, text));
    let (Ok(Some(theirs)), Ok(Some(ours))) = (Tokenizer::find(adapter), Tokenizer::find(base))
    else {
        return remark("cannot be used; the base's tokenizer is used instead".to_owned());
    };
    let ids = theirs.vocab_size().max(ours.vocab_size());
    let ids = 0..u32::try_from(ids).unwrap_or(u32::MAX);
    let differs = |id: &u32| theirs.id_to_token(*id) != ours.id_to_token(*id);
    let differing: Vec<u32> = ids.filter(differs).collect();
    let first = *differing.first()?;
    let shown = |token: Option<String>| match token {
        Some(token) => format!("`{}`", sanitize(&token)),
        None => "none".to_owned(),
    };
    remark(format!(
        "names {} of its tokens differently from the base's, which is used; the first is {first}, \
         {} here and {} there",
        differing.len(),
        shown(theirs.id_to_token(first)),
        shown(ours.id_to_token(first))
    ))
}

fn template(adapter: &Path, base: &Path) -> Option<Remark> {
    // A template that cannot be read is ignored: it would not be used anyway.
    let theirs = ChatTemplate::from_dir(adapter).ok().flatten()?;
    let ours = ChatTemplate::from_dir(base).ok().flatten();
    if ours.is_some_and(|ours| ours.has_text_of(&theirs)) {
        return None;
    }
    let text = "is another chat template than the base's, which is used";
    Some(Remark::file("adapter-chat-template", theirs.path(), text))
}
