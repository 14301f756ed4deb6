//! A third-party program that uses Fathom: it finds the sinks of a model's traces, and generates
//! text. It depends only on `fathom-lm`, without the command line.

use std::path::Path;

use fathom_lm::{
    Class, GenerateOptions, Model, ModelOptions, Pair, Preset, Result, SamplingParams, ScanOptions,
    Traces,
};

/// A sink: trace, position, class, layers.
pub type Found = (usize, usize, Class, Vec<usize>);

/// The sinks of the traces in a file.
///
/// # Errors
/// The model or the traces cannot be loaded, or the scan fails.
pub fn sinks(model: &Path, traces: &Path) -> Result<Vec<Found>> {
    let model = Model::load(model.display().to_string())?;
    let traces = Traces::read(traces, &model)?;
    let run = model.scan(&traces, ScanOptions::new(Preset::Paper)).run()?;
    let mut found = Vec::new();
    for (number, trace) in run.detections()?.into_iter().enumerate() {
        for sink in trace.sinks {
            found.push((number, sink.position, sink.class, sink.layers));
        }
    }
    Ok(found)
}

/// The greedy continuation of a prompt, with or without a draft: the text and its token ids.
///
/// # Errors
/// A model cannot be loaded, or generation fails.
pub fn write(target: &Path, draft: Option<&Path>, prompt: &str) -> Result<(String, Vec<u32>)> {
    let model = |dir: &Path| ModelOptions::new(dir.display().to_string());
    let pair = Pair::open(model(target), draft.map(model))?;
    let params = SamplingParams { max_tokens: 24, ..SamplingParams::default() };
    let texts = pair.generate([prompt], &params, &GenerateOptions::default())?;
    let text = texts.into_iter().next();
    Ok(text.map(|text| (text.output, text.tokens)).unwrap_or_default())
}
