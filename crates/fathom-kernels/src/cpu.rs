//! The [`Backend`] of the machine this runs on.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::aligned::Aligned;
use crate::attention::{self, AttentionScratch};
use crate::column_sums::{self, ColumnSums};
use crate::isa::Supported;
use crate::kv::Kv;
use crate::linear::{self, Linear};
use crate::pool::{Pool, lock};
use crate::rows::{Rows, Vector};
use crate::{Attention, Backend, Isa, KvShape, Precision, Span, WeightView};
use crate::{activation, norm, rope};

/// How to make a [`Cpu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the calling one included; `None`: one per core.
    pub threads: Option<usize>,
    /// Operand precision.
    pub precision: Precision,
    /// Instruction set; `None`: the best this machine has.
    pub isa: Option<Isa>,
}

impl Default for CpuOptions {
    /// f32, all cores, the best instruction set.
    fn default() -> Self {
        CpuOptions { threads: None, precision: Precision::F32, isa: None }
    }
}

/// Why a [`Cpu`] could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The instruction set was asked for by name and is not there.
    #[error("this CPU does not have {isa}: it lacks {missing}")]
    UnsupportedIsa {
        /// What was asked for.
        isa: Isa,
        /// The features it needs and the CPU lacks.
        missing: String,
    },
    /// Zero threads were asked for.
    #[error("0 threads cannot compute anything: expected 1 or more")]
    NoThreads,
    /// The operating system refused a thread.
    #[error("cannot start a worker thread: {0}")]
    Spawn(#[from] std::io::Error),
}

/// The forward pass on this machine's CPU.
///
/// Owns its threads. Calls from several threads at once take turns.
pub struct Cpu {
    pub(crate) precision: Precision,
    pub(crate) isa: Supported,
    pool: Pool,
    /// Works instead of `pool` while another model is at work too.
    beside: Option<Pool>,
    is_beside: AtomicBool,
    scratch: Vec<Mutex<AttentionScratch>>,
    /// Activations packed for the product under way.
    pub(crate) packed: Mutex<Aligned<u32>>,
}

/// Elements touched, or multiplications, below which waking a second thread takes longer than the work.
pub(crate) const WORTH_A_HAND_OFF: usize = 1 << 16;

impl Cpu {
    /// Starts the threads.
    pub fn new(options: CpuOptions) -> Result<Cpu, CpuError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let isa = Supported::new(isa)
            .ok_or_else(|| CpuError::UnsupportedIsa { isa, missing: missing_features(isa) })?;
        let threads = match options.threads {
            Some(0) => return Err(CpuError::NoThreads),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Cpu {
            precision: options.precision,
            isa,
            pool: Pool::new(threads)?,
            beside: None,
            is_beside: AtomicBool::new(false),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            packed: Mutex::default(),
        })
    }

    /// Keeps to `threads` threads while another model works at the same time; see [`Backend::set_beside`].
    ///
    /// # Errors
    /// No threads, or more than the operating system allows.
    pub fn with_threads_beside(mut self, threads: usize) -> Result<Cpu, CpuError> {
        if threads == 0 {
            return Err(CpuError::NoThreads);
        }
        self.scratch.resize_with(self.scratch.len().max(threads), Mutex::default);
        self.beside = Some(Pool::new(threads)?);
        Ok(self)
    }

    /// The threads that work now.
    fn pool(&self) -> &Pool {
        match &self.beside {
            Some(beside) if self.is_beside.load(Ordering::Relaxed) => beside,
            _ => &self.pool,
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Threads in use, the calling one included.
    pub fn threads(&self) -> usize {
        self.pool().threads()
    }

    /// Runs `part` on ranges that together are `0..n`, one for each thread.
    pub(crate) fn split(&self, n: usize, part: impl Fn(Range<usize>) + Sync) {
        let pool = self.pool();
        let parts = pool.threads().min(n);
        pool.run(parts, &|_, i| part(n * i / parts..n * (i + 1) / parts));
    }

    /// Cuts `0..rows` among threads, unless the `work` in all (elements touched) is not worth a hand-off.
    pub(crate) fn split_rows(&self, rows: usize, work: usize, part: impl Fn(Range<usize>) + Sync) {
        if work < WORTH_A_HAND_OFF { part(0..rows) } else { self.split(rows, part) }
    }

    /// Runs `run(thread, task)` once for every task, on whichever thread is free; on the calling thread
    /// alone if the `work` in all (multiplications) is not worth a hand-off.
    pub(crate) fn tasks(&self, tasks: usize, work: usize, run: impl Fn(usize, usize) + Sync) {
        if work < WORTH_A_HAND_OFF {
            (0..tasks).for_each(|task| run(0, task));
        } else {
            self.pool().run(tasks, &run);
        }
    }

    /// [`Cpu::tasks`] with each thread's scratch memory: `run(task, scratch)`.
    pub(crate) fn tasks_with_scratch(
        &self,
        tasks: usize,
        work: usize,
        run: impl Fn(usize, &mut AttentionScratch) + Sync,
    ) {
        self.tasks(tasks, work, |thread, task| run(task, &mut lock(&self.scratch[thread])));
    }
}

fn missing_features(isa: Isa) -> String {
    let missing: Vec<_> = isa.features().iter().filter(|f| !f.present).map(|f| f.name).collect();
    missing.join(", ")
}

impl Backend for Cpu {
    type Rows = Rows;
    type Linear = Linear;
    type Vector = Vector;
    type Rope = rope::Table;
    type Kv = Kv;
    type ColumnSums = ColumnSums;

    fn precision(&self) -> Precision {
        self.precision
    }

    fn set_beside(&self, beside: bool) {
        self.is_beside.store(beside, Ordering::Relaxed);
    }

    fn alloc(&self, rows: usize, columns: usize) -> Rows {
        Rows::zeroed(rows, columns)
    }

    fn resize(&self, x: &mut Rows, rows: usize, columns: usize) {
        x.resize(rows, columns);
    }

    fn shape(&self, x: &Rows) -> (usize, usize) {
        (x.rows(), x.columns())
    }

    fn host_rows<'a>(
        &self,
        x: &'a Rows,
        rows: Range<usize>,
        _scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        x.slice(rows)
    }

    fn write_rows(&self, x: &mut Rows, first: usize, values: &[f32]) {
        let start = first * x.columns();
        x.as_mut_slice()[start..start + values.len()].copy_from_slice(values);
    }

    fn linear_from(&self, weight: WeightView<'_>, bias: Option<&[f32]>) -> Linear {
        linear::pack(self, &weight, bias)
    }

    fn vector_from(&self, values: &[f32]) -> Vector {
        Vector::from(values)
    }

    fn rope_from(&self, cos: &[f32], sin: &[f32], half: usize) -> rope::Table {
        rope::Table::new(cos, sin, half)
    }

    fn embed(&self, table: &Linear, ids: &[u32], out: &mut Rows) {
        linear::embed(self, table, ids, out);
    }

    fn rms_norm(&self, x: &Rows, weight: &Vector, eps: f32, out: &mut Rows) {
        norm::rms_norm(self, x, weight, eps, out);
    }

    fn head_norm(&self, x: &mut Rows, weight: &Vector, eps: f32) {
        norm::head_norm(self, x, weight, eps);
    }

    fn linear(&self, w: &Linear, x: &Rows, out: &mut Rows) {
        linear::linear(self, w, x, out);
    }

    fn rope(&self, x: &mut Rows, table: &rope::Table, head_dim: usize) {
        rope::rotate(self, x, table, head_dim);
    }

    fn silu(&self, x: &Rows, out: &mut Rows) {
        activation::silu(self, x, out);
    }

    fn mul(&self, x: &Rows, y: &Rows, out: &mut Rows) {
        activation::mul(self, x, y, out);
    }

    fn silu_mul(&self, gate: &Rows, up: &Rows, out: &mut Rows) {
        activation::silu_mul(self, gate, up, out);
    }

    fn add_assign(&self, x: &mut Rows, y: &Rows) {
        activation::add_assign(self, x, y);
    }

    fn gather(&self, x: &Rows, rows: &[usize], out: &mut Rows) {
        out.resize(rows.len(), x.columns());
        for (out, &row) in out.iter_rows_mut().zip(rows) {
            out.copy_from_slice(x.row(row));
        }
    }

    fn argmax(&self, x: &Rows, limit: usize) -> Vec<u32> {
        activation::argmax(self, x, limit)
    }

    fn new_kv(&self, shape: KvShape) -> Kv {
        Kv::new(shape, self.precision)
    }

    fn kv_len(&self, kv: &Kv) -> usize {
        kv.len()
    }

    fn kv_bytes(&self, kv: &Kv) -> usize {
        kv.bytes()
    }

    fn truncate_kv(&self, kv: &mut Kv, len: usize) {
        kv.truncate(len);
    }

    fn append_kv(&self, layer: usize, k: &Rows, v: &Rows, spans: &mut [Span<'_, Kv>]) {
        for span in spans {
            span.kv.append(layer, k.slice(span.rows.clone()), v.slice(span.rows.clone()));
        }
    }

    fn advance_kv(&self, kv: &mut Kv, tokens: usize) {
        kv.advance(tokens);
    }

    fn attend(
        &self,
        attention: &Attention,
        q: &Rows,
        spans: &[Span<'_, Kv>],
        out: &mut Rows,
        lse: Option<&mut Rows>,
    ) {
        attention::attend(self, attention, q, spans, out, lse);
    }

    fn new_column_sums(&self, layers: usize, heads: usize) -> ColumnSums {
        ColumnSums::new(layers, heads)
    }

    fn add_column_sums(
        &self,
        attention: &Attention,
        q: &Rows,
        lse: &Rows,
        span: &Span<'_, Kv>,
        sums: &mut ColumnSums,
    ) {
        column_sums::add(self, attention, q, lse, span, sums);
    }

    fn column_sums(&self, sums: &ColumnSums, layer: usize, tokens: usize) -> Vec<f64> {
        sums.of_layer(layer, tokens)
    }

    fn attention_weights(
        &self,
        attention: &Attention,
        q: &Rows,
        lse: &Rows,
        span: &Span<'_, Kv>,
    ) -> Vec<f32> {
        attention::weights(self, attention, q, lse, span)
    }
}
