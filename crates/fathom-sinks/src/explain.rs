//! How sinks form and what they do: the paper's sections 4 and 5, on a finished run.
//!
//! Each [`Analysis`] has its result in `RUN/explain/<analysis>.json`, a [`Stored`] envelope around
//! the type of the module of that name; [`read`] gets it back.

mod again;
mod clusters;
mod collect;
mod creation;
mod driver;
mod effect;
mod entropy;
#[cfg(test)]
mod fixture;
mod gram;
mod neurons;
mod parts;
mod pass;
mod pca;
mod predictions;
mod separation;
mod stages;
mod statistics;
mod store;
mod subjects;
mod suppress;
mod swap;
mod tsne;
mod variants;

pub use clusters::{ClusterPlace, ClusterPoint, Clusters, Decision, Separation};
pub use driver::{ExplainProgress, Explanation, Inputs, check_adapter, check_model, check_traces};
pub use effect::{Effect, EffectPoint, LayerEffect};
pub use entropy::{Entropy, EntropySeries, Scope, TraceEntropy, Window};
pub use neurons::{Ablation, HeadReading, LayerNeurons, Neuron, Neurons};
pub use pca::{ComponentSweep, LayerPca, Pca, SweepPoint};
pub use stages::{LayerStages, SinkStages, Stage, StageSummary, Stages};
pub use statistics::{Line, Share, Summary};
pub use store::{Analysis, AnalysisResult, ExplainOptions, Stored, read, result_file};
pub use subjects::SinkNote;
pub use suppress::{Continuation, LaterLayer, LevelChange, Suppress, SuppressedLayer, Written};
pub use swap::{Swap, SwapCell};
