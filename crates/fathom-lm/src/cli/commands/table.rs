//! `fathom table`: the paper's tables, from runs or from published detections.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::phases_arg::PhasesName;
use crate::cli::preset_arg::PresetName;
use crate::tables::{self, Detections};
use crate::{Format, Phases, Preset, Result, Run, Table};

/// Print the paper's tables, from runs or from published detections
///
/// Tables 1 and 2: one row per model, with the layers at which secondary sinks start ("X": none).
/// Table 3: the tokens of secondary sinks. Detections in the published format need --layers, the
/// number of layers of the model, to be classified.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom table run-qwen run-llama --latex\n  \
    fathom table --detections deepseek-14b.jsonl --layers 48 --name DeepSeek-14B \
    --preset upstream")]
pub struct Args {
    #[command(flatten)]
    input: TableInput,
    /// With --detections: the number of layers of the model
    #[arg(long, value_name = "L", requires = "detections",
          value_parser = clap::value_parser!(u16).range(1..))]
    layers: Option<u16>,
    /// With --detections: the name of the model [default: the file's name]
    #[arg(long, value_name = "NAME", requires = "detections")]
    name: Option<String>,
    /// With --detections: the model's rotary base
    #[arg(long, value_name = "θ", requires = "detections")]
    rope_base: Option<f64>,
    /// Reclassify the sinks by these rules [default: the recorded classes for runs; paper for
    /// --detections]
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<PresetName>,
    /// Which sinks to count if the reference's norm is large in several runs of layers (phases)
    /// [default: with runs, as they were scanned; with --detections, largest]
    #[arg(long, value_enum, value_name = "WHICH")]
    phases: Option<PhasesName>,
    /// Tables to print, comma separated
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TABLES",
          default_values_t = [Show::Sinks, Show::Tokens])]
    show: Vec<Show>,
    /// Number of tokens to list for each model
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
struct TableInput {
    /// Run directories of `fathom scan`
    #[arg(value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// A detections file instead of runs, in the published format or Fathom's
    #[arg(long, value_name = "FILE")]
    detections: Option<PathBuf>,
}

/// A table to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Show {
    /// Tables 1 and 2: counts and layers, one row per model
    Sinks,
    /// Table 3: the tokens of secondary sinks
    Tokens,
    /// The numbers of Figure 2: first layer and lifetime of secondary sinks
    Levels,
    /// The positions of secondary sinks in the traces
    Positions,
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
    fn models(&self) -> Result<Vec<Detections>> {
        let preset = self.preset.map(Preset::from);
        let phases = self.phases.map(Phases::from);
        let Some(path) = &self.input.detections else {
            let of_run = |dir: &PathBuf| Detections::of_run(&*Run::open(dir)?, preset, phases);
            return self.input.runs.iter().map(of_run).collect();
        };
        let (preset, layers) = (preset.unwrap_or_default(), self.layers.map(usize::from));
        let found = Detections::read(path, preset, layers)?.with_phases(phases.unwrap_or_default());
        let name = self.name.clone().unwrap_or(found.name);
        Ok(vec![Detections { name, rope_base: self.rope_base, ..found }])
    }

    fn table(&self, show: Show, models: &[Detections]) -> Table {
        match show {
            Show::Sinks => tables::sinks(models),
            Show::Tokens => tables::tokens(models, self.top),
            Show::Levels => tables::levels(models),
            Show::Positions => tables::positions(models),
        }
    }
}

impl Show {
    /// The key in JSON.
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
