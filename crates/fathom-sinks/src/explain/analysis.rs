//! The trait of analyses, and the macro that generates the enum of all of them.

use fathom_backend::Backend;
use fathom_model::Result;

use super::intervention::Intervention;
use super::pass::Observer;
use super::scanned::ScannedRun;
use super::store::ResultStore;
use super::{AnalysisResult, ExplainProgress, Inputs};

/// An analysis: collects data from passes over a run's traces and computes a result from it.
///
/// All observers of all analyses share one plain pass over each trace. Then all interventions run
/// each trace together, next to a plain pass that they are compared with.
pub(super) trait Analyzer: Sized {
    /// Its result.
    type Output: AnalysisResult;

    /// What it computes, in one line: the help of its flag.
    const HELP: &'static str;

    /// Names of the parts it uses besides those with its own name. Observers of several analyses
    /// that have the same name collect once for all of them.
    const SHARED_PARTS: &'static [&'static str] = &[];

    /// Tokens it runs in addition to whole passes, in words.
    const EXTRA_TOKENS: Option<&'static str> = None;

    /// Whether it runs where no analysis is named. One with many passes waits to be asked for.
    const BY_DEFAULT: bool = true;

    /// Number of edited passes over each trace.
    fn edited_passes(_run: &ScannedRun<'_>) -> usize {
        0
    }

    /// The result, if the scan already measured everything it needs. No pass is made then.
    fn from_scan(_run: &ScannedRun<'_>) -> Option<Self::Output> {
        None
    }

    /// Starts with nothing collected.
    fn new(run: &ScannedRun<'_>) -> Self;

    /// What it reads from the plain pass over each trace.
    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>>;

    /// What it changes in edited passes. Called after the observers have seen all traces, and only
    /// if [`Analyzer::edited_passes`] is not 0.
    ///
    /// # Errors
    /// Weights that cannot be read.
    fn interventions<B: Backend>(
        &mut self,
        _inputs: &Inputs<'_, B>,
    ) -> Result<Vec<&mut dyn Intervention<B>>> {
        Ok(Vec::new())
    }

    /// The result, when all passes are done.
    ///
    /// # Errors
    /// A failing device; the error with which `progress` cancels.
    fn finish<B: Backend>(
        self,
        inputs: &Inputs<'_, B>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<Self::Output>;
}

/// An [`Analyzer`] of any result type, so that the driver can hold all analyses in one list.
pub(super) trait AnyAnalyzer<B: Backend> {
    /// See [`Analyzer::observers`].
    fn observers(&mut self) -> Vec<&mut dyn Observer<B>>;

    /// See [`Analyzer::interventions`].
    ///
    /// # Errors
    /// As there.
    fn interventions(&mut self, inputs: &Inputs<'_, B>) -> Result<Vec<&mut dyn Intervention<B>>>;

    /// Stores the result of [`Analyzer::finish`].
    ///
    /// # Errors
    /// As there; a file that cannot be written.
    fn store(
        self: Box<Self>,
        store: &ResultStore<'_>,
        inputs: &Inputs<'_, B>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()>;
}

impl<B: Backend, A: Analyzer> AnyAnalyzer<B> for A {
    fn observers(&mut self) -> Vec<&mut dyn Observer<B>> {
        Analyzer::observers(self)
    }

    fn interventions(&mut self, inputs: &Inputs<'_, B>) -> Result<Vec<&mut dyn Intervention<B>>> {
        Analyzer::interventions(self, inputs)
    }

    fn store(
        self: Box<Self>,
        store: &ResultStore<'_>,
        inputs: &Inputs<'_, B>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        store.write(self.finish(inputs, progress)?)
    }
}

/// The static facts and functions of an [`Analyzer`], without its type.
pub(super) struct Description {
    /// [`Analyzer::HELP`]
    pub help: &'static str,
    /// [`Analyzer::SHARED_PARTS`]
    pub shared_parts: &'static [&'static str],
    /// [`Analyzer::EXTRA_TOKENS`]
    pub extra_tokens: Option<&'static str>,
    /// [`Analyzer::BY_DEFAULT`]
    pub by_default: bool,
    /// [`Analyzer::edited_passes`]
    pub edited_passes: fn(&ScannedRun<'_>) -> usize,
    /// Whether [`Analyzer::from_scan`] has a result.
    pub scan_suffices: fn(&ScannedRun<'_>) -> bool,
    /// Stores the result of [`Analyzer::from_scan`] and returns true, if there is one.
    pub store_from_scan: fn(&ResultStore<'_>, &ScannedRun<'_>) -> Result<bool>,
    /// Whether its result is stored and up to date.
    pub is_current: fn(&ResultStore<'_>) -> bool,
}

impl Description {
    pub fn of<A: Analyzer>() -> Description {
        Description {
            help: A::HELP,
            shared_parts: A::SHARED_PARTS,
            extra_tokens: A::EXTRA_TOKENS,
            by_default: A::BY_DEFAULT,
            edited_passes: A::edited_passes,
            scan_suffices: |run| A::from_scan(run).is_some(),
            store_from_scan: |store, run| match A::from_scan(run) {
                Some(result) => store.write(result).map(|()| true),
                None => Ok(false),
            },
            is_current: |store| store.is_current::<A::Output>(),
        }
    }
}

/// The list of all analyses, in the order of the command line, one `Result(module::Analyzer)` each.
/// The module's name is the analysis' name; its public items are exported.
macro_rules! analyses {
    ($($result:ident($module:ident::$analyzer:ident),)*) => {
        $(pub use $module::*;)*

        /// An analysis of a run.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(rename_all = "lowercase")]
        pub enum Analysis {
            $(#[doc = concat!("[`crate::explain::", stringify!($result), "`]")] $result,)*
        }

        impl Analysis {
            /// All analyses.
            pub const ALL: [Analysis; [$(Analysis::$result),*].len()] = [$(Analysis::$result),*];

            /// Its name: that of its file, and of its flag on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Analysis::$result => stringify!($module),)* }
            }

            /// The analyses to run if none is named: all but those with many passes.
            pub fn by_default() -> Vec<Analysis> {
                let mut analyses = Analysis::ALL.to_vec();
                analyses.retain(|analysis| analysis.description().by_default);
                analyses
            }

            /// What it computes, in one line.
            pub fn help(self) -> &'static str {
                self.description().help
            }

            fn description(self) -> analysis::Description {
                match self {
                    $(Analysis::$result => analysis::Description::of::<$module::$analyzer>(),)*
                }
            }

            fn start<B: fathom_backend::Backend>(
                self,
                run: &scanned::ScannedRun<'_>,
            ) -> Box<dyn analysis::AnyAnalyzer<B>> {
                use analysis::Analyzer;
                match self { $(Analysis::$result => Box::new($module::$analyzer::new(run)),)* }
            }
        }
    };
}
pub(super) use analyses;
