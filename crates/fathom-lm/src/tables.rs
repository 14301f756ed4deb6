//! The paper's tables, from runs or from published detections.

use std::path::Path;

use fathom_model::Result;
use fathom_report::Table;
use fathom_sinks::{
    Class, Phases, Preset, Sink, SinkRow, TokenRow, TraceDetection, position_histogram,
    read_detections, reclassify,
};

/// The sinks of a model's traces, to be counted.
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
/// // A row a model: Table 1 and 2 of the paper.
/// let table = tables::sinks(std::slice::from_ref(&found));
/// let markdown = table.render(Format::Markdown);
/// assert!(markdown.contains("| planted |") && markdown.contains("Secondary sink count"));
/// // Which tokens they are, their levels, and where they lie: Table 3, Figures 2 and 5 as numbers.
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
    /// What tables call the model.
    pub name: String,
    /// Its rotary base, where that is known.
    pub rope_base: Option<f64>,
    /// The sinks, trace by trace.
    pub traces: Vec<TraceDetection>,
}

impl Detections {
    /// Those of a run, with the classes it gave them, or graded anew by the rules of `preset`; of
    /// the phases its scan counted, or of `phases`.
    ///
    /// # Errors
    /// Detections that cannot be read; sinks that cannot be graded.
    pub fn of_run(
        run: &fathom_sinks::Run,
        preset: Option<Preset>,
        phases: Option<Phases>,
    ) -> Result<Detections> {
        let mut traces = run.detections_of(Phases::Largest)?;
        let model = &run.manifest().model;
        if let Some(preset) = preset {
            reclassify(run.dir(), &mut traces, preset, Some(model.layers))?;
        }
        let found = Detections { name: model.name(), rope_base: Some(model.rope_base), traces };
        Ok(found.counting(phases.unwrap_or(run.manifest().options.phases)))
    }

    /// Those of a file, in the published format or ours, graded by the rules of `preset`; `layers`:
    /// how many the model has, where the file does not say. They are called by the file's name.
    ///
    /// # Errors
    /// A file that cannot be read; sinks that cannot be graded without the number of layers.
    pub fn read(path: &Path, preset: Preset, layers: Option<usize>) -> Result<Detections> {
        let mut traces = read_detections(path)?;
        reclassify(path, &mut traces, preset, layers)?;
        let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        Ok(Detections { name: stem.into_owned(), rope_base: None, traces })
    }

    /// The same with the sinks of these phases counted.
    pub fn counting(self, phases: Phases) -> Detections {
        let traces = self.traces.into_iter().map(|trace| trace.counting(phases)).collect();
        Detections { traces, ..self }
    }

    fn secondary(&self) -> impl Iterator<Item = &Sink> {
        self.traces.iter().flat_map(|trace| trace.of_class(Class::Secondary))
    }
}

/// Table 1 and 2: a row a model, with the layers at which its secondary sinks start.
pub fn sinks(models: &[Detections]) -> Table {
    let row = |model: &Detections| SinkRow::new(&model.name, model.rope_base, &model.traces);
    fathom_report::sink_table(&models.iter().map(row).collect::<Vec<_>>())
}

/// Table 3: the `top` most frequent tokens among each model's secondary sinks.
pub fn tokens(models: &[Detections], top: usize) -> Table {
    let row = |model: &Detections| TokenRow::new(&model.name, &model.traces);
    fathom_report::token_table(&models.iter().map(row).collect::<Vec<_>>(), top)
}

/// Figure 2 in numbers: first layer and lifetime of secondary sinks.
pub fn levels(models: &[Detections]) -> Table {
    let row = |model| (Detections::name(model), fathom_sinks::levels(model.secondary()));
    fathom_report::level_table(&models.iter().map(row).collect::<Vec<_>>())
}

/// Figure 5 in numbers: where in the traces secondary sinks are.
pub fn positions(models: &[Detections]) -> Table {
    const BINS: usize = 20;
    let row = |model| {
        let longest = Detections::longest(model);
        (Detections::name(model), position_histogram(model.secondary(), longest, BINS))
    };
    fathom_report::position_table(&models.iter().map(row).collect::<Vec<_>>())
}

impl Detections {
    fn name(&self) -> &str {
        &self.name
    }

    /// Tokens of the longest trace.
    fn longest(&self) -> usize {
        self.traces.iter().map(|trace| trace.full_text_len).max().unwrap_or(0)
    }
}
