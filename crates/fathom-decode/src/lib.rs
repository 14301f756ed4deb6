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
mod auto_mode;
pub mod bench;
mod completion;
pub mod engine;
mod gamma;
pub mod generation;
mod metrics;
mod mode;
mod pass_cost;
mod pearl;
mod planner;
mod proposal;
mod run_acceptance;
mod running;
mod sampling;
pub mod sd;
pub mod seed_table;
pub mod simulate;
mod speeds;
mod stop_strings;
mod text_stream;
mod threads;
mod verify;
mod vocabulary;

pub(crate) use auto_mode::AutoMode;
pub use completion::{Completion, EndRules, Finish, StopCheck};
pub(crate) use gamma::AdaptiveGamma;
pub use gamma::{GammaLimits, Lengths};
pub use metrics::{Acceptance, Runs};
pub use mode::Mode;
pub use pearl::{Pearl, Phase};
pub(crate) use planner::Planner;
pub use proposal::{Drafted, Proposal};
pub use running::{Line, Mean};
pub use sampling::{
    Distribution, GreedyJudge, History, LogitsJudge, Purpose, RequestRng, Sampler, SamplingParams,
    philox4x32,
};
pub(crate) use speeds::Speeds;
pub use stop_strings::StopStrings;
pub use text_stream::TextStream;
pub use threads::{Placement, ThreadSplit};
pub use verify::{Judge, Outcome, Verdict, verify};
pub use vocabulary::shared_vocabulary;
