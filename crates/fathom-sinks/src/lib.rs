#![doc = include_str!("../README.md")]

mod agreement;
mod checked;
mod clamp;
mod detect;
mod detections;
mod distributions;
pub mod explain;
mod grid;
mod levels;
mod measures;
mod norms;
mod phases;
pub mod plant;
mod preset;
mod probe;
mod run;
mod scalars;
mod scan;
mod sink;
mod tables;
mod vector;

pub use agreement::{Agreement, Combination, MassiveDim, MassiveLayer, MeasuredToken, SinkRates};
pub use clamp::{CLAMP_COSINE, Clamp, ClampedTokens, Suppressed, TextClamps, clamp};
pub use detect::{Clip, DetectOptions, Detection, Finding, detect};
pub use detections::{ScanNote, TraceDetection, read_detections, reclassify};
pub use distributions::{Bin, TokenCount, position_histogram, token_counts};
pub use grid::Grid;
pub use levels::{Level, levels};
pub use measures::{Measure, MeasureSet, TokenMeasures, TokenScores, token_measures};
pub use norms::{NormCurve, NormCurves, norm_curves};
pub use phases::{Phase, Phases};
pub use preset::{Class, Preset};
pub use probe::{ScalarOptions, ScalarProbe, ScalarRows};
pub use run::{
    AdapterNote, Counts, Fingerprints, Growth, LayerScores, Manifest, MeasureRow, ModelNote,
    NormRow, ReadNote, RunDir, RunTable, RunWriter, Skipped, Status, TraceResult, TraceScores,
    TraceText, TracesNote, ids_sha256, replace_bytes,
};
pub use scalars::{CandidateCosines, FinalState, TraceScalars};
pub use scan::{Progress, ScanOptions, TraceScan, scan, scan_trace};
pub use sink::{Measures, Sink};
pub use tables::{LayerShare, SinkRow, TokenRow, TokenShare};
