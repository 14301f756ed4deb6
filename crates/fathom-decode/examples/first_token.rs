//! Times the first token of requests that begin with the same system prompt, with and without the
//! prefix cache.
//!
//! ```text
//! cargo run --release --example first_token -- SYSTEM QUESTION REPEATS
//! ```
//!
//! The target has the shape of Qwen2.5-0.5B and random weights, the draft two layers of the same
//! shape; the mode is PEARL. Every request has the SYSTEM tokens and QUESTION tokens of its own.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Precision;
use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{Mode, SamplingParams, philox4x32};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, Result, SyntheticShape, Transformer, write_synthetic};

const SHAPE: SyntheticShape = SyntheticShape::QWEN2_5_0_5B;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &[String]) -> Result<()> {
    let numbers: std::result::Result<Vec<usize>, _> =
        arguments.iter().map(|text| text.parse()).collect();
    let Ok(&[system, question, repeats]) = numbers.as_deref() else {
        return Err(Error::Request("expected SYSTEM QUESTION REPEATS".to_owned()));
    };
    let mut means = Vec::new();
    for prefix_cache in [false, true] {
        let mut engine = Engine::new(
            model(SHAPE)?,
            Some(model(SyntheticShape { layers: 2, ..SHAPE })?),
            EngineOptions {
                mode: ModeChoice::Always(Mode::Pearl),
                gamma: Gamma::Fixed(4),
                batch_size: 4,
                kv_pages: 400,
                vocab: SHAPE.vocab,
                prefix_cache,
            },
        )?;
        let first = first_token(&mut engine, 0, system, question)?;
        let mut later = Vec::new();
        for id in 1..=repeats as u64 {
            later.push(first_token(&mut engine, id, system, question)?);
        }
        let mean = later.iter().sum::<f64>() / repeats.max(1) as f64;
        println!(
            "prefix cache {prefix_cache}: {first:.3} s, then {mean:.3} s on average {later:.3?}"
        );
        means.push(mean);
    }
    println!("{:.1} times faster", means[0] / means[1]);
    Ok(())
}

/// Seconds from the submission of a request to its first token.
fn first_token(engine: &mut Engine<Cpu>, id: u64, system: usize, question: usize) -> Result<f64> {
    let token = |of: u64| move |i| philox4x32([of as u32, i, 0, 0], [4, 4])[0] % 100_000;
    let mut prompt: Vec<u32> = (0..system as u32).map(token(1_000)).collect();
    prompt.extend((0..question as u32).map(token(id)));
    let params = SamplingParams { max_tokens: 4, ..SamplingParams::default() };
    let start = Instant::now();
    engine.submit(Request::new(id, prompt, params, Arc::default()))?;
    engine.step()?;
    let seconds = start.elapsed().as_secs_f64();
    while engine.pending() > 0 {
        engine.step()?;
    }
    Ok(seconds)
}

fn model(shape: SyntheticShape) -> Result<Transformer<Cpu>> {
    let failed = |error: &dyn std::fmt::Display| Error::Request(error.to_string());
    let dir = tempfile::tempdir().map_err(|error| failed(&error))?;
    write_synthetic(dir.path(), &shape, 1)?;
    let options = CpuOptions { precision: Precision::Bf16, ..CpuOptions::default() };
    Transformer::load(dir.path(), Cpu::new(options).map_err(|error| failed(&error))?)
}
