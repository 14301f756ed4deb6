//! `fathom table`: the paper's tables, from runs or from published detections.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use fathom_model::Result;
use fathom_report::{Format, Table, level_table, position_table, sink_table, token_table};
use fathom_sinks::{
    Class, Preset, Run, Sink, SinkRow, TokenRow, TraceDetection, levels, position_histogram,
    read_detections, reclassify,
};
use serde_json::{Map, Value};

use crate::cli::Output;
use crate::failure::Failure;

/// Print the paper's tables, from runs or from published detections
///
/// Table 1/2: a row a model, with the layers at which secondary sinks start ("X": there are none). Table 3: which
/// tokens secondary sinks are. Detections in the published format need --layers, the number of the
/// model's layers, for grading.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom table run-qwen run-llama --latex\n  \
    fathom table --detections deepseek-14b.jsonl --layers 48 --name DeepSeek-14B --preset upstream")]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// With --detections: how many layers the model has
    #[arg(long, value_name = "L", requires = "detections", value_parser = clap::value_parser!(u16).range(1..))]
    layers: Option<u16>,
    /// With --detections: what to call the model [default: the file's name]
    #[arg(long, value_name = "NAME", requires = "detections")]
    name: Option<String>,
    /// With --detections: the model's rotary base
    #[arg(long, value_name = "θ", requires = "detections")]
    rope_base: Option<f64>,
    /// Grade the sinks anew by these rules [default: with runs, the classes they were given; with
    /// --detections, paper]
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<PresetName>,
    /// Which tables, comma separated
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TABLES",
          default_values_t = [Show::Sinks, Show::Tokens])]
    show: Vec<Show>,
    /// Tokens to list of each model
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Print comma-separated values
    #[arg(long, conflicts_with_all = ["latex", "json"])]
    csv: bool,
    /// Print LaTeX (needs the booktabs package)
    #[arg(long, conflicts_with = "json")]
    latex: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Run directories of `fathom scan`
    #[arg(value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// A detections file instead, in the published format or ours
    #[arg(long, value_name = "FILE")]
    detections: Option<PathBuf>,
}

/// `--preset`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PresetName {
    /// The paper's definitions: cosine above 0.95, graded by first and last layer
    Paper,
    /// The published scripts' rules: |cosine| above 0.9, graded by the number of layers
    Upstream,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Preset {
        match name {
            PresetName::Paper => Preset::Paper,
            PresetName::Upstream => Preset::Upstream,
        }
    }
}

/// A table to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Show {
    /// Table 1/2: a row a model
    Sinks,
    /// Table 3: the tokens secondary sinks are
    Tokens,
    /// Figure 2 in numbers: first layer and lifetime of secondary sinks
    Levels,
    /// Where in the traces secondary sinks are
    Positions,
}

/// A model's detections.
struct Model {
    name: String,
    rope_base: Option<f64>,
    traces: Vec<TraceDetection>,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let models = args.models()?;
    let tables = args.show.iter().map(|show| (*show, args.table(*show, &models)));
    if output.json {
        let named = tables.map(|(show, table)| (show.name(), table.to_json()));
        writeln!(out, "{:#}", Value::Object(named.collect::<Map<_, _>>()))?;
        return Ok(());
    }
    let format = match (args.csv, args.latex) {
        (true, _) => Format::Csv,
        (_, true) => Format::Latex,
        _ => Format::Markdown,
    };
    for (index, (_, table)) in tables.enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        write!(out, "{gap}{}", table.render(format))?;
    }
    Ok(())
}

impl Args {
    fn models(&self) -> Result<Vec<Model>> {
        match &self.source.detections {
            Some(path) => Ok(vec![self.published(path)?]),
            None => self.source.runs.iter().map(|dir| self.run(dir)).collect(),
        }
    }

    fn published(&self, path: &Path) -> Result<Model> {
        let mut traces = read_detections(path)?;
        let preset = self.preset.unwrap_or(PresetName::Paper).into();
        reclassify(path, &mut traces, preset, self.layers.map(usize::from))?;
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        let name = self.name.clone().unwrap_or_else(|| stem.into_owned());
        Ok(Model { name, rope_base: self.rope_base, traces })
    }

    fn run(&self, dir: &Path) -> Result<Model> {
        let run = Run::open(dir)?;
        let mut traces = run.detections()?;
        let model = &run.manifest().model;
        if let Some(preset) = self.preset {
            reclassify(dir, &mut traces, preset.into(), Some(model.layers))?;
        }
        Ok(Model { name: model.name(), rope_base: Some(model.rope_base), traces })
    }

    fn table(&self, show: Show, models: &[Model]) -> Table {
        match show {
            Show::Sinks => {
                let row = |model: &Model| SinkRow::new(&model.name, model.rope_base, &model.traces);
                sink_table(&models.iter().map(row).collect::<Vec<_>>())
            }
            Show::Tokens => {
                let row = |model: &Model| TokenRow::new(&model.name, &model.traces);
                token_table(&models.iter().map(row).collect::<Vec<_>>(), self.top)
            }
            Show::Levels => {
                let row = |model: &'_ Model| levels(model.secondary());
                let rows: Vec<_> =
                    models.iter().map(|model| (model.name.as_str(), row(model))).collect();
                level_table(&rows)
            }
            Show::Positions => {
                let row = |model: &Model| {
                    let longest = model.traces.iter().map(|trace| trace.full_text_len).max();
                    position_histogram(model.secondary(), longest.unwrap_or(0), 20)
                };
                let rows: Vec<_> =
                    models.iter().map(|model| (model.name.as_str(), row(model))).collect();
                position_table(&rows)
            }
        }
    }
}

impl Model {
    fn secondary(&self) -> impl Iterator<Item = &Sink> {
        self.traces.iter().flat_map(|trace| trace.of_class(Class::Secondary))
    }
}

impl Show {
    /// Its key in JSON.
    fn name(self) -> String {
        match self {
            Show::Sinks => "sinks",
            Show::Tokens => "tokens",
            Show::Levels => "levels",
            Show::Positions => "positions",
        }
        .to_owned()
    }
}
