//! Matrix products and attention at the shapes of real models, with weights and keys that exceed
//! the caches. Throughput is in floating-point operations (criterion's elements) or, for up to 4
//! rows, in bytes of weights or of keys and values. Compare with the limits printed first.
//!
//! A full run takes long; `cargo bench -p fathom-measure -- Bf16/qwen2.5-0.5b` takes a minute. For
//! fractions of the limits, measured in the same run: `fathom bench-engine --kernels`.
#![allow(missing_docs, clippy::unwrap_used)] // criterion's macros; a benchmark may panic

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_measure::limits;
use fathom_measure::workload::{AttentionWorkload, ProductWorkload};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];
/// Name, width, width of the MLP, query heads, key/value heads.
const MODELS: [(&str, usize, usize, usize, usize); 4] = [
    ("qwen2.5-0.5b", 896, 4864, 14, 2),
    ("qwen2.5-1.5b", 1536, 8960, 12, 2),
    ("llama-3.2-1b", 2048, 8192, 32, 8),
    ("qwen2.5-7b", 3584, 18_944, 28, 4),
];
const ROWS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048];
const TOKENS: [usize; 4] = [512, 2048, 8192, 16_384];

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(CpuOptions { precision, ..CpuOptions::default() }).unwrap()
}

fn print_limits(_: &mut Criterion) {
    for precision in PRECISIONS {
        let cpu = cpu(precision);
        println!("{}: {:.3?}", cpu.isa(), limits::measure(&cpu));
    }
}

/// Bytes where the kernel is memory-bound, operations otherwise.
fn throughput(rows: usize, bytes: usize, flops: usize) -> Throughput {
    if rows <= 4 { Throughput::Bytes(bytes as u64) } else { Throughput::Elements(flops as u64) }
}

fn linear(c: &mut Criterion) {
    for precision in PRECISIONS {
        let cpu = cpu(precision);
        for (model, hidden, intermediate, heads, kv_heads) in MODELS {
            let mut group = c.benchmark_group(format!("linear/{precision:?}/{model}"));
            let qkv = hidden + 2 * (hidden / heads * kv_heads);
            let shapes = [
                (hidden, qkv),
                (hidden, hidden),
                (hidden, 2 * intermediate),
                (intermediate, hidden),
            ];
            for (k, n) in shapes {
                // Created only if the filter selects a benchmark that needs it.
                let mut products = None;
                for rows in ROWS {
                    group.throughput(throughput(rows, 2 * k * n, 2 * rows * k * n));
                    group.bench_function(BenchmarkId::new(format!("{k}x{n}"), rows), |b| {
                        let products = products
                            .get_or_insert_with(|| ProductWorkload::new(&cpu, k, n).unwrap());
                        products.set_rows(rows).unwrap();
                        b.iter(|| products.run().unwrap());
                    });
                }
            }
            group.finish();
        }
    }
}

fn attention(c: &mut Criterion) {
    for precision in PRECISIONS {
        let cpu = cpu(precision);
        for (model, hidden, _, heads, kv_heads) in MODELS {
            let mut group = c.benchmark_group(format!("attention/{precision:?}/{model}"));
            for tokens in TOKENS {
                let shape = (heads, kv_heads, hidden / heads);
                let size = if precision == Precision::F32 { 4 } else { 2 };
                let bytes = 2 * tokens * kv_heads * (hidden / heads) * size;
                let mut attending = None;
                for (name, rows) in [("decode", 1), ("verify", 16), ("prefill", 512)] {
                    let seen = rows * (tokens - rows) + rows * (rows + 1) / 2;
                    group.throughput(throughput(rows, bytes, 4 * hidden * seen));
                    group.bench_function(BenchmarkId::new(name, tokens), |b| {
                        let attending = attending.get_or_insert_with(|| {
                            AttentionWorkload::new(&cpu, shape, tokens).unwrap()
                        });
                        attending.set_rows(rows).unwrap();
                        b.iter(|| attending.run().unwrap());
                    });
                }
                // Throughput is still in operations of the prefill's attention, so that the two are
                // comparable.
                group.bench_function(BenchmarkId::new("column sums", tokens), |b| {
                    let attending = attending.get_or_insert_with(|| {
                        AttentionWorkload::new(&cpu, shape, tokens).unwrap()
                    });
                    attending.set_rows(512).unwrap();
                    attending.run().unwrap();
                    b.iter(|| attending.add_column_sums().unwrap());
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200));
    targets = print_limits, linear, attention
}
criterion_main!(benches);
