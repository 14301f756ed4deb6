//! Finding, grading and explaining attention sinks.
//!
//! One streaming pass over a trace keeps a handful of numbers per (layer, token) ([`ScalarProbe`] →
//! [`TraceScalars`]); everything else is arithmetic on those: which tokens are sinks ([`detect`]), their
//! levels ([`levels`]), tokens and positions ([`token_counts`], [`position_histogram`]), norms
//! ([`norm_curves`]).

mod detect;
mod distributions;
mod grid;
mod levels;
mod norms;
mod preset;
mod probe;
mod scalars;
mod sink;
mod vector;

pub use detect::{Clip, DetectOptions, Detection, Finding, detect};
pub use distributions::{Bin, TokenCount, position_histogram, token_counts};
pub use grid::Grid;
pub use levels::{Level, levels};
pub use norms::{NormCurve, NormCurves, norm_curves};
pub use preset::{Class, Preset};
pub use probe::{ScalarOptions, ScalarProbe};
pub use scalars::{CandidateCosines, FinalState, TraceScalars};
pub use sink::{Measures, Sink};
