//! Matrix products and attention at the shapes of real models. Throughput is in elements, one element
//! being one floating-point operation, or for few rows in bytes of weights: compare with what
//! `limits` prints first.
//!
//! `cargo bench -p fathom-kernels`, or with a filter: `cargo bench -p fathom-kernels -- attention`.
#![allow(missing_docs, clippy::unwrap_used)] // criterion's macros; a benchmark may stop on any error

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fathom_kernels::{
    Attention, Backend, Cpu, CpuOptions, DType, KvShape, Linear, Precision, Rows, Span, WeightView,
    limits,
};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(CpuOptions { precision, ..CpuOptions::default() }).unwrap()
}

/// A matrix of varied numbers of the size activations have.
fn filled(cpu: &Cpu, rows: usize, columns: usize) -> Rows {
    let values: Vec<f32> =
        (0..rows * columns).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    let mut x = cpu.alloc(rows, columns);
    cpu.write_rows(&mut x, 0, &values);
    x
}

/// So many copies of a weight matrix that a product finds none of them in a cache.
fn weights(cpu: &Cpu, k: usize, n: usize) -> Vec<Linear> {
    const BEYOND_CACHES: usize = 256 << 20;
    let bytes: Vec<u8> = (0..k * n).flat_map(|i| [(i % 251) as u8, 0x3c]).collect();
    let view = WeightView { bytes: &bytes, dtype: DType::Bf16, rows: n, columns: k };
    let copies = BEYOND_CACHES.div_ceil(bytes.len()).min(64);
    (0..copies).map(|_| cpu.linear_from(view, None)).collect()
}

fn print_limits(_: &mut Criterion) {
    for precision in PRECISIONS {
        let cpu = cpu(precision);
        let limits = limits::measure(&cpu);
        println!("limits, {} threads, {}: {limits:.3?}", cpu.threads(), cpu.isa());
    }
}

fn linear(c: &mut Criterion) {
    // Qwen2.5-0.5B: attention output, MLP up and down, a slice of the unembedding; 1.5B: MLP up.
    let shapes = [(896, 896), (896, 4864), (4864, 896), (896, 32768), (1536, 8960)];
    for precision in PRECISIONS {
        let cpu = cpu(precision);
        let mut group = c.benchmark_group(format!("linear/{precision:?}"));
        for (k, n) in shapes {
            let weights = weights(&cpu, k, n);
            for rows in [1, 4, 16, 64, 512, 2048] {
                let x = filled(&cpu, rows, k);
                let mut out = cpu.alloc(rows, n);
                group.throughput(if rows <= 4 {
                    Throughput::Bytes(weights[0].bytes() as u64)
                } else {
                    Throughput::Elements((2 * rows * k * n) as u64)
                });
                let mut next = weights.iter().cycle();
                group.bench_function(BenchmarkId::new(format!("{k}x{n}"), rows), |b| {
                    b.iter(|| cpu.linear(next.next().unwrap(), black_box(&x), &mut out));
                });
            }
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    // Qwen2.5-0.5B.
    let (heads, kv_heads, head_dim) = (14, 2, 64);
    let attention = Attention { layer: 0, heads, kv_heads, head_dim, scale: 0.125, window: None };
    for precision in PRECISIONS {
        let cpu = cpu(precision);
        let mut group = c.benchmark_group(format!("attention/{precision:?}"));
        for tokens in [512, 2048, 8192] {
            // The last 512 positions of a prefill, and one decoded token.
            let mut kv = cpu.new_kv(KvShape { layers: 1, kv_heads, head_dim });
            let width = kv_heads * head_dim;
            let (k, v) = (filled(&cpu, tokens, width), filled(&cpu, tokens, width));
            cpu.append_kv(0, &k, &v, &mut [Span { rows: 0..tokens, kv: &mut kv }]);
            cpu.advance_kv(&mut kv, tokens);
            for (name, rows) in [("prefill", 512), ("decode", 1)] {
                cpu.truncate_kv(&mut kv, tokens - rows);
                let mut spans = [Span { rows: 0..rows, kv: &mut kv }];
                let (k, v) = (filled(&cpu, rows, width), filled(&cpu, rows, width));
                cpu.append_kv(0, &k, &v, &mut spans);
                let q = filled(&cpu, rows, heads * head_dim);
                let (mut out, mut lse) =
                    (cpu.alloc(rows, heads * head_dim), cpu.alloc(rows, heads));
                let keys = rows * (tokens - rows) + rows * (rows + 1) / 2;
                group.throughput(Throughput::Elements((4 * heads * head_dim * keys) as u64));
                group.bench_function(BenchmarkId::new(name, tokens), |b| {
                    b.iter(|| cpu.attend(&attention, &q, &spans, &mut out, Some(&mut lse)));
                });
                if rows > 1 {
                    let mut sums = cpu.new_column_sums(1, heads);
                    group.bench_function(BenchmarkId::new("column sums", tokens), |b| {
                        b.iter(|| {
                            cpu.add_column_sums(&attention, &q, &lse, &spans[0], &mut sums);
                        });
                    });
                }
                let [span] = spans;
                cpu.advance_kv(span.kv, rows);
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = print_limits, linear, attention
}
criterion_main!(benches);
