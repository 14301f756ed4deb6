//! Kernel workloads to measure. Weights and keys exceed the caches, as those of a whole model do.

use std::ops::Range;
use std::time::{Duration, Instant};

use fathom_backend::{Attention, Backend, DType, KvShape, Result, Rotary, Span, WeightView};
use fathom_kernels::{ColumnSums, Cpu, Kv, Linear, Operand, Pass, Rows};

use crate::limits::CurrentLimits;
use crate::machine::Machine;
use crate::median;

/// The work of one kernel call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Bytes read: weights, or keys and values.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
}

/// Measurements of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The work of one call.
    pub work: Work,
    /// Median time of a call in seconds.
    pub seconds: f64,
    /// Median fraction of the limit that was reached: the minimum time of a call, from the limits
    /// measured just before and after it, divided by the actual time.
    pub of_limit: f64,
}

/// Measures `run`, which does `work` per call: `repeats` times for at least 20 milliseconds each,
/// after one warm-up call.
///
/// # Errors
/// The errors of `run`.
pub fn measure(
    limits: &CurrentLimits<'_>,
    repeats: usize,
    work: Work,
    mut run: impl FnMut() -> Result<()>,
) -> Result<Measured> {
    const AT_LEAST: Duration = Duration::from_millis(20);
    run()?;
    let (mut seconds, mut of_limit) = (Vec::new(), Vec::new());
    let limit = || limits.seconds(work.bytes, work.flops);
    let mut before = limit();
    for _ in 0..repeats.max(1) {
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || start.elapsed() < AT_LEAST {
            let start = Instant::now();
            run()?;
            times.push(start.elapsed().as_secs_f64());
        }
        let time = median(times);
        let after = limit();
        seconds.push(time);
        of_limit.push((before + after) / 2.0 / time);
        before = after;
    }
    Ok(Measured { work, seconds: median(seconds), of_limit: median(of_limit) })
}

/// The number of copies of `bytes` that together exceed the caches, at most 4096.
fn copies(bytes: usize) -> usize {
    Machine::detect().beyond_caches().div_ceil(bytes.max(1)).clamp(1, 4096)
}

/// Matrix products `x[rows, k] · Wᵀ[k, n]` with bfloat16 weights.
pub struct ProductWorkload<'a> {
    cpu: &'a Cpu,
    k: usize,
    n: usize,
    weights: Vec<Linear>,
    next: usize,
    x: Rows,
    operand: Operand,
    out: Rows,
}

impl<'a> ProductWorkload<'a> {
    /// Packs enough copies of a matrix to exceed the caches.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(cpu: &'a Cpu, k: usize, n: usize) -> Result<ProductWorkload<'a>> {
        let bytes: Vec<u8> = (0..k * n).flat_map(|i| [(i % 251) as u8, 0x3c]).collect();
        let view = WeightView { bytes: &bytes, dtype: DType::Bf16, rows: n, columns: k };
        let copies = 0..copies(bytes.len());
        let weights = copies.map(|_| cpu.linear_from(view, None)).collect::<Result<_>>()?;
        let (x, operand, out) = (cpu.alloc(0, k)?, cpu.new_operand(), cpu.alloc(0, n)?);
        Ok(ProductWorkload { cpu, k, n, weights, next: 0, x, operand, out })
    }

    /// Sets the number of rows. Returns the work of one product.
    ///
    /// # Errors
    /// Out of memory.
    pub fn set_rows(&mut self, rows: usize) -> Result<Work> {
        self.x = filled(self.cpu, rows, self.k)?;
        self.out = self.cpu.alloc(rows, self.n)?;
        let bytes = self.weights[0].bytes() as f64;
        Ok(Work { bytes, flops: 2.0 * (rows * self.k * self.n) as f64 })
    }

    /// Runs one product, with the least recently used copy of the weights.
    ///
    /// # Errors
    /// As [`Backend::linears`].
    pub fn run(&mut self) -> Result<()> {
        self.cpu.operand(&self.x, &mut self.operand)?;
        let weights = &self.weights[self.next];
        self.next = (self.next + 1) % self.weights.len();
        self.cpu.linears(&[weights], &self.operand, &mut [&mut self.out])
    }
}

/// Attention of the last rows of one long sequence.
pub struct AttentionWorkload<'a> {
    cpu: &'a Cpu,
    attention: Attention,
    tokens: usize,
    layers: usize,
    /// Keys and values of all tokens; the last `rows` are appended but not yet committed.
    kv: Kv,
    rows: usize,
    q: Rows,
    out: Rows,
    lse: Rows,
    sums: ColumnSums,
}

impl<'a> AttentionWorkload<'a> {
    /// Fills a KV cache of `tokens` tokens with enough layers to exceed the CPU's caches.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        cpu: &'a Cpu,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        tokens: usize,
    ) -> Result<AttentionWorkload<'a>> {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = Attention { layer: 0, heads, kv_heads, head_dim, scale, window: None };
        let mut one = cpu.new_kv(KvShape { layers: 1, kv_heads, head_dim });
        let pass = append(cpu, &mut one, 0..1, kv_heads * head_dim, tokens)?;
        cpu.end_pass(pass)?;
        let layers = copies(cpu.kv_bytes(&one));
        let mut kv = cpu.new_kv(KvShape { layers, kv_heads, head_dim });
        let pass = append(cpu, &mut kv, 0..layers, kv_heads * head_dim, tokens)?;
        cpu.end_pass(pass)?;
        let sums = cpu.new_column_sums(layers, heads, false);
        let none = || cpu.alloc(0, 0);
        let (q, out, lse) = (none()?, none()?, none()?);
        Ok(AttentionWorkload { cpu, attention, tokens, layers, kv, rows: 0, q, out, lse, sums })
    }

    /// Sets the number of query rows, which are the last ones of the sequence, and returns the work
    /// of one call. One row is decoding, a few are verification, many are the last chunk of a
    /// prefill. Only visible keys count as work.
    ///
    /// # Errors
    /// Out of memory.
    pub fn set_rows(&mut self, rows: usize) -> Result<Work> {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        let before = self.tokens - rows;
        let appended = pass_over(self.cpu, self.rows, &mut self.kv, None)?;
        self.cpu.end_pass(appended)?;
        self.cpu.truncate_kv(&mut self.kv, before);
        append(self.cpu, &mut self.kv, 0..self.layers, kv_heads * head_dim, rows)?;
        self.rows = rows;
        self.q = filled(self.cpu, rows, heads * head_dim)?;
        self.out = self.cpu.alloc(rows, heads * head_dim)?;
        self.lse = self.cpu.alloc(rows, heads)?;
        self.sums = self.cpu.new_column_sums(self.layers, heads, false);
        let seen = rows * before + rows * (rows + 1) / 2;
        Ok(Work {
            bytes: self.cpu.kv_bytes(&self.kv) as f64 / self.layers as f64,
            flops: 4.0 * (heads * head_dim * seen) as f64,
        })
    }

    /// Runs attention of the least recently used layer.
    ///
    /// # Errors
    /// As [`Backend::attend`].
    pub fn run(&mut self) -> Result<()> {
        self.attention.layer = (self.attention.layer + 1) % self.layers;
        let pass = pass_over(self.cpu, self.rows, &mut self.kv, None)?;
        self.cpu.attend(&self.attention, &self.q, &pass, &mut self.out, Some(&mut self.lse))
    }

    /// Accumulates the column sums of the sink scores for the layer of the last
    /// [`AttentionWorkload::run`], with half of its operations.
    ///
    /// # Errors
    /// As [`Backend::add_column_sums`].
    pub fn add_column_sums(&mut self) -> Result<()> {
        let mut pass = pass_over(self.cpu, self.rows, &mut self.kv, Some(&mut self.sums))?;
        self.cpu.add_column_sums(&self.attention, &self.q, &self.lse, &mut pass)
    }
}

/// Appends the same `tokens` keys and values to every layer of `layers`. Returns the pass, which
/// has not ended.
fn append<'a>(
    cpu: &Cpu,
    kv: &'a mut Kv,
    layers: Range<usize>,
    width: usize,
    tokens: usize,
) -> Result<Pass<'a>> {
    let values = filled(cpu, tokens, width)?;
    let mut pass = pass_over(cpu, tokens, kv, None)?;
    for layer in layers {
        cpu.append_kv(layer, &values, &values, &mut pass)?;
    }
    Ok(pass)
}

/// A pass of one sequence: `rows` tokens after those in its cache.
fn pass_over<'a>(
    cpu: &Cpu,
    rows: usize,
    kv: &'a mut Kv,
    column_sums: Option<&'a mut ColumnSums>,
) -> Result<Pass<'a>> {
    let first_position = cpu.kv_len(kv);
    cpu.begin_pass(
        vec![Span { rows: 0..rows, first_position, kv, column_sums, mask: None }],
        Rotary::NONE,
    )
}

/// A matrix of varied numbers with the magnitude of activations.
fn filled(cpu: &Cpu, rows: usize, columns: usize) -> Result<Rows> {
    let value = |i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0;
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    let mut x = cpu.alloc(rows, columns)?;
    cpu.write_rows(&mut x, 0, &values)?;
    Ok(x)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use fathom_kernels::CpuOptions;

    use super::*;

    #[test]
    fn products_and_attention_report_their_work() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut products = ProductWorkload::new(&cpu, 64, 4096).unwrap();
        let work = products.set_rows(3).unwrap();
        products.run().unwrap();
        assert_eq!(work, Work { bytes: 2.0 * 64.0 * 4096.0, flops: 2.0 * 3.0 * 64.0 * 4096.0 });

        let mut attending = AttentionWorkload::new(&cpu, (4, 2, 64), 256).unwrap();
        for (rows, seen) in [(1, 256), (16, 16 * 240 + 136), (256, 256 * 257 / 2)] {
            let work = attending.set_rows(rows).unwrap();
            attending.run().unwrap();
            attending.add_column_sums().unwrap();
            // Two matrices of f32 `[256 tokens, 2 heads · 64]`.
            assert_eq!(work.bytes, 2.0 * 256.0 * 128.0 * 4.0);
            assert_eq!(work.flops, 4.0 * 4.0 * 64.0 * f64::from(seen));
        }
    }
}
