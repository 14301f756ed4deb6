//! `fathom demo`: scanning and generation on built-in models, checked.

mod generation;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fathom_report::summary;
use fathom_sinks::Detection;
use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::model_args::{ComputeArgs, load};
use crate::cli::output::Output;
use crate::cli::progress::ScanBar;
use crate::demo::{Mismatch, PlantOptions, PlantedSequence, PlantedTruth, plant};
use crate::tables::{self, Detections};
use crate::{
    Error, Format, ModelOptions, Phases, Preset, ReportOptions, Result, Run, ScanOptions, Traces,
    write_report,
};

/// Find planted sinks and generate text with a small pair of models, and check both
///
/// Plants a model, finds its sinks and compares them with those planted. Then generates text with a
/// built-in pair of models by parallel speculative decoding, compares it with plain decoding, and
/// scans it. Nothing is downloaded. Writes to a temporary directory, or with --out to a directory
/// that is kept, with a report of the planted run. Exit code 1: a sink is missing, wrong or
/// spurious, or a token differs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fathom demo --out demo --precision bf16")]
pub struct Args {
    /// Keep models, traces and runs in this directory, which must be new or empty
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of the planted model
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Plant and check two phases, as plant --two-phases
    #[arg(long)]
    two_phases: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.out {
        Some(dir) => demo(args, dir, output, out),
        None => {
            let temporary = tempfile::Builder::new().prefix("fathom-demo-").tempdir();
            let parent = std::env::temp_dir();
            let dir = temporary.map_err(Error::io(&parent, "cannot be written"))?;
            demo(args, dir.path(), output, out)
        }
    }
}

fn demo(args: &Args, dir: &Path, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let start = Instant::now();
    let (model_dir, run_dir) = (dir.join("model"), dir.join("run"));
    let Args { seed, two_phases, .. } = *args;
    let truth = plant(&model_dir, &PlantOptions { seed, two_phases, ..PlantOptions::default() })?;
    let traces = model_dir.join("traces.jsonl");
    let phases = if two_phases { Phases::All } else { Phases::Largest };
    let options = ScanOptions { attention: true, phases, ..ScanOptions::new(Preset::Paper) };
    let run = scan(args.compute, "planted", &model_dir, &traces, options, &run_dir, output)?;
    let mismatches = truth.compare(&detections(&run)?);
    let seconds = start.elapsed().as_secs_f64();
    let generated = generation::run(&dir.join("pair"), args.compute, output)?;
    let (target, written) = (&generated.model_dir, &generated.traces);
    let options = ScanOptions { attention: true, ..ScanOptions::new(Preset::Paper) };
    let text_dir = dir.join("pair-run");
    let text_run = scan(args.compute, "trained", target, written, options, &text_dir, output)?;

    let report = match &args.out {
        Some(dir) => {
            let options = ReportOptions::default();
            Some(write_report(&[run_dir], &dir.join("report.html"), &options)?.page)
        }
        None => None, // it would be removed with the temporary directory
    };

    let (sinks, decoys) = planted(&truth);
    if output.json {
        let mismatches: Vec<String> = mismatches.iter().map(Mismatch::to_string).collect();
        let report = json!({
            "planted": { "sinks": sinks, "decoys": decoys },
            "counts": run.manifest().counts,
            "mismatches": mismatches,
            "seconds": seconds,
            "report": report,
            "generation": generated.json,
            "generation_counts": text_run.manifest().counts,
        });
        writeln!(out, "{report}")?;
    } else {
        print_scan(&truth, &run, &mismatches, seconds, out)?;
        writeln!(out, "\n{}", generated.summary)?;
        write!(out, "{}", summary(text_run.manifest(), &text_run.detections()?))?;
        if let Some(page) = report {
            writeln!(out, "\nReport: {}", page.display())?;
        }
        print_next_steps(args, out)?;
    }
    if !generated.same {
        let problem = "speculative decoding gave other tokens than plain decoding";
        return Err(Failure::Check(problem.to_owned()));
    }
    match mismatches.len() {
        0 => Ok(()),
        n => {
            Err(Failure::Check(format!("the sinks found differ from those planted in {n} places")))
        }
    }
}

fn scan(
    compute: ComputeArgs,
    name: &str,
    model_dir: &Path,
    traces: &Path,
    options: ScanOptions,
    run_dir: &Path,
    output: Output,
) -> Result<Run> {
    let files = ModelOptions::new(model_dir.display().to_string());
    let files = files.named(name).cpu(compute.options()).open()?;
    let traces = Traces::read(traces, &files)?;
    let model = load(files, output)?;
    model.scan(&traces, options).out(run_dir).progress(&mut ScanBar::new(output)).run()
}

/// The run's detections in the form that [`PlantedTruth::compare`] expects.
fn detections(run: &Run) -> Result<Vec<Detection>> {
    let detection = |trace: fathom_sinks::TraceDetection| {
        let note = trace.scan?;
        Some(Detection {
            finding: note.finding,
            reference: note.reference,
            clip: note.clip,
            rise: note.rise,
            sinks: trace.sinks,
            other_phases: trace.other_phases,
        })
    };
    Ok(run.detections_of(Phases::Largest)?.into_iter().filter_map(detection).collect())
}

/// The number of (sinks, decoys) planted in all traces.
fn planted(truth: &PlantedTruth) -> (usize, usize) {
    let count = |(sinks, decoys), sequence: &PlantedSequence| {
        (sinks + sequence.sinks.len(), decoys + sequence.decoys.len())
    };
    truth.sequences.iter().fold((0, 0), count)
}

fn print_scan(
    truth: &PlantedTruth,
    run: &Run,
    mismatches: &[Mismatch],
    seconds: f64,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let traces = run.detections()?;
    let model = &run.manifest().model;
    let found = [Detections {
        name: model.id.clone(),
        rope_base: Some(model.rope_base),
        traces: traces.clone(),
    }];
    let (sinks, decoys) = planted(truth);

    writeln!(
        out,
        "A model with {sinks} attention sinks and {decoys} decoys at known places was planted, \
         and its {} traces were scanned.\n",
        traces.len()
    )?;
    writeln!(out, "{}", summary(run.manifest(), &traces))?;
    for table in [tables::sinks(&found), tables::levels(&found), tables::tokens(&found, 5)] {
        writeln!(out, "{}", table.render(Format::Markdown))?;
    }

    for mismatch in mismatches {
        writeln!(out, "DIFFERS  {mismatch}")?;
    }
    if mismatches.is_empty() {
        writeln!(
            out,
            "Checked against the truth: all {sinks} sinks found, each with the right position, \
             class and layers; none of the {decoys} decoys reported as a sink. {seconds:.1} s."
        )?;
    }
    if let ([early, late], true) = (&truth.phases[..], mismatches.is_empty()) {
        let (early, late) = (early.layers(), late.layers());
        writeln!(out, "Both phases found, at layers {early:?} and {late:?}.")?;
    }
    Ok(())
}

/// Prints commands to try next, with the program's name as the user typed it.
fn print_next_steps(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let program = std::env::args().next().unwrap_or_else(|| "fathom".to_owned());
    let dir = args.out.as_deref().unwrap_or(Path::new("demo"));
    let [model, traces, run, page] =
        ["model", "model/traces.jsonl", "again", "again.html"].map(|name| dir.join(name));
    let (two_phases, all) =
        if args.two_phases { (" --two-phases", " --phases all") } else { ("", "") };
    writeln!(out, "\nNext:")?;
    if args.out.is_none() {
        writeln!(out, "  {program} demo{two_phases} --out {}", dir.display())?;
    }
    writeln!(
        out,
        "  {program} scan --model {} --traces {} --out {} --attention{all}\n  \
         {program} table {} --show levels,positions\n  \
         {program} explain {}\n  \
         {program} report {} --out {}",
        model.display(),
        traces.display(),
        run.display(),
        run.display(),
        run.display(),
        run.display(),
        page.display(),
    )?;
    Ok(())
}
