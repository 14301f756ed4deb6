//! The CPU at its peak, for measuring what it can do at most: loops that do one thing only, as fast
//! as the instruction set in use allows, on all threads of a [`Cpu`].
//!
//! Each function does its work and says how much that was. Taking the time is up to the caller.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::cpu::Tiles;
use crate::gemm::PANEL;
use crate::memory::Aligned;
use crate::simd::{Kernel, Simd};

/// Multiplies and adds f32 in registers, for some milliseconds. Returns the floating-point
/// operations done, two for each multiply-add.
pub fn f32_multiply_adds(cpu: &Cpu) -> f64 {
    multiply_adds::<false>(cpu)
}

/// Whether bfloat16 products have an instruction of their own, in vectors or in tile registers.
pub fn has_bf16_products(cpu: &Cpu) -> bool {
    has_tiles(cpu) || cpu.isa.run(HasBf16Dot)
}

/// Multiplies pairs of bfloat16 and adds them in f32, in registers, for some milliseconds: in tile
/// registers or by the dot product of vectors, or where neither is there by f32 multiply-adds.
/// Returns the floating-point operations done, two for each product.
pub fn bf16_products(cpu: &Cpu) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if has_tiles(cpu) {
        const STEPS: usize = 1 << 17;
        cpu.split(cpu.threads(), |_| amx::products(STEPS));
        return (cpu.threads() * STEPS) as f64 * amx::PRODUCTS_FLOPS;
    }
    multiply_adds::<true>(cpu)
}

/// Hands an empty task to every thread, and waits for all of them.
pub fn hand_off(cpu: &Cpu) {
    cpu.split(cpu.threads(), |part| {
        black_box(part);
    });
}

/// Memory to read from end to end, as weights lie there: aligned to cache lines, in huge pages
/// where the system has them.
pub struct Memory(Aligned<f32>);

impl Memory {
    /// At most `bytes` of memory, all of it written to once.
    pub fn new(bytes: usize) -> Memory {
        Memory(Aligned::filled(bytes / size_of::<f32>() / STEP * STEP, 1.0))
    }

    /// Reads all of it once, each thread a part. Returns the bytes read.
    pub fn read(&self, cpu: &Cpu) -> f64 {
        let data = &self.0;
        cpu.split(data.len() / STEP, |steps| {
            black_box(cpu.isa.run(Read(&data[steps.start * STEP..steps.end * STEP])));
        });
        size_of_val(&**data) as f64
    }
}

/// Whether products run in the CPU's tile registers. The software model of them says nothing of a
/// peak.
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
    let (lanes, chains) = cpu.isa.run(InFlight);
    let per_lane = if BF16 { 4 } else { 2 };
    (cpu.threads() * STEPS * chains * lanes * per_lane) as f64
}

/// Independent multiply-adds in flight, where there are 32 registers of 512 bits, and elsewhere:
/// more than latency times units (six cycles times two for `vdpbf16ps`), fewer than registers.
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
            // Whole vectors in whole chains, on both threads.
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
