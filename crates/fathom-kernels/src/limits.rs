//! What this machine can do at most: the numbers kernels are measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::isa::Tiles;
use crate::machine::Machine;
use crate::microkernel::PANEL;
use crate::simd::{Kernel, Simd};
use crate::{Cpu, Precision};

/// Rates over all threads of a [`Cpu`], with its instruction set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The threads that together reach these rates.
    pub threads: usize,
    /// Bytes per second read from memory.
    pub read_bytes: f64,
    /// Floating-point operations per second of f32 multiply-add (two each).
    pub f32_flops: f64,
    /// The same of bfloat16 products in tile registers, or of its dot product, where there is one.
    pub bf16_flops: Option<f64>,
    /// From handing every thread an empty task to the last one's return; the median.
    pub hand_off: Duration,
}

impl Limits {
    /// The matrix rate of `precision`: f32's, where bfloat16 has no instruction of its own.
    pub fn flops(&self, precision: Precision) -> f64 {
        match (precision, self.bf16_flops) {
            (Precision::Bf16, Some(flops)) => flops,
            _ => self.f32_flops,
        }
    }

    /// The better of two measurements, rate by rate: what the machine could do at its best meanwhile.
    pub fn or_better(self, other: Limits) -> Limits {
        Limits {
            threads: self.threads,
            read_bytes: self.read_bytes.max(other.read_bytes),
            f32_flops: self.f32_flops.max(other.f32_flops),
            bf16_flops: self
                .bf16_flops
                .zip(other.bf16_flops)
                .map(|(one, another)| one.max(another)),
            hand_off: self.hand_off.min(other.hand_off),
        }
    }
}

/// Measures for about a second: the best of several attempts, for other programs only slow it down.
pub fn measure(cpu: &Cpu) -> Limits {
    Limits {
        threads: cpu.threads(),
        read_bytes: read_bytes(cpu),
        f32_flops: f32_flops(cpu, 5),
        bf16_flops: bf16_flops(cpu, 5),
        hand_off: hand_off(cpu),
    }
}

fn f32_flops(cpu: &Cpu, attempts: usize) -> f64 {
    best_rate(attempts, || flops::<false>(cpu))
}

fn bf16_flops(cpu: &Cpu, attempts: usize) -> Option<f64> {
    match cpu.isa.tiles() {
        #[cfg(target_arch = "x86_64")]
        Some(Tiles::Amx) => Some(best_rate(attempts, || tile_flops(cpu))),
        _ => cpu.isa.run(HasBf16Dot).then(|| best_rate(attempts, || flops::<true>(cpu))),
    }
}

fn read_bytes(cpu: &Cpu) -> f64 {
    let memory = Reading::new(cpu);
    (0..16).map(|_| memory.bytes_per_s()).fold(0.0, f64::max)
}

/// What the machine can do at the moment, whenever asked: on one shared with others that changes from second
/// to second, most of all how fast memory that no cache holds is read.
pub struct Reading<'a> {
    cpu: &'a Cpu,
    data: Aligned<f32>,
}

impl<'a> Reading<'a> {
    /// Takes that memory: 256 MiB or more, so that reading it takes some milliseconds.
    pub fn new(cpu: &'a Cpu) -> Reading<'a> {
        let bytes = Machine::detect().beyond_caches().max(256 << 20);
        Reading { cpu, data: Aligned::filled(bytes / size_of::<f32>() / STEP * STEP, 1.0) }
    }

    /// Reads all of it once, with all threads.
    pub fn bytes_per_s(&self) -> f64 {
        let data = &self.data;
        best_rate(1, || {
            self.cpu.split(data.len() / STEP, |steps| {
                black_box(self.cpu.isa.run(Read(&data[steps.start * STEP..steps.end * STEP])));
            });
            size_of_val(&**data) as f64
        })
    }

    /// The least time in which `bytes` can be read and `flops` computed at the moment.
    pub fn seconds(&self, bytes: f64, flops: f64) -> f64 {
        let bf16 = match self.cpu.precision {
            Precision::Bf16 => bf16_flops(self.cpu, 1),
            Precision::F32 => None,
        };
        let rate = bf16.unwrap_or_else(|| f32_flops(self.cpu, 1));
        overlapping(bytes / self.bytes_per_s(), flops / rate)
    }
}

/// Seconds of reading and of computing that overlap perfectly.
fn overlapping(reading: f64, computing: f64) -> f64 {
    reading.max(computing)
}

fn hand_off(cpu: &Cpu) -> Duration {
    let mut times: Vec<Duration> = (0..2001)
        .map(|_| {
            let start = Instant::now();
            cpu.split(cpu.threads(), |part| {
                black_box(part);
            });
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
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

#[cfg(target_arch = "x86_64")]
fn tile_flops(cpu: &Cpu) -> f64 {
    const STEPS: usize = 1 << 17;
    cpu.split(cpu.threads(), |_| amx::products(STEPS));
    (cpu.threads() * STEPS) as f64 * amx::PRODUCTS_FLOPS
}

fn flops<const BF16: bool>(cpu: &Cpu) -> f64 {
    const STEPS: usize = 1 << 20;
    cpu.split(cpu.threads(), |_| {
        black_box(cpu.isa.run(MultiplyAdds::<BF16> { steps: STEPS }));
    });
    let (lanes, chains) = cpu.isa.run(InFlight);
    let per_lane = if BF16 { 4 } else { 2 };
    (cpu.threads() * STEPS * chains * lanes * per_lane) as f64
}

/// Independent multiply-adds in flight, where there are 32 registers of 512 bits, and elsewhere: more than
/// latency times units (six cycles times two for `vdpbf16ps`), fewer than registers.
const CHAINS_OF_512: usize = 16;
const CHAINS: usize = 12;

struct MultiplyAdds<const BF16: bool> {
    steps: usize,
}

impl<const BF16: bool> MultiplyAdds<BF16> {
    #[inline(always)]
    fn chains<S: Simd, const CHAINS: usize>(self, s: S) -> f32 {
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

impl<const BF16: bool> Kernel for MultiplyAdds<BF16> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        if S::LANES == 16 {
            self.chains::<S, CHAINS_OF_512>(s)
        } else {
            self.chains::<S, CHAINS>(s)
        }
    }
}

/// Lanes of a vector and multiply-adds in flight.
struct InFlight;

impl Kernel for InFlight {
    type Output = (usize, usize);
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        (S::LANES, if S::LANES == 16 { CHAINS_OF_512 } else { CHAINS })
    }
}

/// Elements that [`Read`] sums at a time: four vectors of the widest kind.
const STEP: usize = 2 * PANEL;

/// Sums a slice of whole steps, prefetching as the kernels do.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const AHEAD: usize = 512; // elements: 2 KiB
        const CACHE_LINE: usize = 16;
        let mut sums = [s.splat(0.0); 4];
        for step in self.0.chunks_exact(STEP) {
            for line in (0..STEP).step_by(CACHE_LINE) {
                s.prefetch(step.as_ptr().cast::<u32>().wrapping_add(AHEAD + line));
            }
            for vectors in step.chunks_exact(4 * S::LANES) {
                for (sum, vector) in sums.iter_mut().zip(vectors.chunks_exact(S::LANES)) {
                    *sum = s.add(*sum, s.load_some(vector));
                }
            }
        }
        sums.into_iter().fold(0.0, |sum, part| sum + s.sum(part))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_time_is_that_of_the_slower_of_reading_and_computing() {
        let limits = Limits {
            threads: 1,
            read_bytes: 10.0,
            f32_flops: 100.0,
            bf16_flops: Some(400.0),
            hand_off: Duration::ZERO,
        };
        let seconds = |limits: Limits, precision, bytes: f64, flops: f64| {
            overlapping(bytes / limits.read_bytes, flops / limits.flops(precision))
        };
        assert_eq!(seconds(limits, Precision::F32, 20.0, 100.0), 2.0);
        assert_eq!(seconds(limits, Precision::F32, 20.0, 400.0), 4.0);
        assert_eq!(seconds(limits, Precision::Bf16, 0.0, 400.0), 1.0);
        let without = Limits { bf16_flops: None, ..limits };
        assert_eq!(seconds(without, Precision::Bf16, 0.0, 400.0), 4.0);
    }
}
