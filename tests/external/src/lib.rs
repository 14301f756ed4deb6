//! What a program of someone else does with Fathom: it finds the sinks of a model's traces, and has
//! a model write. It knows `fathom-lm` and no other crate of it, and builds no command line.

use std::path::Path;

use fathom_lm::{
    Class, GenerateOptions, Model, ModelOptions, Pair, Preset, Result, SamplingParams, ScanOptions,
    Traces,
};

/// A sink as this program keeps it: trace, position, class, layers.
pub type Found = (usize, usize, Class, Vec<usize>);

/// The sinks of the traces in a file.
///
/// # Errors
/// A model or traces that cannot be used.
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

/// What a model writes after a prompt, greedily, with a draft or without: the text and its token
/// ids.
///
/// # Errors
/// Models or a prompt that cannot be used.
pub fn write(target: &Path, draft: Option<&Path>, prompt: &str) -> Result<(String, Vec<u32>)> {
    let model = |dir: &Path| ModelOptions::new(dir.display().to_string());
    let pair = Pair::open(model(target), draft.map(model))?;
    let params = SamplingParams { max_tokens: 24, ..SamplingParams::default() };
    let texts = pair.generate([prompt], &params, &GenerateOptions::default())?;
    let text = texts.into_iter().next();
    Ok(text.map(|text| (text.output, text.tokens)).unwrap_or_default())
}
