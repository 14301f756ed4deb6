//! How sinks form and what they do: the paper's sections 4 and 5, on a finished run.
//!
//! Each [`Analysis`] stores its result in `RUN/explain/<analysis>.json`: a [`Stored`] envelope
//! around the type with the analysis' name. [`read`] reads it.
//!
//! An analysis is one module that implements `Analyzer`, and one line in the list below. What it
//! reads from the plain pass is an `Observer`; what it changes in a pass is an `Intervention`.

mod analysis;
mod batch;
mod clusters;
mod collect;
mod compensation;
mod creation;
mod driver;
mod edited;
mod effect;
mod entropy;
mod evict;
#[cfg(test)]
mod fixture;
mod gram;
mod intervention;
mod keys;
mod knockout;
mod neurons;
mod options;
mod parts;
mod pass;
mod pca;
mod predictions;
mod scanned;
mod separation;
mod stages;
mod statistics;
mod store;
mod suppress;
mod swap;
mod tsne;

analysis::analyses! {
    Stages(stages::StagesAnalyzer),
    Pca(pca::PcaAnalyzer),
    Clusters(clusters::ClustersAnalyzer),
    Swap(swap::SwapAnalyzer),
    Effect(effect::EffectAnalyzer),
    Entropy(entropy::EntropyAnalyzer),
    Suppress(suppress::SuppressAnalyzer),
    Neurons(neurons::NeuronsAnalyzer),
    Knockout(knockout::KnockoutAnalyzer),
    Evict(evict::EvictAnalyzer),
}

pub use compensation::{Compensation, Receiver};
pub use driver::{ExplainProgress, Explanation, Inputs, check_adapter, check_model, check_traces};
pub use edited::LevelChange;
pub use options::{ExplainOptions, KeyOptions, KnockoutBy};
pub use scanned::SinkNote;
pub use statistics::{Line, Share, Summary};
pub use store::{AnalysisResult, Stored, read, result_file};
