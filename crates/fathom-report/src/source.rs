//! What a report is made from: a run, and what is stored beside it.

use std::path::Path;

use fathom_model::{Error, Result};
use fathom_sinks::explain::{
    AnalysisResult, Clusters, Effect, Entropy, Neurons, Pca, Stages, Suppress, Swap, read,
    result_file,
};
use fathom_sinks::{Class, Level, Run, Sink, TraceDetection, TraceText, levels};

/// A run with all that a report shows of it. The model is not needed, and not looked for.
#[derive(Clone, Debug)]
pub struct Source {
    /// The run.
    pub run: Run,
    /// What to call it: the model's name.
    pub name: String,
    /// What anchors of its part of the page begin with: `r0` for the first run of a report.
    pub anchor: String,
    /// Traces it will have when it is finished, where that can be told.
    pub planned: Option<usize>,
    /// Its traces.
    pub traces: Vec<TraceDetection>,
    /// Levels of its secondary sinks.
    pub levels: LevelBook,
    /// Its tokens, where the run holds them.
    pub text: Option<TraceText>,
    /// The attention each token draws, the mean over layers, where it was measured.
    pub drawn: Option<Vec<Vec<f32>>>,
    /// Results of `fathom explain`.
    pub explained: Results,
}

/// What is stored of each analysis.
#[derive(Clone, Debug)]
pub struct Results {
    /// Cosines by stage.
    pub stages: Explained<Stages>,
    /// Principal components.
    pub pca: Explained<Pca>,
    /// Clusters.
    pub clusters: Explained<Clusters>,
    /// Swaps.
    pub swap: Explained<Swap>,
    /// Attention against norms.
    pub effect: Explained<Effect>,
    /// Entropy.
    pub entropy: Explained<Entropy>,
    /// Suppression.
    pub suppress: Explained<Suppress>,
    /// Neurons and heads.
    pub neurons: Explained<Neurons>,
}

/// The result of an analysis, or why there is none.
#[derive(Clone, Debug)]
pub enum Explained<T> {
    /// Here it is.
    Here(Box<T>),
    /// It has not been run; the command that runs it.
    Missing {
        /// The command.
        command: String,
    },
    /// There is one that cannot be used.
    Unusable {
        /// Why, in one sentence.
        why: String,
        /// The command that makes a new one.
        command: String,
    },
}

impl Source {
    /// Reads a run, finished or not, as the `number`-th of a report.
    ///
    /// # Errors
    /// A directory that holds no run, or one of another version; tables that are missing or
    /// damaged. What `explain` stored is no reason to fail: the report says what is wrong with it.
    pub fn read(dir: &Path, number: usize) -> Result<Source> {
        let run = Run::open_unfinished(dir)?;
        let traces = run.detections()?;
        if traces.is_empty() {
            return Err(Error::file(dir, "has recorded no trace yet: there is nothing to report"));
        }
        let tokens: Vec<usize> = traces.iter().map(scanned_tokens).collect();
        let text = run.text(traces.len())?;
        let text = text.filter(|text| text.ids.iter().map(Vec::len).eq(tokens.iter().copied()));
        let drawn = run.drawn_attention(&tokens)?;
        let sha256 = run.detections_sha256()?;
        let explained = Results {
            stages: Explained::read(&run, &sha256),
            pca: Explained::read(&run, &sha256),
            clusters: Explained::read(&run, &sha256),
            swap: Explained::read(&run, &sha256),
            effect: Explained::read(&run, &sha256),
            entropy: Explained::read(&run, &sha256),
            suppress: Explained::read(&run, &sha256),
            neurons: Explained::read(&run, &sha256),
        };
        let model = &run.manifest().model;
        let name = model.name_of(&model_name(&model.id));
        let book = LevelBook::new(&traces);
        let anchor = format!("r{number}");
        let planned = run.planned_traces();
        Ok(Source { run, name, anchor, planned, traces, levels: book, text, drawn, explained })
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.run.manifest().model.layers
    }

    /// Secondary sinks, with the number of their trace.
    pub fn secondary(&self) -> impl Iterator<Item = (usize, &Sink)> {
        let traces = self.traces.iter().enumerate();
        traces.flat_map(|(t, trace)| trace.of_class(Class::Secondary).map(move |sink| (t, sink)))
    }
}

/// Tokens of a trace that went through the model.
pub fn scanned_tokens(trace: &TraceDetection) -> usize {
    trace.scan.map_or(trace.full_text_len, |note| note.tokens)
}

/// A hub id as it is; of a directory, its last part.
fn model_name(id: &str) -> String {
    let path = Path::new(id);
    match path.is_absolute() || id.starts_with('.') {
        true => path.file_name().map_or(id.to_owned(), |name| name.to_string_lossy().into_owned()),
        false => id.to_owned(),
    }
}

impl<T: AnalysisResult> Explained<T> {
    fn read(run: &Run, sha256: &str) -> Explained<T> {
        let name = T::ANALYSIS.name();
        let command = format!("fathom explain {} --{name}", run.dir().display());
        match read::<T>(run.dir()) {
            Ok(None) => Explained::Missing { command },
            Ok(Some(stored)) if stored.detections_sha256 == sha256 => {
                Explained::Here(Box::new(stored.result))
            }
            Ok(Some(_)) => {
                let file = result_file(run.dir(), T::ANALYSIS);
                let why = format!("{} is the result of other detections.", file.display());
                Explained::Unusable { why, command }
            }
            Err(error) => Explained::Unusable { why: format!("{error}."), command },
        }
    }
}

/// The levels of a run, with a letter and a group each.
#[derive(Clone, Debug, Default)]
pub struct LevelBook {
    entries: Vec<LevelEntry>,
}

/// A level and how it is shown.
#[derive(Clone, Debug)]
pub struct LevelEntry {
    /// The level.
    pub level: Level,
    /// Its letter, the same everywhere in the report; `·` for all behind the 26 most frequent.
    pub letter: String,
    /// Its group in figures that have no room for all: one of the [`LevelBook::GROUPS`] most
    /// frequent each, or the rest.
    pub group: usize,
}

impl LevelBook {
    /// Levels that have a colour of their own.
    pub const GROUPS: usize = 5;

    fn new(traces: &[TraceDetection]) -> LevelBook {
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

    /// The group of a level; the rest's where there is no such level.
    pub fn group(&self, l_start: usize, lifetime: usize) -> usize {
        self.of(l_start, lifetime).map_or(LevelBook::GROUPS, |(_, entry)| entry.group)
    }
}
