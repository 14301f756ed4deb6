//! A model that fails in the middle of a text ends the run with its error. Nothing waits forever
//! and no thread leaks.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use fathom_backend::{
    Attention, Backend, BackendError, KvShape, Precision, Result, Rotary, RowEdit, Span, WeightView,
};
use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
use fathom_decode::{Mode, SamplingParams};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, Transformer};

/// A CPU on which every pass fails after the first few.
struct Failing {
    cpu: Cpu,
    /// Passes that still succeed.
    passes: AtomicUsize,
    /// Panic instead of returning an error.
    panics: bool,
}

impl Failing {
    fn after(passes: usize, panics: bool) -> Failing {
        let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        Failing { cpu, passes: AtomicUsize::new(passes), panics }
    }
}

/// Defines methods that delegate to the CPU.
macro_rules! as_the_cpu_does {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $result:ty)?;)*) => {$(
        fn $name(&self, $($arg: $ty),*) $(-> $result)? {
            self.cpu.$name($($arg),*)
        }
    )*};
}

type Rows = <Cpu as Backend>::Rows;
type Operand = <Cpu as Backend>::Operand;
type Linear = <Cpu as Backend>::Linear;
type Vector = <Cpu as Backend>::Vector;
type Kv = <Cpu as Backend>::Kv;
type ColumnSums = <Cpu as Backend>::ColumnSums;
type Mark = <Cpu as Backend>::Mark;

impl Backend for Failing {
    type Rows = Rows;
    type Operand = Operand;
    type Linear = Linear;
    type Vector = Vector;
    type Kv = Kv;
    type ColumnSums = ColumnSums;
    type Pass<'a> = <Cpu as Backend>::Pass<'a>;
    type Mark = Mark;

    /// The first operation of every pass.
    fn embed(&self, table: &Linear, ids: &[u32], out: &mut Rows) -> Result<()> {
        let left =
            self.passes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_ok() || !self.panics, "a simulated failure");
        left.map_err(|_| BackendError::Lost("a simulated failure".to_owned()))?;
        self.cpu.embed(table, ids, out)
    }

    fn host_rows<'a>(
        &self,
        x: &'a Rows,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]> {
        self.cpu.host_rows(x, rows, scratch)
    }

    fn begin_pass<'a>(
        &self,
        spans: Vec<Span<'a, Kv, ColumnSums>>,
        rotary: Rotary<'_>,
    ) -> Result<Self::Pass<'a>> {
        self.cpu.begin_pass(spans, rotary)
    }

    as_the_cpu_does! {
        fn name() -> String;
        fn precision() -> Precision;
        fn kv_page() -> usize;
        fn synchronize() -> Result<()>;
        fn mark() -> Result<Mark>;
        fn seconds_between(from: &Mark, to: &Mark) -> Result<f64>;
        fn alloc(rows: usize, columns: usize) -> Result<Rows>;
        fn resize(x: &mut Rows, rows: usize, columns: usize) -> Result<()>;
        fn shape(x: &Rows) -> (usize, usize);
        fn write_rows(x: &mut Rows, first: usize, values: &[f32]) -> Result<()>;
        fn new_operand() -> Operand;
        fn linear_from(weight: WeightView<'_>, bias: Option<&[f32]>) -> Result<Linear>;
        fn linear_bytes(linear: &Linear) -> usize;
        fn vector_from(values: &[f32]) -> Result<Vector>;
        fn rms_norm(x: &Rows, weight: &Vector, eps: f32, out: &mut Rows) -> Result<()>;
        fn rms_norm_operand(x: &Rows, weight: &Vector, eps: f32, out: &mut Operand) -> Result<()>;
        fn head_norm(x: &mut Rows, weight: &Vector, eps: f32) -> Result<()>;
        fn operand(x: &Rows, out: &mut Operand) -> Result<()>;
        fn linears(ws: &[&Linear], x: &Operand, outs: &mut [&mut Rows]) -> Result<()>;
        fn linear_add(w: &Linear, x: &Operand, out: &mut Rows) -> Result<()>;
        fn gated(gate: &Linear, up: &Linear, x: &Operand, out: &mut Operand) -> Result<()>;
        fn linear_argmax(w: &Linear, x: &Operand, limit: usize) -> Result<Vec<u32>>;
        fn silu(x: &Rows, out: &mut Rows) -> Result<()>;
        fn mul(x: &Rows, y: &Rows, out: &mut Rows) -> Result<()>;
        fn add_assign(x: &mut Rows, y: &Rows) -> Result<()>;
        fn gather(x: &Rows, rows: &[usize], out: &mut Rows) -> Result<()>;
        fn argmax(x: &Rows, limit: usize) -> Result<Vec<u32>>;
        fn new_kv(shape: KvShape) -> Kv;
        fn kv_len(kv: &Kv) -> usize;
        fn kv_bytes(kv: &Kv) -> usize;
        fn truncate_kv(kv: &mut Kv, len: usize);
        fn share_kv(kv: &Kv, len: usize) -> Kv;
        fn new_column_sums(layers: usize, heads: usize, entropy: bool) -> ColumnSums;
        fn rope(x: &mut Rows, pass: &Self::Pass<'_>, head_dim: usize) -> Result<()>;
        fn append_kv(layer: usize, k: &Rows, v: &Rows, pass: &mut Self::Pass<'_>) -> Result<()>;
        fn narrow_pass(pass: &mut Self::Pass<'_>, kept: &[usize]) -> Result<()>;
        fn attend(
            attention: &Attention, q: &Rows, pass: &Self::Pass<'_>, out: &mut Rows,
            lse: Option<&mut Rows>
        ) -> Result<()>;
        fn add_column_sums(
            attention: &Attention, q: &Rows, lse: &Rows, pass: &mut Self::Pass<'_>
        ) -> Result<()>;
        fn column_sums(sums: &ColumnSums, layer: usize, tokens: usize) -> Result<Vec<f64>>;
        fn attention_entropies(sums: &ColumnSums, layer: usize) -> Result<Vec<f64>>;
        fn attention_weights(
            attention: &Attention, q: &Rows, lse: &Rows, pass: &Self::Pass<'_>, span: usize
        ) -> Result<Vec<f32>>;
        fn end_pass(pass: Self::Pass<'_>) -> Result<()>;
        fn copy_rows(x: &Rows, rows: Range<usize>, out: &mut Rows, first: usize) -> Result<()>;
        fn row_norms(
            x: &Rows, rows: Range<usize>, out: &mut Rows, at: (usize, usize)
        ) -> Result<()>;
        fn row_dots(
            x: &Rows, rows: Range<usize>, y: (&Rows, usize), out: &mut Rows, at: (usize, usize)
        ) -> Result<()>;
        fn row_massive(
            x: &Rows, rows: Range<usize>, out: &mut Rows, at: (usize, usize)
        ) -> Result<()>;
        fn edit_rows(x: &mut Rows, edits: &[RowEdit<'_>]) -> Result<()>;
    }
}

/// Decodes until a failure, then drops the engine. Returns the message of the error or panic.
/// Panics if decoding and dropping take longer than 60 s.
fn failure(mode: Mode, target_passes: usize, draft_passes: usize, panics: bool) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let load = |passes| Transformer::load(&dir, Failing::after(passes, panics)).unwrap();
    let (target, draft) = (load(target_passes), load(draft_passes));
    let options = EngineOptions {
        mode: ModeChoice::Always(mode),
        gamma: Gamma::Fixed(3),
        batch_size: 4,
        kv_pages: 100,
        vocab: target.config().vocab,
        prefix_cache: true,
    };
    let (outbox, inbox) = channel();
    std::thread::spawn(move || {
        let mut engine = Engine::new(target, Some(draft), options).unwrap();
        for id in 0..3 {
            let params = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
            let eos = Arc::default();
            engine.submit(Request::new(id, vec![1, 2, 3], params, eos)).unwrap();
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
    for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
        for passes in [0, 1, 2, 30] {
            let error = failure(mode, usize::MAX, passes, true);
            assert_eq!(error, "the draft stopped: a simulated failure");
            let error = failure(mode, usize::MAX, passes, false);
            assert_eq!(error, "the device was lost: a simulated failure");
        }
    }
}

#[test]
fn a_target_that_fails_ends_the_run_while_the_draft_works() {
    for mode in Mode::ALL {
        for passes in [0, 1, 30] {
            let panic = failure(mode, passes, usize::MAX, true);
            assert_eq!(panic, "a simulated failure");
            let error = failure(mode, passes, usize::MAX, false);
            assert_eq!(error, "the device was lost: a simulated failure");
        }
    }
}

/// Like [`failure`], with an engine on its own thread: every open request gets the error once,
/// later requests are refused with the same message, and the threads end. Returns the message.
fn failure_behind_a_handle(
    mode: Mode,
    target_passes: usize,
    draft_passes: usize,
    panics: bool,
) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
    let load = |passes| Transformer::load(&dir, Failing::after(passes, panics)).unwrap();
    let (target, draft) = (load(target_passes), load(draft_passes));
    let options = EngineOptions {
        mode: ModeChoice::Always(mode),
        gamma: Gamma::Fixed(3),
        batch_size: 2, // others wait
        kv_pages: 100,
        vocab: target.config().vocab,
        prefix_cache: true,
    };
    let (outbox, inbox) = channel();
    std::thread::spawn(move || {
        let engine = Engine::new(target, Some(draft), options).unwrap().spawn().unwrap();
        let request = |id| {
            let params = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
            Request::new(id, vec![1, 2, 3], params, Arc::default())
        };
        // The engine may fail before the last request is submitted.
        let submitted: Vec<_> = (0..5).map(|id| engine.submit(request(id))).collect();
        let mut sentences = Vec::new();
        for submitted in submitted {
            match submitted {
                Ok(mut updates) => {
                    sentences.push(updates.find_map(|update| update.err()).unwrap());
                    assert!(updates.next().is_none(), "the error is returned once");
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
    inbox
        .recv_timeout(Duration::from_secs(60))
        .expect("the engine hangs, or an assertion above failed")
}

#[test]
fn all_open_requests_get_the_error_of_a_failed_model() {
    for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
        for passes in [0, 1, 30] {
            let draft = failure_behind_a_handle(mode, usize::MAX, passes, true);
            assert_eq!(draft, "the draft stopped: a simulated failure");
            let draft = failure_behind_a_handle(mode, usize::MAX, passes, false);
            assert_eq!(draft, "the device was lost: a simulated failure");
        }
    }
    for mode in Mode::ALL {
        for passes in [0, 1, 30] {
            let target = failure_behind_a_handle(mode, passes, usize::MAX, true);
            assert_eq!(target, "the engine stopped: a simulated failure");
            let target = failure_behind_a_handle(mode, passes, usize::MAX, false);
            assert_eq!(target, "the device was lost: a simulated failure");
        }
    }
}
