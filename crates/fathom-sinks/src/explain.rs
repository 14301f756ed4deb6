//! How sinks form and what they do: the paper's sections 4 and 5, on a finished run.
//!
//! Each [`Analysis`] has its result in `RUN/explain/<analysis>.json`, a [`Stored`] envelope around the
//! type of the module of that name; [`read`] gets it back.

mod clusters;
mod effect;
mod entropy;
mod neurons;
mod pca;
mod stages;
mod statistics;
mod store;
mod subjects;
mod suppress;
mod swap;

pub use clusters::{ClusterPlace, ClusterPoint, Clusters};
pub use effect::{Effect, EffectPoint, LayerEffect};
pub use entropy::{Entropy, EntropySeries, Scope, TraceEntropy, Window};
pub use neurons::{Ablation, HeadReading, LayerNeurons, Neuron, Neurons};
pub use pca::{ComponentSweep, LayerPca, Pca, SweepPoint};
pub use stages::{LayerStages, SinkStages, Stage, StageSummary, Stages};
pub use statistics::{Line, Share, Summary};
pub use store::{Analysis, AnalysisResult, ExplainOptions, Stored, read};
pub use subjects::SinkNote;
pub use suppress::{LaterLayer, LevelChange, Suppress, SuppressedLayer};
pub use swap::{Swap, SwapCell};
