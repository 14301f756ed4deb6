//! Scans and explanations on a device other than the host: they have the same bytes as on the CPU,
//! also when they are repeated after a failure at any operation.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{planted, traces};
use fathom_backend::Backend;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Checkpoint, Result, TokenizedTrace, Transformer};
use fathom_sinks::explain::{Analysis, ExplainOptions, Explanation, Inputs};
use fathom_sinks::{Manifest, ModelNote, Preset, RunDir, RunWriter, ScanOptions, TracesNote, scan};
use foreign_backend::{Failure, Foreign};

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
}

fn some_traces(count: usize, tokens: usize) -> Vec<TokenizedTrace> {
    let mut traces = traces();
    traces.truncate(count);
    traces.iter_mut().for_each(|trace| trace.ids.truncate(tokens));
    traces
}

fn manifest(model_dir: &Path, preset: Preset) -> Manifest {
    let config = fathom_model::ModelConfig::from_dir(model_dir).unwrap();
    let note = ModelNote::new("planted", model_dir, &config).unwrap();
    let file = TracesNote::new(&planted().join("traces.jsonl")).unwrap();
    let options = ScanOptions {
        attention: true,
        // With a second candidate after position 0, the cosines of the rows before it are computed
        // later.
        reference: vec![0, 2],
        ..ScanOptions::new(preset)
    };
    Manifest::new(note, file, "one engine".to_owned(), options)
}

/// Scans into `dir`, resuming the run if there is one.
fn scan_on<B: Backend>(
    model: &Transformer<B>,
    traces: &[TokenizedTrace],
    dir: &Path,
    preset: Preset,
) -> Result<RunDir> {
    let manifest = manifest(&planted(), preset);
    let writer = match dir.join("run.json").exists() {
        true => RunWriter::resume(dir, manifest)?,
        false => RunWriter::create(dir, manifest)?,
    };
    scan(model, traces, &|_| None, writer, &mut ())
}

fn explain_on<B: Backend>(
    model: &Transformer<B>,
    traces: &[TokenizedTrace],
    run: &RunDir,
    analyses: &[Analysis],
) -> Result<()> {
    let options = ExplainOptions { max_sinks: 12, ..ExplainOptions::default() };
    let explanation = Explanation::new(run, analyses, options)?;
    let checkpoint = Checkpoint::open(&planted())?;
    let text = &|ids: &[u32]| Some(format!("{ids:?}"));
    let inputs = Inputs { model, checkpoint: &checkpoint, traces, text, engine: "one engine" };
    explanation.with_model(&inputs, &mut common::Tokens::default())
}

/// All files of a run.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn one_sentence(error: &str) {
    let sentence = !error.is_empty() && !error.contains('\n');
    assert!(sentence, "{error}");
    let known = ["the foreign device is out of memory", "the device was lost: it was unplugged"];
    assert!(known.iter().any(|known| error.contains(known)), "{error}");
}

#[test]
fn a_scan_and_its_explanations_have_the_cpus_bytes() {
    let traces = some_traces(3, 72); // more than the least budget of eviction
    let on_cpu = Transformer::load(&planted(), cpu()).unwrap();
    let foreign = Transformer::load(&planted(), Foreign::new(cpu())).unwrap();
    for preset in [Preset::Paper, Preset::Upstream] {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        let run = scan_on(&on_cpu, &traces, &here, preset).unwrap();
        explain_on(&on_cpu, &traces, &run, &Analysis::ALL).unwrap();
        let run = scan_on(&foreign, &traces, &there, preset).unwrap();
        explain_on(&foreign, &traces, &run, &Analysis::ALL).unwrap();
        let (here, there) = (files(&here), files(&there));
        assert!(here.len() > 10, "{:?}", here.keys());
        for (name, bytes) in &here {
            assert!(there.get(name) == Some(bytes), "{preset:?} {name}");
        }
    }
}

#[test]
fn a_scan_resumes_after_a_failure_at_any_operation() {
    let traces = some_traces(2, 24);
    let dir = tempfile::tempdir().unwrap();
    let model = Transformer::load(&planted(), Foreign::new(cpu())).unwrap();
    let loading = model.backend().operations();
    scan_on(&model, &traces, &dir.path().join("clean"), Preset::Paper).unwrap();
    let all = model.backend().operations();
    let clean = files(&dir.path().join("clean"));

    // An odd step visits operations of every kind.
    for (i, at) in (0..all).step_by((all as usize / 45) | 1).enumerate() {
        for failure in [Failure::OutOfMemory, Failure::Lost] {
            let run = dir.path().join(format!("{i}-{failure:?}"));
            let failing = Foreign::failing(cpu(), at, failure);
            let failed = Transformer::load(&planted(), failing)
                .and_then(|model| scan_on(&model, &traces, &run, Preset::Paper));
            let error = failed.map(drop).unwrap_err().to_string();
            one_sentence(&error);
            assert!(at < loading || run.exists(), "{at}");
            scan_on(&model, &traces, &run, Preset::Paper).unwrap();
            assert!(files(&run) == clean, "{failure:?} at {at}");
        }
    }
}

#[test]
fn an_explanation_can_be_repeated_after_a_failure_at_any_operation() {
    let traces = some_traces(2, 48);
    let dir = tempfile::tempdir().unwrap();
    let model = Transformer::load(&planted(), Foreign::new(cpu())).unwrap();
    let clean = dir.path().join("clean");
    let loading = model.backend().operations();
    let run = scan_on(&model, &traces, &clean, Preset::Paper).unwrap();
    let scanned = files(&clean);
    let before = model.backend().operations();
    explain_on(&model, &traces, &run, &Analysis::ALL).unwrap();
    let explaining = model.backend().operations() - before;
    let clean = files(&clean);

    for (i, at) in (0..explaining).step_by((explaining as usize / 6) | 1).enumerate() {
        let failure = [Failure::OutOfMemory, Failure::Lost][i % 2];
        let copy = dir.path().join(format!("{i}"));
        fs::create_dir(&copy).unwrap();
        scanned.iter().for_each(|(name, bytes)| fs::write(copy.join(name), bytes).unwrap());
        let run = RunDir::open(&copy).unwrap();
        let failing = Foreign::failing(cpu(), loading + at, failure);
        let failing = Transformer::load(&planted(), failing).unwrap();
        let failed = explain_on(&failing, &traces, &run, &Analysis::ALL);
        one_sentence(&failed.unwrap_err().to_string());
        explain_on(&model, &traces, &run, &Analysis::ALL).unwrap();
        assert!(files(&copy) == clean, "{failure:?} at {at}");
    }
}
