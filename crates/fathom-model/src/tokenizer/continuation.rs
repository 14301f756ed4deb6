//! The ids of a text that continues another text.
//!
//! SentencePiece tokenizers put `▁` before the first word of a text (`▁Hello`), and some byte-level
//! tokenizers put a space there. Both are wrong in the middle of a text. So the tokenization steps
//! are run one by one here, without that prefix for the piece at offset 0. All other pieces, such
//! as those after an added token, are tokenized as usual.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, Result, Token, Tokenizer,
};

/// The ids of `text` without a prefix before its first character and without special tokens.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let normalizer = tokenizer.get_normalizer().map(WithoutPrepend);
    let mut pieces =
        tokenizer.get_added_vocabulary().extract_and_normalize(normalizer.as_ref(), text);
    let mut steps = Vec::new();
    tokenizer.get_pre_tokenizer().into_iter().for_each(|step| flatten(step, &mut steps));
    run(&mut pieces, &steps, tokenizer.get_model())?;
    Ok(tokens(&pieces).map(|token| token.id).collect())
}

/// Whether a piece begins at offset 0, which is how the `tokenizers` crate defines the first piece.
fn is_first(piece: &NormalizedString) -> bool {
    piece.offsets_original().0 == 0
}

/// A normalizer that does not prepend anything to the first piece.
struct WithoutPrepend<'a>(&'a NormalizerWrapper);

impl Normalizer for WithoutPrepend<'_> {
    fn normalize(&self, piece: &mut NormalizedString) -> Result<()> {
        match (is_first(piece), self.0) {
            (true, NormalizerWrapper::Prepend(_)) => Ok(()),
            (true, NormalizerWrapper::Sequence(steps)) => {
                steps.as_ref().iter().try_for_each(|step| WithoutPrepend(step).normalize(piece))
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

/// The step with its prefix switched off; `None` if it adds no prefix.
fn without_prefix(step: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
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

/// Runs the pre-tokenizer `steps` and then the model. At a step that adds a prefix, the first piece
/// is tokenized separately: by that step without its prefix, all later steps and the model.
fn run(
    pieces: &mut PreTokenizedString,
    steps: &[&PreTokenizerWrapper],
    model: &ModelWrapper,
) -> Result<()> {
    for (i, step) in steps.iter().enumerate() {
        if let Some(unprefixed) = without_prefix(step) {
            pieces.split(|_, piece| {
                if !is_first(&piece) {
                    return Ok([(piece, None)]);
                }
                let mut first = PreTokenizedString::from(piece.clone());
                unprefixed.pre_tokenize(&mut first)?;
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
