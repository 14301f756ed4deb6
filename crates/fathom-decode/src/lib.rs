//! Turning logits into text: sampling, autoregressive and speculative decoding, PEARL.
//!
//! The state machines know no model. They are told what was drafted and ask a [`Judge`] what the target
//! says about it; the same code therefore runs under an engine, in tests on toy language models and in
//! [`simulate`].
//!
//! One formula covers the ways of decoding ([`verify`]): of the tokens drafted after the text, the target
//! accepts some; at the first it rejects it puts its own.
//!
//! | way | drafts judged in one pass of the target | when all are accepted |
//! |---|---|---|
//! | [`ar`] | none | the target's next token |
//! | [`sd`] | the γ just drafted | the target's next token |
//! | [`Pearl`] | the rest of the last chunk and the first token of the chunk being drafted meanwhile | the rest of the new chunk waits |

pub mod ar;
pub mod bench;
mod completion;
pub mod engine;
pub mod generation;
mod metrics;
mod mode;
mod pearl;
mod planner;
mod proposal;
mod sampling;
pub mod sd;
pub mod seed_table;
pub mod simulate;
mod stop_strings;
mod text_stream;
mod threads;
mod verify;
mod vocabulary;

pub use completion::{Completion, EndRules, Finish, StopCheck};
pub use metrics::{Acceptance, Runs};
pub use mode::Mode;
pub use pearl::{Pearl, Phase};
pub(crate) use planner::Planner;
pub use planner::{GammaLimits, Lengths, Line, Mean};
pub use proposal::{Drafted, Proposal};
pub use sampling::{
    Distribution, GreedyJudge, History, LogitsJudge, Purpose, RequestRng, Sampler, SamplingParams,
    philox4x32,
};
pub use stop_strings::StopStrings;
pub use text_stream::TextStream;
pub use threads::{Placement, ThreadSplit};
pub use verify::{Judge, Outcome, Verdict, verify};
pub use vocabulary::shared_vocabulary;
