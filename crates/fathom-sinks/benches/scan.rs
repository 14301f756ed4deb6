//! Scans of a synthetic checkpoint, with and without sink scores, and its prefill alone.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    PREFILL_CHUNK, SequenceOptions, SyntheticShape, TokenizedTrace, Transformer, write_synthetic,
};
use fathom_sinks::{Preset, ScanOptions, scan_trace};

fn scan(c: &mut Criterion) {
    const TOKENS: usize = 2048;
    let dir = tempfile::tempdir().unwrap();
    let shape = SyntheticShape { layers: 4, vocab: 8192, ..SyntheticShape::QWEN2_5_0_5B };
    write_synthetic(dir.path(), &shape, 1).unwrap();
    let ids = (0..TOKENS as u32).map(|i| i * 31 % 8192).collect();
    let trace = TokenizedTrace { index: 0, line: 1, ids, prompt_len: 0, remarks: Vec::new() };

    let mut group = c.benchmark_group("scan");
    group.sample_size(10).throughput(Throughput::Elements(TOKENS as u64));
    for precision in [Precision::F32, Precision::Bf16] {
        let cpu = Cpu::new(CpuOptions { precision, ..CpuOptions::default() }).unwrap();
        let model = Transformer::load(dir.path(), cpu).unwrap();
        group.bench_function(format!("{precision:?}, bare prefill"), |b| {
            b.iter(|| {
                let mut sequence = model.new_sequence(SequenceOptions::default());
                model.prefill(&mut sequence, &trace.ids, PREFILL_CHUNK, None, &mut |_| {}).unwrap();
            });
        });
        for (name, attention) in [("norms and cosines", false), ("with sink scores", true)] {
            let options = ScanOptions { attention, ..ScanOptions::new(Preset::Paper) };
            group.bench_function(format!("{precision:?}, {name}"), |b| {
                b.iter(|| scan_trace(&model, &trace, &|_| None, &options, &mut ()).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, scan);
criterion_main!(benches);
