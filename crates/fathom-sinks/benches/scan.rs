//! A scan of a synthetic checkpoint, with and without attention.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fathom_kernels::{Cpu, CpuOptions, Precision};
use fathom_model::{Model, SyntheticShape, TokenizedTrace, write_synthetic};
use fathom_sinks::{Preset, ScanOptions, scan_trace};

fn scan(c: &mut Criterion) {
    const TOKENS: usize = 1024;
    let dir = tempfile::tempdir().unwrap();
    let shape = SyntheticShape { layers: 4, vocab: 8192, ..SyntheticShape::QWEN2_5_0_5B };
    write_synthetic(dir.path(), &shape, 1).unwrap();
    let ids = (0..TOKENS as u32).map(|i| i * 31 % 8192).collect();
    let trace = TokenizedTrace { index: 0, line: 1, ids, prompt_len: 0 };

    let mut group = c.benchmark_group("scan");
    group.sample_size(10).throughput(Throughput::Elements(TOKENS as u64));
    let cpu = Cpu::new(CpuOptions { threads: None, precision: Precision::F32, isa: None }).unwrap();
    let model = Model::load(dir.path(), cpu).unwrap();
    for attention in [false, true] {
        let options = ScanOptions { attention, ..ScanOptions::new(Preset::Paper) };
        let name = if attention { "norms, cosines and sink scores" } else { "norms and cosines" };
        group.bench_function(name, |b| {
            b.iter(|| scan_trace(&model, &trace, &|_| None, &options, &mut |_| {}).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, scan);
criterion_main!(benches);
