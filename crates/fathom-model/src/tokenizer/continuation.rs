//! The ids of a text that goes on from another.
//!
//! Tokenizers of the SentencePiece kind put a mark before the first word of a text (`▁Hello`), some
//! byte-level ones a space. In the middle of a text there is none. The library's steps are run one
//! by one here, those that put the mark without it, for the piece at the very start of the text
//! only: behind an added token everything is as ever.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, Result, Token, Tokenizer,
};

/// The ids of `text` without a mark before its first character and without special tokens around
/// it.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let normalizer = tokenizer.get_normalizer().map(Unmarked);
    let mut pieces =
        tokenizer.get_added_vocabulary().extract_and_normalize(normalizer.as_ref(), text);
    let mut steps = Vec::new();
    tokenizer.get_pre_tokenizer().into_iter().for_each(|step| flatten(step, &mut steps));
    run(&mut pieces, &steps, tokenizer.get_model())?;
    Ok(tokens(&pieces).map(|token| token.id).collect())
}

/// Whether a piece is where the text begins. (The library's own rule for "first".)
fn is_first(piece: &NormalizedString) -> bool {
    piece.offsets_original().0 == 0
}

/// A normalizer that puts nothing before the first piece of a text.
struct Unmarked<'a>(&'a NormalizerWrapper);

impl Normalizer for Unmarked<'_> {
    fn normalize(&self, piece: &mut NormalizedString) -> Result<()> {
        match (is_first(piece), self.0) {
            (true, NormalizerWrapper::Prepend(_)) => Ok(()),
            (true, NormalizerWrapper::Sequence(steps)) => {
                steps.as_ref().iter().try_for_each(|step| Unmarked(step).normalize(piece))
            }
            (_, normalizer) => normalizer.normalize(piece),
        }
    }
}

fn flatten<'a>(step: &'a PreTokenizerWrapper, steps: &mut Vec<&'a PreTokenizerWrapper>) {
    match step {
        PreTokenizerWrapper::Sequence(inner) => {
            inner.as_ref().iter().for_each(|step| flatten(step, steps));
        }
        step => steps.push(step),
    }
}

/// A step without its mark; `None` for a step that puts none.
fn without_mark(step: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
    match step {
        PreTokenizerWrapper::Metaspace(step) if step.prepend_scheme != PrependScheme::Never => {
            let mut step = step.clone();
            step.set_prepend_scheme(PrependScheme::Never);
            Some(PreTokenizerWrapper::Metaspace(step))
        }
        PreTokenizerWrapper::ByteLevel(step) if step.add_prefix_space => {
            Some(PreTokenizerWrapper::ByteLevel(step.add_prefix_space(false)))
        }
        _ => None,
    }
}

/// The pre-tokenizer's `steps` and then the model. Where a step puts a mark, the first piece goes
/// its own way to the end.
fn run(
    pieces: &mut PreTokenizedString,
    steps: &[&PreTokenizerWrapper],
    model: &ModelWrapper,
) -> Result<()> {
    for (i, step) in steps.iter().enumerate() {
        if let Some(unmarked) = without_mark(step) {
            pieces.split(|_, piece| {
                if !is_first(&piece) {
                    return Ok([(piece, None)]);
                }
                let mut first = PreTokenizedString::from(piece.clone());
                unmarked.pre_tokenize(&mut first)?;
                run(&mut first, &steps[i + 1..], model)?;
                let tokens = tokens(&first).cloned().collect();
                Ok([(piece, Some(tokens))])
            })?;
        }
        step.pre_tokenize(pieces)?;
    }
    pieces.tokenize(|piece| model.tokenize(piece.get()))
}

fn tokens(pieces: &PreTokenizedString) -> impl Iterator<Item = &Token> {
    let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
    splits.into_iter().flat_map(|(_, _, tokens)| tokens.iter().flatten())
}
