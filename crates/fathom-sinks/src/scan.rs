//! The scan: runs traces through a model and writes a run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use fathom_backend::Backend;
use fathom_model::{
    Error, PREFILL_CHUNK, PromptOptions, Result, SequenceOptions, TokenizedTrace, Transformer,
};
use serde::{Deserialize, Serialize};

use crate::checked::Checked;
use crate::{
    DetectOptions, LayerScores, NormCurves, Phases, Preset, RunDir, RunWriter, ScalarOptions,
    ScalarProbe, ScanNote, TokenMeasures, TraceDetection, TraceResult, TraceScores, detect,
    norm_curves, token_measures,
};

/// Options of a scan: everything a result depends on except model and traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScanOptions {
    /// Rules of alignment and classification.
    pub preset: Preset,
    /// τ; see [`DetectOptions::threshold`].
    pub threshold: f32,
    /// See [`DetectOptions::rise_factor`].
    pub rise_factor: f32,
    /// Leading positions that are candidates for the reference sink.
    pub reference: Vec<usize>,
    /// Which phases' sinks are listed. All phases are stored in any case.
    #[serde(skip_serializing_if = "Phases::is_default", default)]
    pub phases: Phases,
    /// Whether to measure sink scores.
    pub attention: bool,
    /// Whether to keep every head's score of every token, not only of sinks.
    pub all_heads: bool,
    /// Maximum number of tokens per trace; `None`: all.
    pub max_tokens: Option<usize>,
    /// Maximum number of traces; `None`: all.
    pub limit: Option<usize>,
    /// Whether prompts are formatted with the model's chat template.
    pub chat_template: bool,
    /// Other options for prompts.
    #[serde(skip_serializing_if = "PromptOptions::is_default", default)]
    pub prompts: PromptOptions,
    /// Operand precision: `f32` or `bf16`.
    pub precision: String,
}

impl ScanOptions {
    /// The preset's rules, position 0 as the reference, full traces, no attention.
    pub fn new(preset: Preset) -> ScanOptions {
        let DetectOptions { threshold, rise_factor, .. } = DetectOptions::new(preset);
        ScanOptions {
            preset,
            threshold,
            rise_factor,
            reference: vec![0],
            phases: Phases::Largest,
            attention: false,
            all_heads: false,
            max_tokens: None,
            limit: None,
            chat_template: true,
            prompts: PromptOptions::default(),
            precision: "f32".to_owned(),
        }
    }

    /// What detection needs. A scan also finds massive activations.
    pub fn scalars(&self) -> ScalarOptions {
        ScalarOptions {
            candidates: self.reference.clone(),
            final_state: self.preset == Preset::Upstream,
            massive: false,
        }
    }

    /// How sinks are detected in the measurements.
    pub fn detect(&self) -> DetectOptions {
        let ScanOptions { preset, threshold, rise_factor, .. } = *self;
        DetectOptions { preset, threshold, rise_factor }
    }

    /// Number of tokens of a trace that are scanned.
    fn tokens(&self, trace: &TokenizedTrace) -> usize {
        self.max_tokens.map_or(trace.ids.len(), |max| max.min(trace.ids.len()))
    }
}

/// Receives the progress of a scan and can cancel it.
pub trait Progress {
    /// The scan begins with `tokens` tokens, those of the traces not yet recorded.
    fn start(&mut self, tokens: usize);
    /// `tokens` more tokens are done.
    fn advance(&mut self, tokens: usize);
    /// A trace has been recorded.
    fn trace(&mut self, detection: &TraceDetection);
    /// Called before each layer of each pass; an error cancels the scan.
    ///
    /// # Errors
    /// Any error ends the scan, which can be resumed.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Ignores progress and never cancels.
impl Progress for () {
    fn start(&mut self, _: usize) {}
    fn advance(&mut self, _: usize) {}
    fn trace(&mut self, _: &TraceDetection) {}
}

/// The scan result of one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceScan {
    /// Its sinks.
    pub detection: TraceDetection,
    /// Norms of its sinks and of its average token.
    pub curves: NormCurves,
    /// The tokens and layers at which one of the four measures holds.
    pub measures: Vec<TokenMeasures>,
    /// Its sink scores, if attention is measured.
    pub scores: Option<TraceScores>,
}

/// Scans `traces` that `writer` has not yet recorded, and finishes the run.
///
/// `token_text` returns the text of a token id, if known.
///
/// # Errors
/// There are no traces, a trace does not fit the model, activations are not finite, or the disk is
/// full. Traces recorded before are kept, and the run can be resumed.
pub fn scan<B: Backend>(
    model: &Transformer<B>,
    traces: &[TokenizedTrace],
    token_text: &dyn Fn(u32) -> Option<String>,
    mut writer: RunWriter,
    progress: &mut dyn Progress,
) -> Result<RunDir> {
    let options = writer.manifest().options.clone();
    let traces = &traces[..options.limit.unwrap_or(usize::MAX).min(traces.len())];
    if traces.is_empty() {
        return Err(Error::Request("there are no traces to scan".to_owned()));
    }
    if !writer.is_complete() {
        let left = &traces[writer.recorded().min(traces.len())..];
        progress.start(left.iter().map(|trace| options.tokens(trace)).sum());
        let mut texts = BTreeMap::new();
        for trace in left {
            let ids = &trace.ids[..options.tokens(trace)];
            for id in ids {
                if let Entry::Vacant(entry) = texts.entry(*id)
                    && let Some(text) = token_text(*id)
                {
                    entry.insert(text);
                }
            }
            let TraceScan { detection, curves, measures, scores } =
                scan_trace(model, trace, token_text, &options, progress)
                    .map_err(|error| of_trace(trace, error))?;
            let result = TraceResult {
                detection: &detection,
                curves: &curves,
                measures: &measures,
                scores: scores.as_ref(),
                ids,
                texts: &texts,
            };
            writer.record(&result)?;
            progress.trace(&detection);
        }
    }
    writer.finish()
}

/// Adds the trace to an error that names no file.
fn of_trace(trace: &TokenizedTrace, error: Error) -> Error {
    match error {
        Error::Request(problem) => Error::Request(format!("trace {}: {problem}", trace.index)),
        other => other,
    }
}

/// Scans one trace. Reports tokens to `progress` and checks it for cancellation.
///
/// # Errors
/// As [`scan`].
pub fn scan_trace<B: Backend>(
    model: &Transformer<B>,
    trace: &TokenizedTrace,
    token_text: &dyn Fn(u32) -> Option<String>,
    options: &ScanOptions,
    progress: &mut dyn Progress,
) -> Result<TraceScan> {
    let config = model.config();
    let ids = &trace.ids[..options.tokens(trace)];
    let measured = ScalarOptions { massive: true, ..options.scalars() };
    let mut probe = ScalarProbe::new(config.layers, ids, &measured);
    let mut sequence = model.new_sequence(SequenceOptions {
        planned_len: Some(ids.len()),
        sink_scores: options.attention,
        ..SequenceOptions::default()
    });
    let mut done = 0;
    // Both the chunk callback and the check borrow `progress`, one at a time.
    let progress = RefCell::new(progress);
    let mut check = || progress.borrow_mut().check();
    let mut checked = Checked { probe: &mut probe, check: &mut check };
    model.prefill(&mut sequence, ids, PREFILL_CHUNK, Some(&mut checked), &mut |total| {
        progress.borrow_mut().advance(total - done);
        done = total;
    })?;

    let scalars = probe.finish()?;
    let detection = detect(&scalars, &options.detect());
    let counted = detection.sink_positions(options.phases);
    let scores = match options.attention {
        false => None,
        true => {
            let layer = |l| Ok(model.sink_score(&sequence, l)?.unwrap_or_default());
            let layers = (0..config.layers).map(layer);
            Some(trace_scores(layers, config.heads, &counted, options.all_heads)?)
        }
    };
    let curves = norm_curves(&scalars, &detection, options.phases);
    let measures = token_measures(&scalars, &detection, scores.as_ref(), options.rise_factor);
    let note = ScanNote::new(&detection, config.layers, ids.len(), options.preset);
    let lengths = (trace.prompt_len, trace.ids.len());
    let mut detection = TraceDetection::new(detection, note, trace.index, lengths);
    for sink in detection.all_sinks_mut() {
        sink.token_text = token_text(sink.token_id);
        if let Some(scores) = &scores {
            let means = scores.layers.iter().map(|layer| layer.mean[sink.position]);
            sink.sink_score = Some(means.collect());
        }
    }
    Ok(TraceScan { detection, curves, measures, scores })
}

/// Reduces the scores `[heads, T]` of every layer.
fn trace_scores(
    layers: impl Iterator<Item = Result<Vec<f32>>>,
    heads: usize,
    sinks: &[usize],
    all_heads: bool,
) -> Result<TraceScores> {
    let layer = |scores: Result<Vec<f32>>| {
        let scores = scores?;
        Ok(if all_heads {
            LayerScores::new(&scores, heads, 0..scores.len() / heads)
        } else {
            LayerScores::new(&scores, heads, sinks.iter().copied())
        })
    };
    Ok(TraceScores { layers: layers.map(layer).collect::<Result<_>>()? })
}
