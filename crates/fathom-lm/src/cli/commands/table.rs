//! `fathom table`: the paper's tables, from runs or from published detections.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::phases_arg::PhasesName;
use crate::cli::preset_arg::PresetName;
use crate::tables::{self, Detections, MeasureTable, Measured};
use crate::{Format, Phases, Preset, Result, Run, Table};

/// Print the paper's tables, from runs or from published detections
///
/// Tables 1 and 2: one row per model, with the layers at which secondary sinks start ("X": none).
/// Table 3: the tokens of secondary sinks. Detections in the published format need --layers, the
/// number of layers of the model, to be classified.
///
/// With --measure, prints where four measures of a sink agree: alignment with the reference, a sink
/// score above 0.3 at some head (scan --attention), massive activations, and a large norm.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom table run-qwen run-llama --latex\n  \
    fathom table run-qwen --measure agreement,unaligned\n  \
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
    /// Print these tables of the four measures instead, comma separated
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TABLES",
          conflicts_with_all = ["detections", "show", "preset", "phases"])]
    measure: Vec<MeasureShow>,
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

/// A table of the four measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MeasureShow {
    /// How often each combination of measures holds, for (token, layer) and for tokens
    Agreement,
    /// The sink rate: the share of traces in which a head's sink score is above 0.3
    Rate,
    /// Massive activations by dimension
    Massive,
    /// Tokens that draw attention at layers at which they are not aligned
    Unaligned,
    /// The strongest tokens by any measure, with the layers at which each holds
    Tokens,
    /// The strongest tokens by any measure, layer by layer
    Layers,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let tables = args.tables()?;
    if output.json {
        let named = tables.iter().map(|(name, table)| ((*name).to_owned(), table.to_json()));
        writeln!(out, "{:#}", Value::Object(named.collect::<Map<_, _>>()))?;
        return Ok(());
    }
    let format = match (args.csv, args.latex) {
        (true, _) => Format::Csv,
        (_, true) => Format::Latex,
        _ => Format::Markdown,
    };
    for (index, (_, table)) in tables.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        write!(out, "{gap}{}", table.render(format))?;
    }
    Ok(())
}

impl Args {
    /// The tables, each with its key in JSON.
    fn tables(&self) -> Result<Vec<(&'static str, Table)>> {
        if self.measure.is_empty() {
            let models = self.models()?;
            return Ok(self.show.iter().map(|s| (s.name(), self.table(*s, &models))).collect());
        }
        let of_run = |dir: &PathBuf| Measured::of_run(&*Run::open(dir)?, self.top);
        let runs = self.input.runs.iter().map(of_run).collect::<Result<Vec<_>>>()?;
        let table = |measure: &MeasureShow| {
            let (name, table) = measure.table();
            (name, tables::measures(&runs, table))
        };
        Ok(self.measure.iter().map(table).collect())
    }

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
    fn name(self) -> &'static str {
        match self {
            Show::Sinks => "sinks",
            Show::Tokens => "tokens",
            Show::Levels => "levels",
            Show::Positions => "positions",
        }
    }
}

impl MeasureShow {
    /// The table, and its key in JSON.
    fn table(self) -> (&'static str, MeasureTable) {
        match self {
            MeasureShow::Agreement => ("agreement", MeasureTable::Agreement),
            MeasureShow::Rate => ("rate", MeasureTable::Rate),
            MeasureShow::Massive => ("massive", MeasureTable::Massive),
            MeasureShow::Unaligned => ("unaligned", MeasureTable::Unaligned),
            MeasureShow::Tokens => ("tokens", MeasureTable::Tokens),
            MeasureShow::Layers => ("layers", MeasureTable::Layers),
        }
    }
}
