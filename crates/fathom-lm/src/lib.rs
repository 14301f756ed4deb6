#![doc = include_str!("../README.md")]

#[cfg(feature = "cli")]
pub mod cli;
mod cpu;
pub mod demo;
mod explain;
mod generate;
mod model;
mod pass;
mod report;
mod scan;
#[cfg(feature = "serve")]
mod serve;
mod source;
pub mod tables;
mod text;
mod traces;

pub use cpu::{Weights, cpu, parse_isa, parse_precision};
pub use explain::{Explain, Explained, RunInputs, explain};
pub use generate::{
    GenerateOptions, Pair, PairEngine, PromptFile, Prompts, SinkCollector, SinkSuppressor,
    SinkWatcher, TextEngine, TextRequest, TextsInProgress, TextsUpdate, WatchedSinks,
    available_cores, placement, recommended_params,
};
pub use model::{Model, ModelFiles, ModelOptions};
pub use pass::{Array, Cache, Pass, PassOutput, parse_edits, parse_site};
pub use report::{ReportOptions, write_report};
pub use scan::{Run, Scan};
#[cfg(feature = "serve")]
pub use serve::{ServeOptions, serve};
pub use source::{AdapterSource, ModelSource};
pub use text::{Input, TextFiles};
pub use traces::{ReadOptions, Traces, is_piped};

// The crates underneath, for programs that depend on this crate alone.
#[cfg(feature = "serve")]
pub use fathom_serve;
pub use {fathom_decode, fathom_kernels, fathom_model, fathom_report, fathom_sinks};

pub use fathom_backend::Precision;
pub use fathom_decode::engine::{
    ChangedRows, EditWatcher, EngineHandle, Gamma, HandleMetrics, ModeChoice, Observations,
    RowWatcher, WatchedRows, Watcher,
};
pub use fathom_decode::generation::{Generation, Generator, Piece, Task, TextUpdate, TextUpdates};
pub use fathom_decode::{Finish, Mode, Placement, SamplingParams, Verification};
pub use fathom_kernels::{CpuOptions, Isa};
pub use fathom_model::{
    Access, At, CaptureRequest, Conversation, Edit, EditProbe, Edits, Encoded, Error, LoadProgress,
    LogitRows, Message, ModelConfig, Probe, PromptContent, PromptOptions, Remark, Remarks, Result,
    RowFields, Site, TokenizedTrace,
};
pub use fathom_report::{Format, ReportFiles, Table};
#[cfg(feature = "serve")]
pub use fathom_serve::{Keys, Server, ServerOptions};
pub use fathom_sinks::explain::{
    Analysis, ExplainOptions, ExplainProgress, KeyOptions, KnockoutBy,
};
pub use fathom_sinks::{
    Clamp, Class, Phases, Preset, Progress, ScanOptions, Sink, Suppressed, TraceDetection,
};
