//! Loops that reach the CPU's peak rates, to measure its limits. Each does one thing as fast as the
//! instruction set in use allows, on all threads of a [`Cpu`].
//!
//! Each function returns the amount of work it did. The caller measures the time.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::cpu::Tiles;
use crate::gemm::PANEL;
use crate::memory::Aligned;
use crate::simd::{Kernel, Simd};

/// Performs f32 multiply-adds in registers for a few milliseconds. Returns the number of
/// floating-point operations, two per multiply-add.
pub fn f32_multiply_adds(cpu: &Cpu) -> f64 {
    multiply_adds::<false>(cpu)
}

/// Whether bfloat16 products have their own instruction, in vector or tile registers.
pub fn has_bf16_products(cpu: &Cpu) -> bool {
    has_tiles(cpu) || cpu.isa.run(HasBf16Dot)
}

/// Multiplies pairs of bfloat16 and accumulates in f32, in registers, for a few milliseconds: in
/// tile registers, by the vectors' dot product, or by f32 multiply-adds if there is neither.
/// Returns the number of floating-point operations, two per product.
pub fn bf16_products(cpu: &Cpu) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if has_tiles(cpu) {
        const STEPS: usize = 1 << 17;
        cpu.split(cpu.threads(), |_| amx::peak_products(STEPS));
        return (cpu.threads() * STEPS) as f64 * amx::PEAK_PRODUCTS_FLOPS;
    }
    multiply_adds::<true>(cpu)
}

/// Gives every thread an empty task and waits for all of them.
pub fn hand_off(cpu: &Cpu) {
    cpu.split(cpu.threads(), |part| {
        black_box(part);
    });
}

/// Memory for measuring read bandwidth, allocated like weights: cache-line-aligned, in huge pages
/// where available.
pub struct Memory(Aligned<f32>);

impl Memory {
    /// Allocates at most `bytes` of memory and writes to all of it.
    pub fn new(bytes: usize) -> Memory {
        Memory(Aligned::filled(bytes / size_of::<f32>() / STEP * STEP, 1.0))
    }

    /// Reads all of it once, divided among the threads. Returns the number of bytes read.
    pub fn read(&self, cpu: &Cpu) -> f64 {
        let data = &self.0;
        cpu.split(data.len() / STEP, |steps| {
            black_box(cpu.isa.run(Read(&data[steps.start * STEP..steps.end * STEP])));
        });
        size_of_val(&**data) as f64
    }
}

/// Whether products run in the CPU's own tile registers. The software model has no meaningful peak.
fn has_tiles(cpu: &Cpu) -> bool {
    #[cfg(target_arch = "x86_64")]
    return cpu.isa.tiles() == Some(Tiles::Amx);
    #[cfg(not(target_arch = "x86_64"))]
    return {
        let _ = cpu;
        false
    };
}

fn multiply_adds<const BF16: bool>(cpu: &Cpu) -> f64 {
    const STEPS: usize = 1 << 20;
    cpu.split(cpu.threads(), |_| {
        black_box(cpu.isa.run(MultiplyAdds::<BF16> { steps: STEPS }));
    });
    let (lanes, accumulators) = cpu.isa.run(Accumulators);
    let per_lane = if BF16 { 4 } else { 2 };
    (cpu.threads() * STEPS * accumulators * lanes * per_lane) as f64
}

/// Number of independent accumulators with 32 registers of 512 bits: more than latency times number
/// of units (six cycles times two for `vdpbf16ps`), fewer than registers.
const ACCUMULATORS_512: usize = 16;
/// The same with 16 registers.
const ACCUMULATORS: usize = 12;

struct MultiplyAdds<const BF16: bool> {
    steps: usize,
}

impl<const BF16: bool> MultiplyAdds<BF16> {
    #[inline(always)]
    fn accumulators<S: Simd, const ACCUMULATORS: usize>(self, s: S) -> f32 {
        let mut accumulators = [s.splat(0.0); ACCUMULATORS];
        let (x, y) = (s.splat(black_box(1.0)), s.splat(black_box(0.5)));
        let pair = s.splat_pair(black_box(0x3f80_3f80));
        for _ in 0..self.steps {
            for accumulator in &mut accumulators {
                *accumulator = if BF16 {
                    s.dot_bf16(pair, pair, *accumulator)
                } else {
                    s.fma(x, y, *accumulator)
                };
            }
        }
        accumulators.into_iter().fold(0.0, |sum, accumulator| sum + s.sum(accumulator))
    }
}

impl<const BF16: bool> Kernel for MultiplyAdds<BF16> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        if S::LANES == 16 {
            self.accumulators::<S, ACCUMULATORS_512>(s)
        } else {
            self.accumulators::<S, ACCUMULATORS>(s)
        }
    }
}

/// Returns the lanes per vector and the number of independent accumulators.
struct Accumulators;

impl Kernel for Accumulators {
    type Output = (usize, usize);
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        (S::LANES, if S::LANES == 16 { ACCUMULATORS_512 } else { ACCUMULATORS })
    }
}

/// Elements that [`Read`] sums per step: four of the widest vectors.
const STEP: usize = 2 * PANEL;

/// Sums a slice of whole steps, with the kernels' prefetch pattern.
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cpu::{CpuOptions, Isa};

    #[test]
    fn every_instruction_set_does_what_it_says() {
        let memory = Memory::new(1 << 20 | 1);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let options = CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::default() };
            let cpu = Cpu::new(options).unwrap();
            assert_eq!(memory.read(&cpu), f64::from(1 << 20), "{isa}");
            // Whole vectors in whole accumulators, on both threads.
            let lanes = if isa >= Isa::Avx512 {
                16
            } else if isa == Isa::Avx2 {
                8
            } else {
                4
            };
            assert_eq!(f32_multiply_adds(&cpu) % f64::from((2 * 2 * lanes) << 20), 0.0, "{isa}");
            assert_eq!(has_bf16_products(&cpu), isa >= Isa::Avx512Bf16, "{isa}");
            assert!(bf16_products(&cpu) > 0.0, "{isa}");
            hand_off(&cpu);
        }
    }
}
