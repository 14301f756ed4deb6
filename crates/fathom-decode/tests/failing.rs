//! A model that fails in the middle of a text ends the run with its error; nothing waits for ever and no thread is left.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{Mode, SamplingParams};
use fathom_kernels::{Attention, Backend, Cpu, CpuOptions, KvShape, Precision, Span, WeightView};
use fathom_model::{Error, Model};

/// A CPU on which a pass fails after so many.
struct Failing {
    cpu: Cpu,
    passes: AtomicUsize,
}

impl Failing {
    fn after(passes: usize) -> Failing {
        let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        Failing { cpu, passes: AtomicUsize::new(passes) }
    }
}

/// Writes methods that do what the CPU does.
macro_rules! as_the_cpu_does {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $result:ty)?;)*) => {$(
        fn $name(&self, $($arg: $ty),*) $(-> $result)? {
            self.cpu.$name($($arg),*)
        }
    )*};
}

impl Backend for Failing {
    type Rows = <Cpu as Backend>::Rows;
    type Operand = <Cpu as Backend>::Operand;
    type Linear = <Cpu as Backend>::Linear;
    type Vector = <Cpu as Backend>::Vector;
    type Rope = <Cpu as Backend>::Rope;
    type Kv = <Cpu as Backend>::Kv;
    type ColumnSums = <Cpu as Backend>::ColumnSums;

    const KV_PAGE: usize = Cpu::KV_PAGE;

    /// The first operation of every pass.
    fn embed(&self, table: &Self::Linear, ids: &[u32], out: &mut Self::Rows) {
        let left =
            self.passes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_ok(), "the memory of this machine is on fire");
        self.cpu.embed(table, ids, out);
    }

    fn host_rows<'a>(
        &self,
        x: &'a Self::Rows,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.cpu.host_rows(x, rows, scratch)
    }

    fn attend(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        spans: &[Span<'_, Self::Kv>],
        out: &mut Self::Rows,
        lse: Option<&mut Self::Rows>,
    ) {
        self.cpu.attend(attention, q, spans, out, lse);
    }

    as_the_cpu_does! {
        fn precision() -> Precision;
        fn alloc(rows: usize, columns: usize) -> Self::Rows;
        fn resize(x: &mut Self::Rows, rows: usize, columns: usize);
        fn shape(x: &Self::Rows) -> (usize, usize);
        fn write_rows(x: &mut Self::Rows, first: usize, values: &[f32]);
        fn linear_from(weight: WeightView<'_>, bias: Option<&[f32]>) -> Self::Linear;
        fn linear_bytes(linear: &Self::Linear) -> usize;
        fn vector_from(values: &[f32]) -> Self::Vector;
        fn rope_from(cos: &[f32], sin: &[f32], half: usize) -> Self::Rope;
        fn rms_norm(x: &Self::Rows, weight: &Self::Vector, eps: f32, out: &mut Self::Rows);
        fn rms_norm_operand(
            x: &Self::Rows, weight: &Self::Vector, eps: f32, out: &mut Self::Operand
        );
        fn head_norm(x: &mut Self::Rows, weight: &Self::Vector, eps: f32);
        fn linear(w: &Self::Linear, x: &Self::Rows, out: &mut Self::Rows);
        fn operand(x: &Self::Rows, out: &mut Self::Operand);
        fn linears(ws: &[&Self::Linear], x: &Self::Operand, outs: &mut [&mut Self::Rows]);
        fn linear_add(w: &Self::Linear, x: &Self::Operand, out: &mut Self::Rows);
        fn gated(
            gate: &Self::Linear, up: &Self::Linear, x: &Self::Operand, out: &mut Self::Operand
        );
        fn linear_argmax(w: &Self::Linear, x: &Self::Operand, limit: usize) -> Vec<u32>;
        fn rope(x: &mut Self::Rows, table: &Self::Rope, head_dim: usize);
        fn silu(x: &Self::Rows, out: &mut Self::Rows);
        fn mul(x: &Self::Rows, y: &Self::Rows, out: &mut Self::Rows);
        fn silu_mul(gate: &Self::Rows, up: &Self::Rows, out: &mut Self::Rows);
        fn add_assign(x: &mut Self::Rows, y: &Self::Rows);
        fn gather(x: &Self::Rows, rows: &[usize], out: &mut Self::Rows);
        fn argmax(x: &Self::Rows, limit: usize) -> Vec<u32>;
        fn new_kv(shape: KvShape) -> Self::Kv;
        fn kv_len(kv: &Self::Kv) -> usize;
        fn kv_bytes(kv: &Self::Kv) -> usize;
        fn truncate_kv(kv: &mut Self::Kv, len: usize);
        fn append_kv(
            layer: usize, k: &Self::Rows, v: &Self::Rows, spans: &mut [Span<'_, Self::Kv>]
        );
        fn advance_kv(kv: &mut Self::Kv, tokens: usize);
        fn new_column_sums(layers: usize, heads: usize) -> Self::ColumnSums;
        fn add_column_sums(
            attention: &Attention, q: &Self::Rows, lse: &Self::Rows, span: &Span<'_, Self::Kv>,
            sums: &mut Self::ColumnSums
        );
        fn column_sums(sums: &Self::ColumnSums, layer: usize, tokens: usize) -> Vec<f64>;
        fn attention_weights(
            attention: &Attention, q: &Self::Rows, lse: &Self::Rows, span: &Span<'_, Self::Kv>
        ) -> Vec<f32>;
    }
}

/// Decodes until something fails: the error, or the panic, in words; and that the engine is gone afterwards.
fn failure(mode: Mode, target_passes: usize, draft_passes: usize) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let load = |passes| Model::load(&dir, Failing::after(passes)).unwrap();
    let (target, draft) = (load(target_passes), load(draft_passes));
    let options = EngineOptions {
        mode: ModeChoice::Always(mode),
        gamma: Gamma::Fixed(3),
        batch_size: 4,
        kv_pages: 100,
        vocab: target.config().vocab,
    };
    let (outbox, inbox) = channel();
    std::thread::spawn(move || {
        let mut engine = Engine::new(target, Some(draft), options).unwrap();
        for id in 0..3 {
            let params = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
            let eos = Arc::default();
            engine.submit(Request { id, prompt: vec![1, 2, 3], params, eos, stop: None }).unwrap();
        }
        let end = loop {
            match catch_unwind(AssertUnwindSafe(|| engine.step())) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => break error.to_string(),
                Err(panic) => break (*panic.downcast::<&str>().unwrap()).to_owned(),
            }
        };
        drop(engine);
        outbox.send(end).unwrap();
    });
    inbox.recv_timeout(Duration::from_secs(60)).expect("the engine hangs")
}

#[test]
fn a_draft_that_fails_ends_the_run_with_its_error() {
    for mode in [Mode::Sd, Mode::Pearl] {
        for passes in [0, 1, 2, 30] {
            let error = failure(mode, usize::MAX, passes);
            assert_eq!(error, "the draft stopped: the memory of this machine is on fire");
        }
    }
}

#[test]
fn a_target_that_fails_ends_the_run_while_the_draft_works() {
    for mode in Mode::ALL {
        for passes in [0, 1, 30] {
            let panic = failure(mode, passes, usize::MAX);
            assert_eq!(panic, "the memory of this machine is on fire");
        }
    }
}

/// The same behind a handle: every open request is told once, whoever comes later is refused with
/// the same sentence, and the threads end. That sentence.
fn failure_behind_a_handle(mode: Mode, target_passes: usize, draft_passes: usize) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let load = |passes| Model::load(&dir, Failing::after(passes)).unwrap();
    let (target, draft) = (load(target_passes), load(draft_passes));
    let options = EngineOptions {
        mode: ModeChoice::Always(mode),
        gamma: Gamma::Fixed(3),
        batch_size: 2, // others wait
        kv_pages: 100,
        vocab: target.config().vocab,
    };
    let (outbox, inbox) = channel();
    std::thread::spawn(move || {
        let engine = Engine::new(target, Some(draft), options).unwrap().spawn().unwrap();
        let request = |id| {
            let params = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
            Request { id, prompt: vec![1, 2, 3], params, eos: Arc::default(), stop: None }
        };
        // The engine may fail before the last of them is submitted.
        let submitted: Vec<_> = (0..5).map(|id| engine.submit(request(id))).collect();
        let mut sentences = Vec::new();
        for submitted in submitted {
            match submitted {
                Ok(mut updates) => {
                    sentences.push(updates.find_map(|update| update.err()).unwrap());
                    assert!(updates.next().is_none(), "it is told once");
                }
                Err(error) => sentences.push(error),
            }
        }
        sentences.push(engine.submit(request(9)).unwrap_err());
        sentences.push(engine.drain().unwrap_err());
        sentences.push(engine.configure(options).unwrap_err());
        assert!(sentences.iter().all(|error| matches!(error, Error::Stopped(_))));
        let metrics = engine.metrics();
        assert_eq!((metrics.failed, metrics.running, metrics.waiting), (metrics.submitted, 0, 0));
        drop(engine);
        let mut sentences: Vec<_> = sentences.iter().map(ToString::to_string).collect();
        sentences.dedup();
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        outbox.send(sentences.remove(0)).unwrap();
    });
    inbox.recv_timeout(Duration::from_secs(60)).expect("the engine hangs, or the above is not so")
}

#[test]
fn whoever_has_a_request_is_told_that_a_model_failed() {
    for mode in [Mode::Sd, Mode::Pearl] {
        for passes in [0, 1, 30] {
            let draft = failure_behind_a_handle(mode, usize::MAX, passes);
            assert_eq!(draft, "the draft stopped: the memory of this machine is on fire");
        }
    }
    for mode in Mode::ALL {
        for passes in [0, 1, 30] {
            let target = failure_behind_a_handle(mode, passes, usize::MAX);
            assert_eq!(target, "the engine stopped: the memory of this machine is on fire");
        }
    }
}
