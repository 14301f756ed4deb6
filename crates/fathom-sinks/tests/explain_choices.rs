//! For any sequence of requests, kills and damaged parts, each result is that of an undisturbed
//! explanation with that analysis alone.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{Tokens, planted, traces};
use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Checkpoint, Result, TokenizedTrace, Transformer};
use fathom_sinks::explain::{
    Analysis, ExplainOptions, ExplainProgress, Explanation, Inputs, KeyOptions, result_file,
};
use fathom_sinks::{Manifest, ModelNote, Preset, RunDir, RunWriter, ScanOptions, TracesNote, scan};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use tempfile::TempDir;

const OPTIONS: ExplainOptions =
    ExplainOptions { seed: 0, max_sinks: 12, keys: KeyOptions::DEFAULT };
/// Most tokens of a trace: enough for sinks of several layers in all of them, and for eviction.
const TOKENS: usize = 72;
const TRACES: usize = 3;

/// A scan, and the result of each analysis when it is the only one ever requested.
struct Scanned {
    model: Transformer<Cpu>,
    traces: Vec<TokenizedTrace>,
    dir: TempDir,
    clean: BTreeMap<Analysis, Clean>,
}

struct Clean {
    bytes: Vec<u8>,
    /// Number of progress calls it makes; it can be killed at each of them.
    moments: usize,
}

impl Scanned {
    /// The scan with or without sink scores, made once per test binary.
    fn get(attention: bool) -> &'static Scanned {
        static SCANNED: [OnceLock<Scanned>; 2] = [OnceLock::new(), OnceLock::new()];
        SCANNED[usize::from(attention)].get_or_init(|| Scanned::new(attention))
    }

    fn new(attention: bool) -> Scanned {
        let options =
            CpuOptions { precision: Precision::F32, threads: Some(2), ..CpuOptions::default() };
        let model = Transformer::load(&planted(), Cpu::new(options).unwrap()).unwrap();
        let note = ModelNote::new("planted", &planted(), model.config()).unwrap();
        let file = TracesNote::new(&planted().join("traces.jsonl")).unwrap();
        let options = ScanOptions { attention, ..ScanOptions::new(Preset::Paper) };
        let manifest = Manifest::new(note, file, "cpu".to_owned(), options);
        let mut traces = traces();
        traces.truncate(TRACES);
        traces.iter_mut().for_each(|trace| trace.ids.truncate(TOKENS));
        let dir = tempfile::tempdir().unwrap();
        let writer = RunWriter::create(&dir.path().join("run"), manifest).unwrap();
        scan(&model, &traces, &|_| None, writer, &mut ()).unwrap();

        let mut scanned = Scanned { model, traces, dir, clean: BTreeMap::new() };
        for analysis in Analysis::ALL {
            let run = scanned.run();
            let mut progress = KilledAt { moment: usize::MAX, moments: 0 };
            scanned.explain(&run.run, &[analysis], OPTIONS, &mut progress).unwrap();
            let bytes = run.result(analysis).unwrap();
            scanned.clean.insert(analysis, Clean { bytes, moments: progress.moments });
            assert_eq!(run.files(), [format!("{}.json", analysis.name())]);
        }
        scanned
    }

    /// A copy of the run without any explanation.
    fn run(&self) -> CopiedRun {
        let dir = tempfile::tempdir().unwrap();
        for name in ["run.json", "detections.jsonl"] {
            fs::copy(self.dir.path().join("run").join(name), dir.path().join(name)).unwrap();
        }
        let run = RunDir::open(dir.path()).unwrap();
        CopiedRun { run, dir }
    }

    /// Runs the analyses as `fathom explain` does.
    fn explain(
        &self,
        run: &RunDir,
        analyses: &[Analysis],
        options: ExplainOptions,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        let explanation = Explanation::new(run, analyses, options).unwrap();
        if !explanation.needs_model() {
            return explanation.without_model();
        }
        let checkpoint = Checkpoint::open(&planted()).unwrap();
        let inputs = Inputs {
            model: &self.model,
            checkpoint: &checkpoint,
            traces: &self.traces,
            text: &|ids| Some(format!("{ids:?}")),
            engine: "cpu",
        };
        explanation.with_model(&inputs, progress)
    }

    fn moments(&self, analyses: &[Analysis]) -> usize {
        analyses.iter().map(|analysis| self.clean[analysis].moments).sum()
    }
}

struct CopiedRun {
    run: RunDir,
    dir: TempDir,
}

impl CopiedRun {
    fn explain_dir(&self) -> PathBuf {
        self.dir.path().join("explain")
    }

    fn parts_dir(&self) -> PathBuf {
        self.explain_dir().join("parts")
    }

    fn result(&self, analysis: Analysis) -> Option<Vec<u8>> {
        fs::read(result_file(self.run.dir(), analysis)).ok()
    }

    /// The names of everything in `explain/`, sorted.
    fn files(&self) -> Vec<String> {
        names(&self.explain_dir())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> =
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Kills the explanation at its call number `moment`.
struct KilledAt {
    moment: usize,
    moments: usize,
}

struct Killed;

impl KilledAt {
    fn tick(&mut self) {
        if self.moments == self.moment {
            resume_unwind(Box::new(Killed)); // as a panic, without a message
        }
        self.moments += 1;
    }
}

impl ExplainProgress for KilledAt {
    fn start(&mut self, _: &'static str, _: &'static str, _: usize) {
        self.tick();
    }

    fn advance(&mut self, _: usize) {
        self.tick();
    }
}

/// How an explanation ends.
#[derive(Clone, Debug)]
enum End {
    /// It completes.
    Done,
    /// Killed at some moment.
    Killed(Index),
    /// One result cannot be written, and none after it.
    Refused(Index),
}

/// Damage to a file in `parts/` that an explanation left.
#[derive(Clone, Debug)]
enum Damage {
    /// As if killed before it was written.
    Missing,
    Cut(Index),
    Flipped(Index),
    /// It has the content of another.
    Is(Index),
    /// All files are restored to what the last killed explanation left, as if the next one had been
    /// killed before it removed them.
    AllAsBefore,
}

/// One explanation.
#[derive(Clone, Debug)]
struct Asked {
    analyses: Vec<Analysis>,
    other_options: bool,
    end: End,
    damages: Vec<(Index, Damage)>,
}

fn analyses() -> impl Strategy<Value = Vec<Analysis>> {
    let all = Analysis::ALL.to_vec();
    // Analyses with interventions store most.
    let edited = vec![Analysis::Suppress, Analysis::Neurons, Analysis::Knockout, Analysis::Evict];
    prop_oneof![subsequence(all, 1..=8), subsequence(edited, 1..=3)]
}

fn asked() -> impl Strategy<Value = Asked> {
    let index = any::<Index>;
    let end = prop_oneof![
        1 => Just(End::Done),
        6 => index().prop_map(End::Killed),
        1 => index().prop_map(End::Refused),
    ];
    let damage = prop_oneof![
        3 => Just(Damage::Missing),
        1 => index().prop_map(Damage::Cut),
        1 => index().prop_map(Damage::Flipped),
        1 => index().prop_map(Damage::Is),
        1 => Just(Damage::AllAsBefore),
    ];
    let damages = prop::collection::vec((index(), damage), 0..4);
    (analyses(), prop::bool::weighted(0.1), end, damages).prop_map(
        |(analyses, other_options, end, damages)| Asked { analyses, other_options, end, damages },
    )
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn damage(run: &CopiedRun, before: &Files, (which, damage): &(Index, Damage)) {
    let dir = run.parts_dir();
    if let Damage::AllAsBefore = damage {
        fs::create_dir_all(&dir).unwrap();
        before.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        return;
    }
    let parts = names(&dir);
    if parts.is_empty() {
        return;
    }
    let path = dir.join(which.get(&parts));
    let mut bytes = fs::read(&path).unwrap();
    match damage {
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
        Damage::Flipped(at) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
        }
        Damage::Is(other) => bytes = fs::read(dir.join(other.get(&parts))).unwrap(),
        _ => return fs::remove_file(&path).unwrap(),
    }
    fs::write(&path, bytes).unwrap();
}

fn contents(dir: &Path) -> Files {
    names(dir)
        .into_iter()
        .map(|name| (dir.join(&name), fs::read(dir.join(&name)).unwrap()))
        .collect()
}

/// Compares every result with the clean one.
fn check(scanned: &Scanned, run: &CopiedRun, analyses: &[Analysis]) {
    for analysis in analyses {
        let same = run.result(*analysis).unwrap() == scanned.clean[analysis].bytes;
        assert!(same, "{} depends on what was asked before", analysis.name());
    }
}

fn play(attention: bool, sequence: &[Asked], rest: &[Vec<Analysis>]) {
    let scanned = Scanned::get(attention);
    let run = scanned.run();
    let mut left_behind = Files::new();
    for Asked { analyses, other_options, end, damages } in sequence {
        let options = match other_options {
            true => ExplainOptions { seed: 1, max_sinks: 5, ..OPTIONS },
            false => OPTIONS,
        };
        let mut progress = KilledAt { moment: usize::MAX, moments: 0 };
        let mut in_the_way = None;
        match end {
            End::Done => {}
            End::Killed(at) => progress.moment = at.index(scanned.moments(analyses).max(1)),
            End::Refused(which) => {
                let file = result_file(run.run.dir(), *which.get(analyses));
                in_the_way = (!file.exists()).then_some(file);
            }
        }
        in_the_way.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        let explain = || scanned.explain(&run.run, analyses, options, &mut progress);
        let ended = catch_unwind(AssertUnwindSafe(explain));
        in_the_way.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
        match ended {
            Ok(ended) => {
                assert_eq!(ended.is_err(), in_the_way.is_some());
                if ended.is_ok() && !other_options {
                    check(scanned, &run, analyses);
                }
            }
            Err(killed) => assert!(killed.is::<Killed>()),
        }
        let parts = contents(&run.parts_dir());
        if !parts.is_empty() {
            left_behind = parts;
        }
        damages.iter().for_each(|one| damage(&run, &left_behind, one));
    }
    for analyses in rest.iter().map(Vec::as_slice).chain([&Analysis::ALL[..]; 2]) {
        scanned.explain(&run.run, analyses, OPTIONS, &mut ()).unwrap();
        check(scanned, &run, analyses);
    }
    let mut expected: Vec<String> =
        Analysis::ALL.iter().map(|analysis| format!("{}.json", analysis.name())).collect();
    expected.sort();
    assert_eq!(run.files(), expected, "results and nothing else");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_result_depends_on_what_was_asked_before(
        attention in any::<bool>(),
        sequence in prop::collection::vec(asked(), 1..5),
        rest in prop::collection::vec(analyses(), 0..3),
    ) {
        play(attention, &sequence, &rest);
    }
}

/// Kills an explanation at every progress call, then requests something else, then the same again.
fn killed_then_other(killed: &[Analysis], then: &[Analysis]) {
    let scanned = Scanned::get(false);
    let mut left = 0;
    for moment in 0..scanned.moments(killed) {
        let run = scanned.run();
        let mut progress = KilledAt { moment, moments: 0 };
        let explain = || scanned.explain(&run.run, killed, OPTIONS, &mut progress);
        catch_unwind(AssertUnwindSafe(explain)).unwrap_err();
        left += usize::from(run.parts_dir().exists());
        for analyses in [then, killed] {
            scanned.explain(&run.run, analyses, OPTIONS, &mut ()).unwrap();
            check(scanned, &run, analyses);
        }
    }
    assert!(left > 5, "{left}");
}

#[test]
fn what_a_killed_explanation_did_not_do_is_done_later() {
    killed_then_other(&[Analysis::Neurons], &[Analysis::Suppress]);
    killed_then_other(&[Analysis::Suppress], &[Analysis::Neurons]);
}

#[test]
fn parts_of_a_killed_explanation_survive_another_that_finishes() {
    let scanned = Scanned::get(false);
    let run = scanned.run();
    let tokens = |analyses: &[Analysis]| {
        let mut tokens = Tokens::default();
        scanned.explain(&run.run, analyses, OPTIONS, &mut tokens).unwrap();
        tokens.0
    };
    let each: Vec<usize> = scanned.traces.iter().map(|trace| trace.ids.len()).collect();
    let all: usize = each.iter().sum();

    let mut progress =
        KilledAt { moment: scanned.clean[&Analysis::Neurons].moments - 1, moments: 0 };
    let explain = || scanned.explain(&run.run, &[Analysis::Neurons], OPTIONS, &mut progress);
    catch_unwind(AssertUnwindSafe(explain)).unwrap_err();

    let parts = |producer: &str| {
        let names = names(&run.parts_dir());
        names.iter().filter(|name| name.starts_with(producer)).count()
    };
    assert_eq!((parts("creation-"), parts("heads-"), parts("neurons-")), (3, 3, 2));
    // The plain pass is stored. The edited pass runs three clamped sequences and a plain one.
    assert_eq!(tokens(&[Analysis::Suppress]), 4 * all);
    assert_eq!((parts("creation-"), parts("heads-"), parts("neurons-")), (3, 3, 2));
    assert_eq!(parts("suppress-"), 0);
    assert_eq!(tokens(&[Analysis::Stages]), all);
    assert_eq!(tokens(&[Analysis::Neurons]), 4 * each[2], "only the last trace was left");
    assert!(!run.parts_dir().exists());
    check(scanned, &run, &[Analysis::Suppress, Analysis::Stages, Analysis::Neurons]);
}
