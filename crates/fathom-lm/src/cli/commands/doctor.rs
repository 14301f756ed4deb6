//! `fathom doctor`: the machine's hardware, the kernels chosen for it, and their speed.

use std::io::Write;

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions, Isa, KernelPath, cpu_features};
use fathom_measure::limits::{self, CurrentLimits, Limits};
use fathom_measure::{DecodeSpeed, Machine, Overhead, decode_speed, overhead, prefill_flops};
use serde_json::{Map, Value, json};

use crate::cli::failure::Failure;
use crate::cli::model_args::{ComputeArgs, load_weights};
use crate::cli::output::Output;
use crate::cli::progress;
use crate::cli::speed_tables::{decode_table, limits_json, limits_table, percent};
use crate::cli::subject::SubjectArgs;

/// Show this machine's hardware and the kernels chosen for it
///
/// With --measure, also shows how fast the machine is with one core and with all, and what fraction
/// of that a model reaches: of the matrix rate in prefill, of weights ÷ bandwidth in decoding.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom doctor\n  \
    fathom doctor --measure --precision bf16 --shape qwen2.5-0.5b")]
pub struct Args {
    /// Measure the machine's limits and the speed of a model; takes about ten seconds
    #[arg(long)]
    measure: bool,
    #[command(flatten)]
    subject: SubjectArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// The length of the measured prefill, in tokens.
const PREFILL: usize = 1024;

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let cpu = args.compute.backend()?;
    let machine = Machine::detect();
    let paths = [Precision::F32, Precision::Bf16].map(|precision| paths(&cpu, precision));
    if !output.json {
        print_machine(&cpu, &machine, &paths, out)?;
    }
    let measured = match args.measure || args.subject.is_given() {
        true => Some(MachineSpeed::measure(args, output)?),
        false => None,
    };
    if output.json {
        let report = json!({
            "architecture": std::env::consts::ARCH,
            "machine": machine_json(&machine),
            "threads": cpu.threads(),
            "features": features_json(),
            "kernels": cpu.isa().name(),
            "kernels_this_cpu_runs": runnable(),
            "unavailable": unavailable_json(),
            "paths": { "f32": paths_json(&paths[0]), "bf16": paths_json(&paths[1]) },
            "measured": measured.as_ref().map(MachineSpeed::json),
        });
        writeln!(out, "{report}")?;
    } else if let Some(measured) = measured {
        measured.write(out)?;
    }
    Ok(())
}

/// The kernel paths of `precision` with the instruction set of `cpu`; empty if no second thread
/// pool can be created.
fn paths(cpu: &Cpu, precision: Precision) -> Vec<KernelPath> {
    let options = CpuOptions { threads: Some(1), precision, isa: Some(cpu.isa()) };
    Cpu::new(options).map(|cpu| cpu.kernel_paths()).unwrap_or_default()
}

fn runnable() -> Vec<&'static str> {
    Isa::ALL.iter().filter(|isa| isa.is_supported()).map(|isa| isa.name()).collect()
}

fn print_machine(
    cpu: &Cpu,
    machine: &Machine,
    paths: &[Vec<KernelPath>; 2],
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let name = machine.cpu.as_deref().unwrap_or("an unnamed CPU");
    writeln!(out, "{name} ({})", std::env::consts::ARCH)?;
    let cores = machine.cores.map_or_else(|| "unknown".to_owned(), |cores| cores.to_string());
    writeln!(out, "  cores        {cores} to use, {} threads", cpu.threads())?;
    let caches: Vec<String> = machine
        .caches
        .iter()
        .map(|cache| {
            let per = if cache.cores > 1 { format!(" for {}", cache.cores) } else { String::new() };
            format!("L{} {}{per}", cache.level, size(cache.bytes))
        })
        .collect();
    if !caches.is_empty() {
        writeln!(out, "  caches       {}", caches.join(", "))?;
    }
    if let (Some(memory), Some(available)) = (machine.memory, machine.available) {
        writeln!(out, "  memory       {}, {} of it free", size(memory), size(available))?;
    }
    if let Some(huge_pages) = &machine.huge_pages {
        let meaning = match huge_pages.as_str() {
            "never" => "never: weights stream through small pages, which is slower",
            "madvise" => "when asked for: Fathom asks for its weights",
            _ => "always",
        };
        writeln!(out, "  huge pages   {meaning}")?;
    }

    writeln!(out, "\nInstruction sets, best first")?;
    for isa in Isa::ALL.into_iter().rev() {
        let state = match isa.unavailable() {
            Some(why) => format!("not on this CPU: {why}"),
            None if isa == cpu.isa() => "in use".to_owned(),
            None => "this CPU runs it".to_owned(),
        };
        writeln!(out, "  {:<14}{state}", isa.name())?;
    }

    for (precision, paths) in ["f32", "bf16"].iter().zip(paths) {
        writeln!(out, "\nKernels with --precision {precision}")?;
        let width = paths.iter().map(|path| path.work.chars().count()).max().unwrap_or(0);
        for KernelPath { work, path } in paths {
            writeln!(out, "  {work:<width$}  {path}")?;
        }
    }
    Ok(())
}

/// The results of `--measure`.
struct MachineSpeed {
    name: String,
    precision: &'static str,
    /// The limits with one thread and, if there are more, with all.
    limits: Vec<Limits>,
    prefill: Overhead,
    of_matrix_rate: f64,
    decode: Vec<DecodeSpeed>,
}

impl MachineSpeed {
    fn measure(args: &Args, output: Output) -> Result<MachineSpeed, Failure> {
        progress::note(output, "measuring the machine");
        let mut limits = Vec::new();
        for threads in [Some(1), args.compute.threads] {
            let compute = ComputeArgs { threads, ..args.compute };
            limits.push(limits::measure(&compute.backend()?));
        }
        limits.dedup_by_key(|limits| limits.threads);
        let subject = args.subject.prepare(None, output)?;
        let model = load_weights(&subject.dir, args.compute.backend()?, output)?;
        let name = subject.into_name();
        progress::note(output, "measuring the model");
        let decode = {
            let memory = CurrentLimits::new(model.backend());
            decode_speed(&model, &[1, 16], 64, 48, &mut || memory.bytes_per_s())?
        };
        let prefill = overhead(&model, PREFILL, 3)?;
        let last = limits.len() - 1;
        limits[last] = limits[last].or_better(limits::measure(model.backend()));
        let rate = limits[last].flops(args.compute.precision.into());
        let seconds = PREFILL as f64 / prefill.prefill_tokens_per_s;
        Ok(MachineSpeed {
            name,
            precision: args.compute.precision.name(),
            of_matrix_rate: prefill_flops(model.config(), PREFILL) / seconds / rate,
            limits,
            prefill,
            decode,
        })
    }

    fn json(&self) -> Value {
        json!({
            "limits": self.limits.iter().map(limits_json).collect::<Vec<_>>(),
            "model": self.name,
            "precision": self.precision,
            "prefill": { "overhead": self.prefill, "of_matrix_rate": self.of_matrix_rate },
            "decode": self.decode,
        })
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        writeln!(out, "\nThis machine\n")?;
        limits_table(&self.limits, out)?;
        writeln!(out, "\n{}, {}\n", self.name, self.precision)?;
        writeln!(
            out,
            "Prefill of {PREFILL} tokens: {:.0} tokens/s, {} of the matrix rate; a scan with sink \
             scores takes {:.2} times as long.\n",
            self.prefill.prefill_tokens_per_s,
            percent(self.of_matrix_rate),
            self.prefill.scan_attention,
        )?;
        decode_table(&self.decode, out)
    }
}

fn machine_json(machine: &Machine) -> Value {
    let caches: Vec<_> = machine
        .caches
        .iter()
        .map(|cache| json!({ "level": cache.level, "bytes": cache.bytes, "cores": cache.cores }))
        .collect();
    json!({
        "cpu": machine.cpu,
        "cores": machine.cores,
        "caches": caches,
        "memory_bytes": machine.memory,
        "available_bytes": machine.available,
        "huge_pages": machine.huge_pages,
    })
}

/// The unsupported instruction sets, each with the reason.
fn unavailable_json() -> Map<String, Value> {
    let why = |isa: Isa| Some((isa.name().to_owned(), isa.unavailable()?.into()));
    Isa::ALL.into_iter().filter_map(why).collect()
}

fn features_json() -> Map<String, Value> {
    cpu_features().iter().map(|f| (f.name.to_owned(), f.present.into())).collect()
}

fn paths_json(paths: &[KernelPath]) -> Map<String, Value> {
    paths.iter().map(|path| (path.work.to_owned(), path.path.clone().into())).collect()
}

/// `48 KiB`, `32 MiB`, `23.5 GiB`.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
