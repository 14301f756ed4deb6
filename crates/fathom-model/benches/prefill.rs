//! Prefill and decoding of a small synthetic checkpoint, in both precisions.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    LogitRows, PREFILL_CHUNK, SequenceOptions, Step, SyntheticShape, Transformer, write_synthetic,
};

fn prefill(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let shape = SyntheticShape { layers: 4, vocab: 8192, ..SyntheticShape::QWEN2_5_0_5B };
    write_synthetic(dir.path(), &shape, 1).unwrap();
    let mut group = c.benchmark_group("model");
    group.sample_size(10);
    for precision in [Precision::F32, Precision::Bf16] {
        let cpu = Cpu::new(CpuOptions { precision, ..CpuOptions::default() }).unwrap();
        let model = Transformer::load(dir.path(), cpu).unwrap();

        for tokens in [128usize, 1024] {
            let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 31 % 8192).collect();
            group.throughput(Throughput::Elements(tokens as u64));
            group.bench_function(format!("prefill {tokens} {precision:?}"), |b| {
                b.iter(|| {
                    let mut sequence = model.new_sequence(SequenceOptions::default());
                    model.prefill(&mut sequence, &ids, PREFILL_CHUNK, None, &mut |_| {}).unwrap();
                });
            });
        }

        let ids: Vec<u32> = (0..512).collect();
        for batch in [1usize, 4, 16] {
            let mut sequences: Vec<_> =
                (0..batch).map(|_| model.new_sequence(SequenceOptions::default())).collect();
            for sequence in &mut sequences {
                model.prefill(sequence, &ids, PREFILL_CHUNK, None, &mut |_| {}).unwrap();
            }
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("decode {batch} at 512 {precision:?}"), |b| {
                b.iter(|| {
                    let steps = sequences.iter_mut().map(|sequence| Step {
                        sequence,
                        tokens: &[7],
                        logits: LogitRows::Last,
                    });
                    model.forward(&mut steps.collect::<Vec<_>>(), None).unwrap();
                    for sequence in &mut sequences {
                        model.truncate(sequence, 512).unwrap();
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, prefill);
criterion_main!(benches);
