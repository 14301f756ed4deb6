//! Greedy decoding without logits returns the same tokens as with logits.
#![allow(clippy::unwrap_used)]

mod common;

use common::{fixture, goldens, load};
use fathom_backend::Precision;
use fathom_model::{LogitRows, SequenceOptions, Step};

#[test]
fn tokens_without_logits_are_the_tokens_of_the_logits() {
    for golden in &goldens() {
        for precision in [Precision::F32, Precision::Bf16] {
            let model = load(&fixture("golden").join(golden), precision);
            let vocab = model.config().vocab;
            // Three sequences; the last one only prefills. phi4-mini changes its rotary frequencies
            // at 48 tokens: with seven tokens per step, in the middle of a step.
            let text = |seed: usize| -> Vec<u32> {
                (0..60).map(|i| ((i * i * 31 + seed * 7) % vocab) as u32).collect()
            };
            let texts = [text(1), text(2), text(3)];
            for (limit, chunk) in [(vocab, 60), (vocab - 5, 7), (3, 1)] {
                let sequence = |_| model.new_sequence(SequenceOptions::default());
                let mut with = [0; 3].map(sequence);
                let mut without = [0; 3].map(sequence);
                for from in (0..60).step_by(chunk) {
                    let to = 60.min(from + chunk);
                    let wanted = [LogitRows::All, LogitRows::Last, LogitRows::None];
                    let steps = |sequences| -> Vec<_> {
                        let sequences: &mut [_; 3] = sequences;
                        let steps = sequences.iter_mut().zip(&texts).zip(wanted);
                        steps
                            .map(|((sequence, text), logits)| Step {
                                sequence,
                                tokens: &text[from..to],
                                logits,
                            })
                            .collect()
                    };
                    let logits = model.forward(&mut steps(&mut with), None).unwrap();
                    let want = logits.argmax(model.backend(), limit).unwrap();
                    let got = model.forward_argmax(&mut steps(&mut without), limit, None).unwrap();
                    assert_eq!(got, want, "{golden} {precision:?}");
                    let rows: Vec<usize> = got.iter().map(Vec::len).collect();
                    assert_eq!(rows, [to - from, 1, 0]);
                }
            }
        }
    }
}
