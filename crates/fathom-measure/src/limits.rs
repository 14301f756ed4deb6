//! The CPU's limits, which kernels are measured against.

use std::time::{Duration, Instant};

use fathom_backend::{Backend, Precision};
use fathom_kernels::Cpu;
use fathom_kernels::peak::{self, Memory};

use crate::machine::Machine;

/// Peak rates of all threads of a [`Cpu`], with its instruction set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Number of threads that together reach these rates.
    pub threads: usize,
    /// Memory read bandwidth in bytes per second.
    pub read_bytes: f64,
    /// Floating-point operations per second of f32 multiply-adds (two each).
    pub f32_flops: f64,
    /// Floating-point operations per second of bfloat16 products in tile registers or vectors;
    /// `None` without such an instruction.
    pub bf16_flops: Option<f64>,
    /// Median time to give every thread an empty task and wait for all of them.
    pub hand_off: Duration,
}

impl Limits {
    /// The rate for `precision`: the f32 rate if the CPU has no bfloat16 instruction.
    pub fn flops(&self, precision: Precision) -> f64 {
        match (precision, self.bf16_flops) {
            (Precision::Bf16, Some(flops)) => flops,
            _ => self.f32_flops,
        }
    }

    /// The better of two measurements, rate by rate.
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

/// Measures for about a second. Each rate is the best of several attempts, because interference
/// from other programs only reduces a rate; the hand-off time is a median.
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
    best_rate(attempts, || peak::f32_multiply_adds(cpu))
}

fn bf16_flops(cpu: &Cpu, attempts: usize) -> Option<f64> {
    peak::has_bf16_products(cpu).then(|| best_rate(attempts, || peak::bf16_products(cpu)))
}

fn read_bytes(cpu: &Cpu) -> f64 {
    let memory = CurrentLimits::new(cpu);
    (0..16).map(|_| memory.bytes_per_s()).fold(0.0, f64::max)
}

/// The current limits, measured on demand: on a shared machine they change from second to second,
/// memory bandwidth most of all.
pub struct CurrentLimits<'a> {
    cpu: &'a Cpu,
    memory: Memory,
}

impl<'a> CurrentLimits<'a> {
    /// Allocates memory that exceeds the caches: at least 256 MiB, which takes milliseconds to
    /// read.
    pub fn new(cpu: &'a Cpu) -> CurrentLimits<'a> {
        let bytes = Machine::detect().beyond_caches().max(256 << 20);
        CurrentLimits { cpu, memory: Memory::new(bytes) }
    }

    /// Reads the memory once with all threads; returns the bandwidth in bytes per second.
    pub fn bytes_per_s(&self) -> f64 {
        best_rate(1, || self.memory.read(self.cpu))
    }

    /// The minimum time in seconds to read `bytes` and compute `flops` at the current limits.
    pub fn seconds(&self, bytes: f64, flops: f64) -> f64 {
        let bf16 = match self.cpu.precision() {
            Precision::Bf16 => bf16_flops(self.cpu, 1),
            Precision::F32 => None,
        };
        let rate = bf16.unwrap_or_else(|| f32_flops(self.cpu, 1));
        overlapping(bytes / self.bytes_per_s(), flops / rate)
    }
}

/// Time of reading and computing with perfect overlap (the roofline model).
fn overlapping(reading: f64, computing: f64) -> f64 {
    reading.max(computing)
}

fn hand_off(cpu: &Cpu) -> Duration {
    let mut times: Vec<Duration> = (0..2001)
        .map(|_| {
            let start = Instant::now();
            peak::hand_off(cpu);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// The highest rate of `work` per second among `attempts`.
fn best_rate(attempts: usize, work: impl Fn() -> f64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        let done = work();
        done / start.elapsed().as_secs_f64()
    };
    (0..attempts).map(rate).fold(0.0, f64::max)
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
