//! What this machine can do at most: the numbers kernels are measured against.

use std::hint::black_box;
use std::time::Instant;

use crate::Cpu;
use crate::aligned::Aligned;
use crate::microkernel::PANEL;
use crate::simd::{Kernel, Simd};

/// Rates over all threads of a [`Cpu`], with its instruction set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes per second read from memory.
    pub read_bytes: f64,
    /// Floating-point operations per second of f32 multiply-add (two each).
    pub f32_flops: f64,
    /// The same of the bfloat16 dot product (four each per lane), where there is one.
    pub bf16_flops: Option<f64>,
}

/// Measures for about a second: the best of several attempts, for other programs only slow it down.
pub fn measure(cpu: &Cpu) -> Limits {
    const BYTES: usize = 512 << 20;
    let data = Aligned::<f32>::filled(BYTES / size_of::<f32>(), 1.0);
    let read = || {
        cpu.split(data.len() / PANEL, |panels| {
            let part = &data[panels.start * PANEL..panels.end * PANEL];
            black_box(cpu.isa.run(Read(part)));
        });
        BYTES as f64
    };
    let read_bytes = best_rate(8, read);
    drop(data);

    let f32_flops = best_rate(5, || flops::<false>(cpu));
    let bf16_flops = cpu.isa.run(HasBf16Dot).then(|| best_rate(5, || flops::<true>(cpu)));
    Limits { read_bytes, f32_flops, bf16_flops }
}

/// The most `work` done per second, of `attempts`.
fn best_rate(attempts: usize, work: impl Fn() -> f64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        let done = work();
        done / start.elapsed().as_secs_f64()
    };
    (0..attempts).map(rate).fold(0.0, f64::max)
}

fn flops<const BF16: bool>(cpu: &Cpu) -> f64 {
    const STEPS: usize = 1 << 20;
    cpu.split(cpu.threads(), |_| {
        black_box(cpu.isa.run(Chains::<BF16> { steps: STEPS }));
    });
    let lanes = cpu.isa.run(Lanes);
    let per_lane = if BF16 { 4 } else { 2 };
    (cpu.threads() * STEPS * CHAINS * lanes * per_lane) as f64
}

/// Independent multiply-adds in flight: more than latency times units, fewer than registers.
const CHAINS: usize = 12;

struct Chains<const BF16: bool> {
    steps: usize,
}

impl<const BF16: bool> Kernel for Chains<BF16> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut chains = [s.splat(0.0); CHAINS];
        let (x, y) = (s.splat(black_box(1.0)), s.splat(black_box(0.5)));
        let pair = s.splat_pair(black_box(0x3f80_3f80));
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = if BF16 { s.dot_bf16(pair, pair, *chain) } else { s.fma(x, y, *chain) };
            }
        }
        chains.into_iter().fold(0.0, |sum, chain| sum + s.sum(chain))
    }
}

/// Sums a slice of whole panels, four vectors at a time.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 2];
        for step in self.0.chunks_exact(2 * S::LANES) {
            let (a, b) = step.split_at(S::LANES);
            sums = [s.add(sums[0], s.load_some(a)), s.add(sums[1], s.load_some(b))];
        }
        s.sum(s.add(sums[0], sums[1]))
    }
}

struct Lanes;

impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

struct HasBf16Dot;

impl Kernel for HasBf16Dot {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        S::BF16_DOT
    }
}
