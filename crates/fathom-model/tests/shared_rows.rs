//! Sequences that share the keys and values of a common beginning compute what they would alone.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{LogitRows, Sequence, SequenceOptions, Step, Transformer};

fn model(name: &str) -> Transformer<Cpu> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
    Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap()
}

fn sequence(model: &Transformer<Cpu>, planned_len: usize) -> Sequence<Cpu> {
    let planned_len = Some(planned_len);
    model.new_sequence(SequenceOptions { planned_len, ..SequenceOptions::default() })
}

/// The logits after `tokens`, which follow the sequence.
fn logits(model: &Transformer<Cpu>, sequence: &mut Sequence<Cpu>, tokens: &[u32]) -> Vec<f32> {
    let mut steps = [Step { sequence, tokens, logits: LogitRows::All }];
    model.forward(&mut steps, None).unwrap().step(model.backend(), 0).unwrap()
}

#[test]
fn adopted_rows_continue_as_computed_ones() {
    let model = model("qwen2");
    let text: Vec<u32> = (0..300).map(|i| i * 7 % 380).collect();
    let alone = logits(&model, &mut sequence(&model, 300), &text);
    let width = model.config().vocab;
    let mut first = sequence(&model, 300);
    logits(&model, &mut first, &text[..260]);
    for shared in [1, 127, 128, 200, 256, 260] {
        let rows = model.share(&first, shared);
        assert_eq!((rows.len(), rows.is_empty()), (shared, false));
        // Also in place of rows of its own, and of another text.
        for (own, tokens) in [(0, &text), (50, &text), (30, &vec![1; 300])] {
            let mut second = sequence(&model, 300);
            if own > 0 {
                logits(&model, &mut second, &tokens[..own]);
            }
            assert!(model.adopt(&mut second, &rows, &text[..shared]));
            assert_eq!(second.tokens(), &text[..shared]);
            let rest = logits(&model, &mut second, &text[shared..]);
            assert!(rest == alone[shared * width..], "{shared} {own}");
            // And as far as another text agrees.
            for part in [1, shared / 2, shared].into_iter().filter(|&part| part > 0) {
                let beginning = model.beginning(&rows, part);
                assert!(model.adopt(&mut second, &beginning, &text[..part]));
                let rest = logits(&model, &mut second, &text[part..]);
                assert!(rest == alone[part * width..], "{shared} {own} {part}");
            }
        }
        assert!(!model.adopt(&mut sequence(&model, 300), &rows, &text[..shared - 1]));
    }
    // The one that was shared goes on too.
    assert!(logits(&model, &mut first, &text[260..]) == alone[260 * width..]);
}

/// phi4-mini has short rotary factors up to 48 tokens and long ones in longer texts: their first
/// tokens have different keys.
#[test]
fn rows_of_another_rotary_regime_are_not_adopted() {
    let model = model("phi4-mini");
    let text: Vec<u32> = (0..60).collect();
    let mut short = sequence(&model, 40);
    logits(&model, &mut short, &text[..40]);
    let mut long = sequence(&model, 60);
    logits(&model, &mut long, &text);
    assert_ne!(model.rotary_regime(&short), model.rotary_regime(&long));
    for (planned, own, other) in [(45, &short, &long), (55, &long, &short)] {
        let alone = logits(&model, &mut sequence(&model, planned), &text[..planned]);
        let mut second = sequence(&model, planned);
        assert!(!model.adopt(&mut second, &model.share(other, 30), &text[..30]), "{planned}");
        assert!(model.adopt(&mut second, &model.share(own, 30), &text[..30]), "{planned}");
        let rest = logits(&model, &mut second, &text[30..planned]);
        assert!(rest == alone[30 * model.config().vocab..], "{planned}");
    }
    // A text that leaves the regime computes its rows again, and shares the new ones.
    logits(&model, &mut short, &text[40..]);
    assert_eq!(model.rotary_regime(&short), model.rotary_regime(&long));
    assert!(model.adopt(&mut sequence(&model, 60), &model.share(&short, 30), &text[..30]));

    let scored =
        SequenceOptions { planned_len: Some(60), sink_scores: true, ..SequenceOptions::default() };
    let mut scored = model.new_sequence(scored);
    assert!(
        !model.adopt(&mut scored, &model.share(&short, 30), &text[..30]),
        "sums are not shared"
    );
}
