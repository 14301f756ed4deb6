//! What a report is made from: a run and its tables.

use std::path::Path;

use fathom_model::{Error, Result};
use fathom_sinks::{
    Agreement, Class, Clip, Level, Phases, RunDir, Sink, TraceDetection, TraceText, levels,
};

use crate::run_phases::RunPhases;

/// The number of strongest tokens, by any measure, that a report looks at.
const MEASURED_TOKENS: usize = 100;

/// A run with all that a report shows of it. The model is not needed.
#[derive(Clone, Debug)]
pub struct RunData {
    /// The run as stored.
    pub stored: RunDir,
    /// Its name: that of the model.
    pub name: String,
    /// Prefix of the anchors in its section of the page: `r0` for the first run of a report.
    pub anchor: String,
    /// The number of traces it will have when the scan is finished, if known.
    pub planned: Option<usize>,
    /// Its traces.
    pub traces: Vec<TraceDetection>,
    /// The phases of its traces.
    pub phases: RunPhases,
    /// Levels of its secondary sinks.
    pub levels: LevelBook,
    /// Its tokens, if the run has them.
    pub text: Option<TraceText>,
    /// The sink score of each token, mean over heads and layers, `[traces][T]`, if the scan
    /// measured it.
    pub attention: Option<Vec<Vec<f32>>>,
    /// The four measures; `None` for a run of an earlier version.
    pub measures: Option<Agreement>,
    /// SHA-256 of its detections. Results of `fathom explain` are shown only if they were computed
    /// from these.
    pub detections_sha256: String,
}

impl RunData {
    /// Reads a run, finished or not, as the `number`-th of a report.
    ///
    /// # Errors
    /// A directory that holds no run, or one of another version; tables that are missing or
    /// damaged.
    pub fn read(dir: &Path, number: usize) -> Result<RunData> {
        let run = RunDir::open_unfinished(dir)?;
        let traces = run.detections_of(Phases::Largest)?;
        if traces.is_empty() {
            return Err(Error::file(dir, "has recorded no trace yet: there is nothing to report"));
        }
        let listed = run.manifest().options.phases;
        let phases = RunPhases::new(&traces, listed);
        let traces: Vec<_> = traces.into_iter().map(|trace| trace.with_phases(listed)).collect();
        let tokens: Vec<usize> = traces.iter().map(TraceDetection::scanned_tokens).collect();
        let text = run.text(traces.len())?;
        let text = text.filter(|text| text.ids.iter().map(Vec::len).eq(tokens.iter().copied()));
        let attention = run.attention_received(&tokens)?;
        let measures = Agreement::of_run(&run, MEASURED_TOKENS)?;
        let detections_sha256 = run.detections_sha256()?;
        let model = &run.manifest().model;
        let name = model.name_of(&model_name(&model.id));
        Ok(RunData {
            name,
            anchor: format!("r{number}"),
            planned: run.planned_traces(),
            levels: LevelBook::new(&traces, &phases),
            phases,
            stored: run,
            traces,
            text,
            attention,
            measures,
            detections_sha256,
        })
    }

    /// Number of layers of the model.
    pub fn layers(&self) -> usize {
        self.stored.manifest().model.layers
    }

    /// Secondary sinks, with the number of their trace.
    pub fn secondary(&self) -> impl Iterator<Item = (usize, &Sink)> {
        let traces = self.traces.iter().enumerate();
        traces.flat_map(|(t, trace)| trace.of_class(Class::Secondary).map(move |sink| (t, sink)))
    }
}

/// A model's short name: a hub id unchanged, or the last component of a directory.
fn model_name(id: &str) -> String {
    let path = Path::new(id);
    match path.is_absolute() || id.starts_with('.') {
        true => path.file_name().map_or(id.to_owned(), |name| name.to_string_lossy().into_owned()),
        false => id.to_owned(),
    }
}

/// The levels of a run, each with a letter and a group.
#[derive(Clone, Debug, Default)]
pub struct LevelBook {
    entries: Vec<LevelEntry>,
}

/// A level and how it is shown.
#[derive(Clone, Debug)]
pub struct LevelEntry {
    /// The level.
    pub level: Level,
    /// The phase it starts in, if the run has several.
    pub phase: Option<Clip>,
    /// Its letter, the same everywhere in the report; `·` for all but the 26 most frequent.
    pub letter: String,
    /// Its group in figures that cannot show all: the [`LevelBook::GROUPS`] most frequent levels
    /// have one each, numbered by layer, and the rest share the last.
    pub group: usize,
}

impl LevelBook {
    /// The number of levels with a colour of their own.
    pub const GROUPS: usize = 5;

    fn new(traces: &[TraceDetection], phases: &RunPhases) -> LevelBook {
        let all = levels(traces.iter().flat_map(|trace| trace.of_class(Class::Secondary)));
        let mut by_count: Vec<usize> = (0..all.len()).collect();
        by_count.sort_by_key(|i| std::cmp::Reverse(all[*i].count));
        let most = |n: usize| {
            let mut first: Vec<usize> = by_count.iter().copied().take(n).collect();
            first.sort_unstable(); // back in the order of layers
            first
        };
        let (lettered, grouped) = (most(26), most(LevelBook::GROUPS));
        let entry = |(i, level): (usize, &Level)| LevelEntry {
            level: *level,
            phase: phases.containing(level.l_start),
            letter: match lettered.iter().position(|j| *j == i) {
                Some(n) => char::from(b'A' + u8::try_from(n).unwrap_or(25)).to_string(),
                None => "·".to_owned(),
            },
            group: grouped.iter().position(|j| *j == i).unwrap_or(LevelBook::GROUPS),
        };
        LevelBook { entries: all.iter().enumerate().map(entry).collect() }
    }

    /// All levels, by first layer, then lifetime.
    pub fn entries(&self) -> &[LevelEntry] {
        &self.entries
    }

    /// The entry of a level.
    pub fn of(&self, l_start: usize, lifetime: usize) -> Option<(usize, &LevelEntry)> {
        let key = |entry: &LevelEntry| (entry.level.l_start, entry.level.lifetime);
        let found = self.entries.binary_search_by_key(&(l_start, lifetime), key).ok()?;
        Some((found, &self.entries[found]))
    }

    /// The group of a level, or the group of the rest if there is no such level.
    pub fn group(&self, l_start: usize, lifetime: usize) -> usize {
        self.of(l_start, lifetime).map_or(LevelBook::GROUPS, |(_, entry)| entry.group)
    }
}
