//! Target and draft on devices other than the host: texts are those of the CPU in every mode, and a
//! failure at any operation of either ends the run with a one-line error.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use fathom_backend::Backend;
use fathom_backend::Precision;
use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{GammaLimits, Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Result, Transformer};
use foreign_backend::{Failure, Foreign};

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(1), precision, isa: None }).unwrap()
}

fn load<B: Backend>(name: &str, backend: B) -> Result<Transformer<B>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    Transformer::load(&dir, backend)
}

fn params(id: u64) -> SamplingParams {
    SamplingParams {
        max_tokens: 12 + 7 * id as usize,
        temperature: if id.is_multiple_of(2) { 0.0 } else { 0.8 },
        repetition_penalty: if id == 2 { 1.3 } else { 1.0 },
        seed: 5,
        ..SamplingParams::default()
    }
}

/// Four texts, in a cache too small for all of them at once.
fn generate<B: Backend>(
    target: Transformer<B>,
    draft: Option<Transformer<B>>,
    mode: ModeChoice,
    gamma: Gamma,
) -> Result<BTreeMap<u64, Vec<u32>>> {
    let vocab = target.config().vocab;
    let options =
        EngineOptions { mode, gamma, batch_size: 3, kv_pages: 3, vocab, prefix_cache: true };
    let mut engine = Engine::new(target, draft, options)?;
    for id in 0..4 {
        let prompt = (0..5 + 9 * id as u32).map(|i| (i * 37 + 11) % 400).collect();
        let (params, eos) = (params(id), Default::default());
        engine.submit(Request::new(id, prompt, params, eos))?;
    }
    let mut texts: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    while engine.pending() > 0 {
        for update in engine.step()? {
            texts.entry(update.request).or_default().extend(update.tokens);
        }
    }
    Ok(texts)
}

#[test]
fn texts_are_those_of_the_cpu_in_every_mode() {
    for (golden, precision) in [("llama3.2", Precision::F32), ("phi4-mini", Precision::Bf16)] {
        let model = || load(golden, cpu(precision)).unwrap();
        let foreign = || load(golden, Foreign::new(cpu(precision))).unwrap();
        let ar = ModeChoice::Always(Mode::Ar);
        let plain = generate(model(), None, ar, Gamma::Fixed(1)).unwrap();
        assert_eq!(generate(foreign(), None, ar, Gamma::Fixed(1)).unwrap(), plain);
        for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
            let (mode, gamma) = (ModeChoice::Always(mode), Gamma::Fixed(3));
            let on_cpu = generate(model(), Some(model()), mode, gamma).unwrap();
            let texts = generate(foreign(), Some(foreign()), mode, gamma).unwrap();
            assert_eq!(texts, on_cpu, "{mode:?}");
            // Greedy texts are the same in every mode.
            assert!([0, 2].iter().all(|id| texts[id] == plain[id]), "{mode:?}");
        }
        let gamma = Gamma::Adaptive(GammaLimits { start: 2, max: 4 });
        let texts = generate(foreign(), Some(foreign()), ModeChoice::Auto, gamma).unwrap();
        assert!([0, 2].iter().all(|id| texts[id] == plain[id]), "auto");
    }
}

/// Measured times are those of the work, not of its submission.
#[test]
fn passes_on_a_lazy_device_take_time() {
    let model = load("llama3.2", Foreign::new(cpu(Precision::F32))).unwrap();
    let b = model.backend();
    let (from, matrix) = (b.mark().unwrap(), b.alloc(2000, 2000).unwrap());
    let mut sum = b.alloc(2000, 2000).unwrap();
    (0..20).for_each(|_| b.add_assign(&mut sum, &matrix).unwrap());
    let to = b.mark().unwrap();
    // The device has not run yet. 20 sums of 4 million numbers exceed the clock's resolution.
    assert!(b.seconds_between(&from, &to).unwrap() > 1e-4);
}

/// The error of a run in which an operation of the target or of the draft fails.
fn failure(of_target: bool, at: u64, failure: Failure) -> Option<String> {
    let (outbox, inbox) = channel();
    std::thread::spawn(move || {
        let failing = || Foreign::failing(cpu(Precision::F32), at, failure);
        let working = || Foreign::new(cpu(Precision::F32));
        let (target, draft) = match of_target {
            true => (failing(), working()),
            false => (working(), failing()),
        };
        let run = load("llama3.2", target).and_then(|target| {
            let draft = load("llama3.2", draft)?;
            let mode = ModeChoice::Always(Mode::Pearl);
            generate(target, Some(draft), mode, Gamma::Fixed(3))
        });
        drop(outbox.send(run.err().map(|error| error.to_string())));
    });
    inbox.recv_timeout(Duration::from_secs(120)).expect("the engine hangs")
}

#[test]
fn a_failure_at_any_operation_of_either_model_ends_the_run_with_one_sentence() {
    // Number of operations that loading needs. A run needs more.
    let loading = load("llama3.2", Foreign::new(cpu(Precision::F32))).unwrap();
    let loading = loading.backend().operations();
    let mut failed = 0;
    for of_target in [true, false] {
        for at in (0..loading + 900).step_by(41) {
            let kind = [Failure::OutOfMemory, Failure::Lost][at as usize / 41 % 2];
            let Some(error) = failure(of_target, at, kind) else { continue };
            let expected = match kind {
                Failure::OutOfMemory => "the foreign device is out of memory",
                Failure::Lost => "the device was lost: it was unplugged",
            };
            assert!(error.starts_with(expected) && !error.contains('\n'), "{at}: {error}");
            failed += 1;
        }
    }
    assert!(failed > 40, "{failed} failures");
}
