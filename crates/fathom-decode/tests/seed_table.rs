//! The state machine predicts the published benchmark.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use fathom_decode::seed_table::{BRANCH_CHANCE, Prediction, parse, predict};

fn table() -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pearl-benchmark-l40s.md");
    let text = std::fs::read_to_string(&path).unwrap();
    (path, text)
}

#[test]
fn predictions_are_close_to_the_published_numbers() {
    let (path, text) = table();
    let rows = parse(&path, &text).unwrap();
    assert_eq!(rows.len(), 96);
    let predictions = predict(&rows, BRANCH_CHANCE).unwrap();
    for p in &predictions {
        println!(
            "{:28} {:2} {:9} MAT {:5.2} γ {:2} α {:.3} published {:.3} predicted {:.3} \
             {:+.1} % ({:+.1} %)",
            p.row.draft.trim_start_matches("models--"),
            p.row.batch_size,
            p.row.benchmark,
            p.row.mat,
            p.gamma,
            p.acceptance,
            p.row.tokens_per_step,
            p.predicted,
            100.0 * p.error(),
            100.0 * p.error_on_complete_batches()
        );
    }
    let mut errors: Vec<f64> = predictions.iter().map(|p| p.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    assert!((errors[47] + errors[48]) / 2.0 <= 0.03, "median {}", errors[47]);
    assert!(errors.iter().filter(|&&error| error <= 0.07).count() >= 87, "{errors:?}");
    // One γ per pair. A more expensive draft of the same target has a smaller γ.
    let gamma = |draft: &str| {
        let of_pair = |p: &&Prediction| p.row.draft.ends_with(draft);
        let gammas: Vec<usize> = predictions.iter().filter(of_pair).map(|p| p.gamma).collect();
        assert!(gammas.len() == 16 && gammas.windows(2).all(|pair| pair[0] == pair[1]));
        gammas[0]
    };
    assert!(gamma("Qwen2.5-3B-Instruct") < gamma("Qwen2.5-1.5B-Instruct"));
    assert!(gamma("Qwen3-1.7B") < gamma("Qwen3-0.6B"));
    assert!(gamma("Llama-3.2-3B-Instruct") < gamma("Llama-3.2-1B-Instruct"));
}

/// AIME at batch size 4: the 60 prompts fill 15 batches, but the published AR row counts 56
/// samples. With 60 samples the error of the row is close to that of its neighbours.
#[test]
fn rows_with_another_number_of_samples_are_marked() {
    let (path, text) = table();
    let predictions = predict(&parse(&path, &text).unwrap(), BRANCH_CHANCE).unwrap();
    let marked: Vec<&Prediction> =
        predictions.iter().filter(|p| p.batch_samples.is_some()).collect();
    assert_eq!(marked.len(), 6);
    for p in marked {
        assert_eq!((p.row.benchmark.as_str(), p.row.batch_size), ("AIME", 4));
        assert_eq!((p.row.samples, p.batch_samples), (56, Some(60)));
        assert!(p.error_on_complete_batches().abs() < 0.05);
    }
}

#[test]
fn an_invalid_table_is_refused_with_its_line() {
    let (path, text) = table();
    let refused = |text: &str| parse(&path, text).unwrap_err().to_string();
    assert!(refused("# nothing here").contains("has no table with the columns Draft Model"));
    let first = text.lines().nth(2).unwrap();
    let broken = |from: &str, to: &str| refused(&text.replacen(first, &first.replace(from, to), 1));
    assert!(broken("28790", "many").contains("line 3: `Num Tokens` is `many`"));
    assert!(broken("14.93", "0.2").contains("line 3: `MAT` is `0.2`"));
    assert!(broken("PEARL", "EAGLE").contains("line 3: `Mode` is `EAGLE`"));
    assert!(broken(" | 4.04", "").contains("line 3: has 9 columns; expected 10"));
    assert!(broken("AIME", "MATH").contains("line 3: has no AR row"));
}
