//! The models and how they decode: the arguments that `generate` and `serve` share.

use std::path::PathBuf;

use crate::cli::draft_arg::DraftArg;
use crate::cli::gamma_arg::GammaArg;
use crate::cli::mode_arg::ModeName;
use crate::cli::pair_args::PairArgs;
use crate::cli::prompt_args::PromptArgs;
use crate::{GenerateOptions, Pair, Remark, Remarks, Result, Traces};

/// Target and draft, and how they decode.
#[derive(Debug, clap::Args)]
pub struct DecodingArgs {
    #[command(flatten)]
    pub pair: PairArgs,
    /// The draft: a smaller model with the target's vocabulary; beyond the draft's context,
    /// decoding continues without it. `suffix` needs no model: what followed the last tokens where
    /// they occurred before, in the prompt or the text, is the draft
    #[arg(long, value_name = "D")]
    draft: Option<DraftArg>,
    /// Decoding mode [default: pearl with a draft model, suffix with --draft suffix, ar without]
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<ModeName>,
    /// Draft length in tokens; `auto` measures which is fastest
    #[arg(long, value_name = "N", default_value = "auto")]
    gamma: GammaArg,
    /// Traces that guesses may come from, next to the prompt and the text: earlier outputs, or
    /// documents that are quoted
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Maximum number of key/value cache pages of 128 tokens for all running texts, per model
    /// [default: enough for a batch of full contexts]
    #[arg(long, value_name = "N")]
    kv_pages: Option<usize>,
}

impl DecodingArgs {
    /// Opens the models and reads the corpus. Adds remarks about both. The weights are not read
    /// yet.
    pub fn open(&self, prompts: &PromptArgs, remarks: &mut Remarks) -> Result<Pair> {
        let mut pair = self.pair.open(self.draft.as_ref().and_then(DraftArg::model), prompts)?;
        remarks.extend(pair.remarks());
        if let Some(path) = &self.corpus {
            let traces = Traces::read(path, pair.target())?;
            remarks.extend(traces.remarks().iter().cloned());
            pair.add_to_corpus(&traces);
            if self.mode() == ModeName::Ar {
                let text = "--corpus has no effect: mode `ar` guesses nothing".to_owned();
                remarks.extend([Remark::advice("unused-corpus", text)]);
            }
        }
        Ok(pair)
    }

    /// The options of an engine for at most `batch_size` texts at a time.
    pub fn options(&self, batch_size: usize, prefix_cache: bool) -> GenerateOptions {
        GenerateOptions {
            mode: Some(self.mode().into()),
            gamma: self.gamma.into(),
            batch_size,
            kv_pages: self.kv_pages,
            prefix_cache,
            placement: self.pair.placement(),
        }
    }

    /// A remark if a draft model cannot follow texts of `longest` tokens, prompts included.
    pub fn draft_remark(&self, pair: &Pair, longest: usize) -> Option<Remark> {
        match self.mode() {
            ModeName::Ar | ModeName::Suffix => None,
            _ => pair.draft_remark(longest),
        }
    }

    fn mode(&self) -> ModeName {
        self.mode.unwrap_or(match self.draft {
            Some(DraftArg::Model(_)) => ModeName::Pearl,
            Some(DraftArg::Suffix) => ModeName::Suffix,
            None => ModeName::Ar,
        })
    }
}
