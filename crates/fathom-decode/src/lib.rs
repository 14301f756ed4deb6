#![doc = include_str!("../README.md")]

pub mod ar;
pub mod bench;
mod branch;
mod completion;
mod constraint;
pub mod engine;
pub mod generation;
mod metrics;
mod mode;
mod panics;
mod pearl;
mod planner;
mod proposal;
mod sampling;
pub mod sd;
pub mod seed_table;
pub mod simulate;
mod stop_strings;
mod suffix;
mod text_stream;
mod threads;
mod verify;
mod vocabulary;

pub use branch::{Alternatives, Branch, likeliest_rejections};
pub use completion::{Completion, EndRules, Finish, StopCheck};
pub use constraint::{ConstrainedText, Constraint, TokenMask};
pub use metrics::{Acceptance, AcceptedRuns};
pub use mode::Mode;
pub use pearl::{Pearl, Phase};
pub(crate) use planner::Planner;
pub use planner::{GammaLimits, Lengths, Line, Mean};
pub use proposal::{Drafted, Proposal};
pub use sampling::{
    BlockDraft, BlockJudge, BlockVerification, Distribution, GreedyJudge, History, LogitsJudge,
    Purpose, RequestRng, Sampler, SamplingParams, TokenLogprobs, philox4x32,
};
pub use stop_strings::StopStrings;
pub use suffix::{Guess, Match, SuffixIndex};
pub use text_stream::TextStream;
pub use threads::{Placement, ThreadSplit};
pub use verify::{BlockVerdict, Judge, Outcome, Verdict, Verification, verify};
pub use vocabulary::shared_vocabulary;
