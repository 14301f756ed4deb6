//! The paper's tables, from runs or from published detections.

use std::path::Path;

use fathom_model::{Error, Result};
use fathom_report::Table;
use fathom_sinks::{
    Agreement, Class, Phases, Preset, Sink, SinkRow, TokenRow, TraceDetection, position_histogram,
    read_detections, reclassify,
};

/// The sinks found in a model's traces: the input of the tables.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{Format, Model, Preset, ScanOptions, Traces, tables};
/// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// # let model = Model::options(dir.path().display().to_string()).named("planted").load()?;
/// # let traces = Traces::read(dir.path().join("traces.jsonl"), &model)?;
/// let run = model.scan(&traces, ScanOptions::new(Preset::Paper)).run()?;
/// let found = tables::Detections::of_run(&run, None, None)?;
///
/// // Tables 1 and 2 of the paper, one row per model.
/// let table = tables::sinks(std::slice::from_ref(&found));
/// let markdown = table.render(Format::Markdown);
/// assert!(markdown.contains("| planted |") && markdown.contains("Secondary sink count"));
/// // Their tokens, levels and positions: Table 3, and the numbers of Figures 2 and 5.
/// let tokens = tables::tokens(std::slice::from_ref(&found), 3).to_json();
/// assert_eq!(tokens.as_array().unwrap().len(), 3);
/// assert!(tables::levels(std::slice::from_ref(&found)).render(Format::Csv).lines().count() > 2);
/// assert!(tables::positions(&[found]).render(Format::Latex).contains("tabular"));
///
/// // Detections in the published format need no run.
/// let file = run.dir().join("detections.jsonl");
/// let published = tables::Detections::read(&file, Preset::Upstream, Some(20))?;
/// assert_eq!(published.name, "detections");
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Detections {
    /// The name of the model in tables.
    pub name: String,
    /// Its rotary base, if known.
    pub rope_base: Option<f64>,
    /// The detections of each trace.
    pub traces: Vec<TraceDetection>,
}

impl Detections {
    /// The detections of a run. `preset` reclassifies the sinks; `None` keeps their recorded
    /// classes. `phases` selects the phases whose sinks count; `None`: as chosen for the scan.
    ///
    /// # Errors
    /// Detections that cannot be read; sinks that cannot be classified.
    pub fn of_run(
        run: &fathom_sinks::RunDir,
        preset: Option<Preset>,
        phases: Option<Phases>,
    ) -> Result<Detections> {
        let mut traces = run.detections_of(Phases::Largest)?;
        let model = &run.manifest().model;
        if let Some(preset) = preset {
            reclassify(run.dir(), &mut traces, preset, Some(model.layers))?;
        }
        let found = Detections { name: model.name(), rope_base: Some(model.rope_base), traces };
        Ok(found.with_phases(phases.unwrap_or(run.manifest().options.phases)))
    }

    /// Reads detections from a file, in the published format or Fathom's, classified by the rules
    /// of `preset`. `layers` is the number of layers of the model, if the file does not record it.
    /// The name is that of the file.
    ///
    /// # Errors
    /// A file that cannot be read; sinks that cannot be classified without the number of layers.
    pub fn read(path: &Path, preset: Preset, layers: Option<usize>) -> Result<Detections> {
        let mut traces = read_detections(path)?;
        reclassify(path, &mut traces, preset, layers)?;
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        Ok(Detections { name: stem.into_owned(), rope_base: None, traces })
    }

    /// Selects the phases whose sinks count.
    pub fn with_phases(self, phases: Phases) -> Detections {
        let traces = self.traces.into_iter().map(|trace| trace.with_phases(phases)).collect();
        Detections { traces, ..self }
    }

    fn secondary(&self) -> impl Iterator<Item = &Sink> {
        self.traces.iter().flat_map(|trace| trace.of_class(Class::Secondary))
    }
}

/// Tables 1 and 2: one row per model, with the layers at which its secondary sinks start.
pub fn sinks(models: &[Detections]) -> Table {
    let row = |model: &Detections| SinkRow::new(&model.name, model.rope_base, &model.traces);
    fathom_report::sink_table(&models.iter().map(row).collect::<Vec<_>>())
}

/// Table 3: the `top` most frequent tokens among each model's secondary sinks.
pub fn tokens(models: &[Detections], top: usize) -> Table {
    let row = |model: &Detections| TokenRow::new(&model.name, &model.traces);
    fathom_report::token_table(&models.iter().map(row).collect::<Vec<_>>(), top)
}

/// The numbers of Figure 2: first layer and lifetime of secondary sinks.
pub fn levels(models: &[Detections]) -> Table {
    let row = |model| (Detections::name(model), fathom_sinks::levels(model.secondary()));
    fathom_report::level_table(&models.iter().map(row).collect::<Vec<_>>())
}

/// The numbers of Figure 5: positions of secondary sinks in the traces.
pub fn positions(models: &[Detections]) -> Table {
    const BINS: usize = 20;
    let row = |model| {
        let longest = Detections::longest(model);
        (Detections::name(model), position_histogram(model.secondary(), longest, BINS))
    };
    fathom_report::position_table(&models.iter().map(row).collect::<Vec<_>>())
}

/// The four measures of a run: the input of [`measures`].
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{Format, Model, Preset, ScanOptions, Traces, tables};
/// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// # let model = Model::options(dir.path().display().to_string()).named("planted").load()?;
/// # let traces = Traces::read(dir.path().join("traces.jsonl"), &model)?;
/// use tables::{MeasureTable, Measured};
///
/// let options = ScanOptions { attention: true, ..ScanOptions::new(Preset::Paper) };
/// let run = model.scan(&traces, options).run()?;
/// let measured = Measured::of_run(&run, 10)?;
/// let rates = measured.agreement.rates.as_ref().unwrap();
/// assert_eq!(rates.reference.len(), 20); // layers
/// let table = tables::measures(&[measured], MeasureTable::Agreement);
/// assert!(table.render(Format::Markdown).contains("| yes "));
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The name of the model in tables.
    pub name: String,
    /// Where the measures agree.
    pub agreement: Agreement,
}

/// A table of the four measures: Four measures (docs/definitions.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasureTable {
    /// How often each combination of measures holds.
    Agreement,
    /// The sink rate of each layer and head.
    Rate,
    /// Dimensions with massive activations.
    Massive,
    /// Tokens that draw attention without being aligned.
    Unaligned,
    /// The strongest tokens, with the layers at which each measure holds.
    Tokens,
    /// The strongest tokens, layer by layer.
    Layers,
}

impl Measured {
    /// The measures of a run, with its `top` strongest tokens.
    ///
    /// # Errors
    /// A run that has no measures, or whose tables cannot be read.
    pub fn of_run(run: &fathom_sinks::RunDir, top: usize) -> Result<Measured> {
        let agreement = Agreement::of_run(run, top)?.ok_or_else(|| {
            let problem = "has no measures.parquet: it was scanned by an earlier version; scan its \
                           traces again into another directory";
            Error::file(run.dir(), problem)
        })?;
        Ok(Measured { name: run.manifest().model.name(), agreement })
    }
}

/// A table of the measures of several runs.
pub fn measures(runs: &[Measured], table: MeasureTable) -> Table {
    let models: Vec<(&str, &Agreement)> =
        runs.iter().map(|run| (run.name.as_str(), &run.agreement)).collect();
    match table {
        MeasureTable::Agreement => fathom_report::agreement_table(&models),
        MeasureTable::Rate => fathom_report::rate_table(&models),
        MeasureTable::Massive => fathom_report::massive_table(&models),
        MeasureTable::Unaligned => fathom_report::unaligned_table(&models, usize::MAX),
        MeasureTable::Tokens => fathom_report::measured_token_table(&models, usize::MAX),
        MeasureTable::Layers => fathom_report::measured_layer_table(&models, usize::MAX),
    }
}

impl Detections {
    fn name(&self) -> &str {
        &self.name
    }

    /// The length of the longest trace in tokens.
    fn longest(&self) -> usize {
        self.traces.iter().map(|trace| trace.full_text_len).max().unwrap_or(0)
    }
}
