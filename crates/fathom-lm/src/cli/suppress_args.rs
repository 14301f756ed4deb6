//! `--suppress`: the sinks that are suppressed while texts are generated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use fathom_report::plural;
use serde_json::{Value, json};

use crate::cli::indices::Indices;
use crate::{
    Clamp, Error, Generation, Pair, PairEngine, Result, Run, ScanOptions, SinkSuppressor,
    Suppressed,
};

/// Which sinks to suppress, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sinks")]
pub struct SuppressArgs {
    /// Suppress sinks as they arise: `secondary` at the layers of --at, or those that arise at
    /// LAYER; there, the MLP's output of tokens that align with the reference (cosine above 0.98)
    /// is rescaled, in the target only; what was done is written to each text's line, as field
    /// `suppressed`
    #[arg(long, value_name = "secondary|LAYER")]
    suppress: Option<Suppress>,
    /// Layers at which to suppress, such as `5,7..9`
    #[arg(long, value_name = "LAYERS", requires = "suppress", allow_hyphen_values = true)]
    at: Option<Indices>,
    /// Norm to which the MLP's output is rescaled, if its own is larger [default: the mean of the
    /// prompt's tokens that do not align]
    #[arg(long, value_name = "NORM", requires = "suppress", value_parser = parse_norm)]
    clamp_norm: Option<f32>,
    /// Take layers and norms from a run explained with `fathom explain RUN --suppress`
    #[arg(long, value_name = "RUN", requires = "suppress", conflicts_with = "clamp_norm")]
    suppress_from: Option<PathBuf>,
}

/// `--suppress`.
#[derive(Clone, Copy, Debug)]
enum Suppress {
    Secondary,
    /// The sinks that arise at a layer.
    Level(usize),
}

impl FromStr for Suppress {
    type Err = String;

    fn from_str(text: &str) -> Result<Suppress, String> {
        match (text, text.parse()) {
            ("secondary", _) => Ok(Suppress::Secondary),
            (_, Ok(layer)) => Ok(Suppress::Level(layer)),
            _ => Err("expected `secondary`, or the layer at which the sinks arise: how many \
                      layers they would last is not known while a text is written"
                .to_owned()),
        }
    }
}

fn parse_norm(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(norm) if norm >= 0.0 && norm.is_finite() => Ok(norm),
        _ => Err("must be a number, not negative".to_owned()),
    }
}

impl SuppressArgs {
    /// The layers to clamp; none without --suppress.
    ///
    /// # Errors
    /// Layers that the model does not have, or that are not known; a run of another model, or one
    /// that was not explained.
    pub fn clamps(&self, pair: &Pair) -> Result<Vec<Clamp>> {
        let Some(suppress) = self.suppress else { return Ok(Vec::new()) };
        let all = pair.target().config().layers;
        let at = self.at.as_ref().map(|at| at.resolve("layer", all)).transpose()?;
        let run = self.suppress_from.as_ref().map(|dir| run_norms(dir, pair)).transpose()?;
        let layers = match (suppress, at, &run) {
            (Suppress::Level(layer), _, _) if layer >= all => {
                return refuse(format!("layer {layer}: the model's are 0..={}", all - 1));
            }
            (Suppress::Level(layer), Some(at), _) if at != [layer] => {
                return refuse(format!(
                    "the sinks of layer {layer} arise there and can be clamped nowhere else; \
                     expected no --at, or `--suppress secondary`"
                ));
            }
            (Suppress::Level(layer), _, _) => vec![layer],
            (Suppress::Secondary, Some(at), _) => at,
            (Suppress::Secondary, None, Some(run)) if run.is_empty() => {
                return refuse("the run of --suppress-from has no secondary sinks".to_owned());
            }
            (Suppress::Secondary, None, Some(run)) => run.keys().copied().collect(),
            (Suppress::Secondary, None, None) => {
                let problem = "the layers at which secondary sinks arise are known only from a \
                               scan; expected --at, or --suppress-from with a run";
                return refuse(problem.to_owned());
            }
        };
        let clamp = |layer: usize| match &run {
            None => Ok(Clamp { layer, norm: self.clamp_norm }),
            Some(run) => match run.get(&layer) {
                Some(norm) => Ok(Clamp { layer, norm: *norm }),
                None => refuse(format!("the run of --suppress-from clamps no layer {layer}")),
            },
        };
        layers.into_iter().map(clamp).collect()
    }
}

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::Request(format!("--suppress: {problem}")))
}

/// The norm of each layer that a run's explanation clamps.
fn run_norms(dir: &Path, pair: &Pair) -> Result<BTreeMap<usize, Option<f32>>> {
    let run = Run::open(dir)?;
    let clamps = SinkSuppressor::clamps_of(&run, pair.target())?;
    Ok(clamps.iter().map(|clamp| (clamp.layer, clamp.norm)).collect())
}

/// The sinks suppressed in the texts of a run, and their summary.
pub struct Suppression {
    pub suppressor: SinkSuppressor,
    found: Vec<Suppressed>,
}

impl Suppression {
    /// Starts suppressing sinks in the texts of `engine`. `None` without clamps.
    pub fn start(
        clamps: Vec<Clamp>,
        engine: &PairEngine<'_>,
        rules: &ScanOptions,
    ) -> Option<Suppression> {
        let some = !clamps.is_empty();
        some.then(|| Suppression {
            suppressor: SinkSuppressor::new(engine, clamps, rules),
            found: Vec::new(),
        })
    }

    /// Adds what was suppressed in a finished text to its line.
    pub fn finish(&mut self, generation: &mut Generation) -> Result<()> {
        let suppressed = self.suppressor.suppressed(generation)?;
        let value: Value = serde_json::from_str(&suppressed.to_json()).unwrap_or_default();
        generation.fields.insert("suppressed".to_owned(), value);
        self.found.push(suppressed);
        Ok(())
    }

    /// Numbers of texts and of tokens clamped in them.
    pub fn counts(&self) -> SuppressedCounts {
        let mut counts = SuppressedCounts { texts: self.found.len(), ..Default::default() };
        for suppressed in &self.found {
            counts.tokens += suppressed.tokens;
            counts.changed += usize::from(suppressed.tokens > 0);
            for clamped in &suppressed.layers {
                *counts.layers.entry(clamped.layer).or_default() += clamped.positions.len();
            }
        }
        counts
    }
}

/// Numbers of clamped tokens.
#[derive(Default)]
pub struct SuppressedCounts {
    texts: usize,
    /// Texts with clamped tokens.
    changed: usize,
    tokens: usize,
    /// Tokens clamped at each layer.
    layers: BTreeMap<usize, usize>,
}

impl SuppressedCounts {
    /// The numbers on one line.
    pub fn summary(&self) -> String {
        let layer = |(layer, tokens): (&usize, &usize)| format!("{tokens} at layer {layer}");
        let layers: Vec<String> = self.layers.iter().map(layer).collect();
        format!(
            "suppressed: {} in {} of {}; {}",
            plural(self.tokens, "token"),
            self.changed,
            plural(self.texts, "text"),
            layers.join(", "),
        )
    }

    pub fn to_json(&self) -> Value {
        let SuppressedCounts { texts, changed, tokens, layers } = self;
        let layers =
            layers.iter().map(|(layer, tokens)| json!({ "layer": layer, "tokens": tokens }));
        let layers: Vec<Value> = layers.collect();
        json!({ "texts": texts, "changed_texts": changed, "tokens": tokens, "layers": layers })
    }
}
