//! Measurements of a small model: the counts, not the speeds.
#![allow(clippy::unwrap_used)]

use fathom_kernels::{Cpu, CpuOptions};
use fathom_measure::{decode_speed, overhead};
use fathom_model::{SyntheticShape, Transformer, write_synthetic};

fn model() -> Transformer<Cpu> {
    let shape = SyntheticShape {
        layers: 3,
        hidden: 64,
        intermediate: 96,
        heads: 4,
        kv_heads: 2,
        vocab: 128,
        tied: true,
    };
    let dir = tempfile::tempdir().unwrap();
    write_synthetic(dir.path(), &shape, 1).unwrap();
    Transformer::load(dir.path(), Cpu::new(CpuOptions::default()).unwrap()).unwrap()
}

#[test]
fn decoding_is_measured_at_every_batch_size_with_the_bandwidth() {
    let model = model();
    let mut asked = 0;
    let mut bandwidth = || {
        asked += 1;
        1e9
    };
    let speeds = decode_speed(&model, &[2, 5], 7, 3, &mut bandwidth).unwrap();
    // Before the first step, and after each of 2 · 3.
    assert_eq!(asked, 7);
    assert_eq!([speeds[0].batch, speeds[1].batch], [2, 5]);
    assert_eq!(speeds[0].times_first, 1.0);
    for speed in &speeds {
        assert_eq!(speed.context, 7);
        assert_eq!(speed.tokens_per_s, speed.batch as f64 / speed.step_s);
        let least = model.bytes_read() as f64 / 1e9;
        // Medians of the same steps, whose bandwidth is constant here.
        assert!((speed.of_bandwidth - least / speed.step_s).abs() < 1e-9 * speed.of_bandwidth);
    }
}

#[test]
fn every_kind_of_probe_is_measured_against_the_plain_pass() {
    let measured = overhead(&model(), 40, 3).unwrap();
    assert_eq!(measured.tokens, 40);
    let numbers =
        [measured.prefill_tokens_per_s, measured.capture, measured.scan, measured.scan_attention];
    assert!(numbers.iter().all(|number| number.is_finite() && *number > 0.0), "{measured:?}");
}
