//! Kernels at work as in a model, for measuring: at real shapes, and with weights and keys that no
//! cache holds, as those of a whole model are not when their turn comes.

use std::ops::Range;
use std::time::{Duration, Instant};

use fathom_backend::{Attention, Backend, DType, KvShape, Result, Rotary, Span, WeightView};
use fathom_kernels::{ColumnSums, Cpu, Kv, Linear, Operand, Pass, Rows};

use crate::limits::Reading;
use crate::machine::Machine;
use crate::median;

/// What a run of a kernel has to read and to compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Bytes of weights, or of keys and values.
    pub bytes: f64,
    /// Multiplications and additions.
    pub flops: f64,
}

/// What came of measuring a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// What a run takes.
    pub work: Work,
    /// Seconds of a run; the median.
    pub seconds: f64,
    /// The fraction reached of the machine's limit just before and after, bandwidth or the matrix
    /// rate, whichever takes longer; the median.
    pub of_limit: f64,
}

/// Measures `run`, which takes `work`, `repeats` times as often as twenty milliseconds allow, after
/// one to warm up.
///
/// # Errors
/// What `run` fails with.
pub fn measure(
    limits: &Reading<'_>,
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

/// Copies of `bytes` so that all of them exceed the caches; a few thousand at most.
fn copies(bytes: usize) -> usize {
    Machine::detect().beyond_caches().div_ceil(bytes.max(1)).clamp(1, 4096)
}

/// Matrix products `x[rows, k] · Wᵀ[k, n]` with bfloat16 weights.
pub struct Products<'a> {
    cpu: &'a Cpu,
    k: usize,
    n: usize,
    weights: Vec<Linear>,
    next: usize,
    x: Rows,
    operand: Operand,
    out: Rows,
}

impl<'a> Products<'a> {
    /// Packs as many copies of a matrix as it takes.
    ///
    /// # Errors
    /// No room for them.
    pub fn new(cpu: &'a Cpu, k: usize, n: usize) -> Result<Products<'a>> {
        let bytes: Vec<u8> = (0..k * n).flat_map(|i| [(i % 251) as u8, 0x3c]).collect();
        let view = WeightView { bytes: &bytes, dtype: DType::Bf16, rows: n, columns: k };
        let copies = 0..copies(bytes.len());
        let weights = copies.map(|_| cpu.linear_from(view, None)).collect::<Result<_>>()?;
        let (x, operand, out) = (cpu.alloc(0, k)?, cpu.new_operand(), cpu.alloc(0, n)?);
        Ok(Products { cpu, k, n, weights, next: 0, x, operand, out })
    }

    /// The rows of the products from here on, and what one of them takes.
    ///
    /// # Errors
    /// No room for them.
    pub fn set_rows(&mut self, rows: usize) -> Result<Work> {
        self.x = filled(self.cpu, rows, self.k)?;
        self.out = self.cpu.alloc(rows, self.n)?;
        let bytes = self.weights[0].bytes() as f64;
        Ok(Work { bytes, flops: 2.0 * (rows * self.k * self.n) as f64 })
    }

    /// One product, with the copy of the weights that was used longest ago.
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
pub struct Attending<'a> {
    cpu: &'a Cpu,
    attention: Attention,
    tokens: usize,
    layers: usize,
    /// Keys and values of all tokens but the last `rows`, those appended but not yet counted.
    kv: Kv,
    rows: usize,
    q: Rows,
    out: Rows,
    lse: Rows,
    sums: ColumnSums,
}

impl<'a> Attending<'a> {
    /// Fills a cache of `tokens` tokens, with as many layers as it takes.
    ///
    /// # Errors
    /// No room for it.
    pub fn new(
        cpu: &'a Cpu,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        tokens: usize,
    ) -> Result<Attending<'a>> {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = Attention { layer: 0, heads, kv_heads, head_dim, scale, window: None };
        let mut one = cpu.new_kv(KvShape { layers: 1, kv_heads, head_dim });
        let pass = append(cpu, &mut one, 0..1, kv_heads * head_dim, tokens)?;
        cpu.end_pass(pass)?;
        let layers = copies(cpu.kv_bytes(&one));
        let mut kv = cpu.new_kv(KvShape { layers, kv_heads, head_dim });
        let pass = append(cpu, &mut kv, 0..layers, kv_heads * head_dim, tokens)?;
        cpu.end_pass(pass)?;
        let sums = cpu.new_column_sums(layers, heads);
        let none = || cpu.alloc(0, 0);
        let (q, out, lse) = (none()?, none()?, none()?);
        Ok(Attending { cpu, attention, tokens, layers, kv, rows: 0, q, out, lse, sums })
    }

    /// The rows that attend from here on, the last ones of the sequence, and what it takes: one row
    /// is decoding, a few are verification, many are the last chunk of a prefill. Only what a row
    /// sees counts.
    ///
    /// # Errors
    /// No room for them.
    pub fn set_rows(&mut self, rows: usize) -> Result<Work> {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        let before = self.tokens - rows;
        let appended = all_of(self.cpu, self.rows, &mut self.kv, None)?;
        self.cpu.end_pass(appended)?;
        self.cpu.truncate_kv(&mut self.kv, before);
        append(self.cpu, &mut self.kv, 0..self.layers, kv_heads * head_dim, rows)?;
        self.rows = rows;
        self.q = filled(self.cpu, rows, heads * head_dim)?;
        self.out = self.cpu.alloc(rows, heads * head_dim)?;
        self.lse = self.cpu.alloc(rows, heads)?;
        self.sums = self.cpu.new_column_sums(self.layers, heads);
        let seen = rows * before + rows * (rows + 1) / 2;
        Ok(Work {
            bytes: self.cpu.kv_bytes(&self.kv) as f64 / self.layers as f64,
            flops: 4.0 * (heads * head_dim * seen) as f64,
        })
    }

    /// Attention of the layer that was used longest ago.
    ///
    /// # Errors
    /// As [`Backend::attend`].
    pub fn run(&mut self) -> Result<()> {
        self.attention.layer = (self.attention.layer + 1) % self.layers;
        let pass = all_of(self.cpu, self.rows, &mut self.kv, None)?;
        self.cpu.attend(&self.attention, &self.q, &pass, &mut self.out, Some(&mut self.lse))
    }

    /// The second pass of the sink scores over what [`Attending::run`] just saw: half its
    /// operations.
    ///
    /// # Errors
    /// As [`Backend::add_column_sums`].
    pub fn add_column_sums(&mut self) -> Result<()> {
        let mut pass = all_of(self.cpu, self.rows, &mut self.kv, Some(&mut self.sums))?;
        self.cpu.add_column_sums(&self.attention, &self.q, &self.lse, &mut pass)
    }
}

/// Appends the same `tokens` keys and values to every layer of `layers`, in a pass that has not
/// ended.
fn append<'a>(
    cpu: &Cpu,
    kv: &'a mut Kv,
    layers: Range<usize>,
    width: usize,
    tokens: usize,
) -> Result<Pass<'a>> {
    let values = filled(cpu, tokens, width)?;
    let mut pass = all_of(cpu, tokens, kv, None)?;
    for layer in layers {
        cpu.append_kv(layer, &values, &values, &mut pass)?;
    }
    Ok(pass)
}

/// A pass of one sequence: `rows` tokens behind what is in its cache.
fn all_of<'a>(
    cpu: &Cpu,
    rows: usize,
    kv: &'a mut Kv,
    column_sums: Option<&'a mut ColumnSums>,
) -> Result<Pass<'a>> {
    let first_position = cpu.kv_len(kv);
    cpu.begin_pass(vec![Span { rows: 0..rows, first_position, kv, column_sums }], Rotary::NONE)
}

/// Varied numbers of the size activations have.
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
    fn a_product_and_attention_say_what_they_take() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut products = Products::new(&cpu, 64, 4096).unwrap();
        let work = products.set_rows(3).unwrap();
        products.run().unwrap();
        assert_eq!(work, Work { bytes: 2.0 * 64.0 * 4096.0, flops: 2.0 * 3.0 * 64.0 * 4096.0 });

        let mut attending = Attending::new(&cpu, (4, 2, 64), 256).unwrap();
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
