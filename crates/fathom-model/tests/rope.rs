//! Rotary frequencies against HuggingFace transformers.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fathom_model::{ModelConfig, RopeKind};
use safetensors::SafeTensors;
use serde_json::Value;

/// A frequency needs one power in f32, and torch's power is within one unit in the last place.
const ULP: f64 = 1.2e-7;

fn crate_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(what: &str, ours: &[f32], theirs: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (&a, &b)) in ours.iter().zip(theirs).enumerate() {
        let difference = (f64::from(a) - b).abs();
        assert!(difference <= tolerance(i), "{what}[{i}]: {a} against {b}");
    }
}

/// Every rope type and option, with cosines and sines at up to four positions of each length.
#[test]
fn every_rope_type_agrees_with_transformers() {
    let cases = json(&crate_file("tests/data/huggingface/rope.json"));
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let length = case["length"].as_u64().unwrap() as usize;
        let name = format!("{} at length {length}", case["name"].as_str().unwrap());
        let config = ModelConfig::parse(Path::new("config.json"), &case["config"].to_string());
        let frequencies = config.unwrap_or_else(|e| panic!("{name}: {e}")).rope.inv_freq(length);

        let expected = floats(&case["inv_freq"]);
        assert_close(&name, &frequencies.inv_freq, &expected, |i| 2.0 * ULP * expected[i]);
        let scaling = case["attention_scaling"].as_f64().unwrap();
        assert_close(&name, &[frequencies.attention_scaling], &[scaling], |_| ULP * scaling);

        let positions = floats(&case["positions"]);
        let (cos, sin) = frequencies.cos_sin(positions.iter().map(|&p| p as usize));
        let half = expected.len();
        // An angle inherits the relative error of its frequency.
        let tolerance =
            |i: usize| scaling * ULP * (2.0 + 3.0 * positions[i / half] * expected[i % half]);
        assert_close(&format!("{name}: cos"), &cos, &floats(&case["cos"]), tolerance);
        assert_close(&format!("{name}: sin"), &sin, &floats(&case["sin"]), tolerance);
    }
}

/// The goldens' frequencies, attention scaling, cosines and sines, from both config layouts.
#[test]
fn goldens_agree_in_both_layouts() {
    let golden = crate_file("../../tests/fixtures/golden");
    let mut prompts = 0;
    for dir in std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()) {
        if !dir.is_dir() {
            continue;
        }
        let reference = json(&dir.join("reference.json"));
        for layout in ["config.json", "config.v5.json"] {
            let text = std::fs::read_to_string(dir.join(layout)).unwrap();
            let rope = ModelConfig::parse(&dir.join(layout), &text).unwrap().rope;
            assert_eq!(rope.rotary_dim as u64, reference["rope"]["rotary_dim"].as_u64().unwrap());
            for prompt in reference["prompts"].as_array().unwrap() {
                let length = prompt["length"].as_u64().unwrap() as usize;
                let file = prompt["file"].as_str().unwrap();
                let name = format!("{}/{layout}, {file}", dir.display());
                let frequencies = rope.inv_freq(length);
                let expected = floats(&prompt["rope_inv_freq"]);
                assert_close(&name, &frequencies.inv_freq, &expected, |i| 2.0 * ULP * expected[i]);
                let scaling = reference["rope"]["attention_scaling"].as_f64().unwrap();
                assert_close(&name, &[frequencies.attention_scaling], &[scaling], |_| {
                    ULP * scaling
                });

                let bytes = std::fs::read(dir.join(file)).unwrap();
                let tensors = SafeTensors::deserialize(&bytes).unwrap();
                let (cos, sin) = frequencies.cos_sin(0..length);
                for (key, ours) in [("rope_cos", cos), ("rope_sin", sin)] {
                    let tensor = tensors.tensor(key).unwrap();
                    // [T, rotary_dim]; the second half of a row repeats the first.
                    let all: Vec<f64> = tensor
                        .data()
                        .chunks_exact(4)
                        .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                        .collect();
                    let rows = all.chunks(rope.rotary_dim);
                    let theirs: Vec<f64> =
                        rows.flat_map(|row| row[..rope.rotary_dim / 2].to_vec()).collect();
                    assert_close(&format!("{name}: {key}"), &ours, &theirs, |_| 2e-6 * scaling);
                }
                prompts += 1;
            }
        }
    }
    assert!(prompts >= 2 * 9);
}

/// Equal regimes mean equal frequencies, and a change of frequencies a change of regime.
#[test]
fn regimes_change_exactly_where_frequencies_do() {
    let cases = json(&crate_file("tests/data/huggingface/rope.json"));
    let mut changing = 0;
    for case in cases["cases"].as_array().unwrap() {
        let text = case["config"].to_string();
        let rope = ModelConfig::parse(Path::new("config.json"), &text).unwrap().rope;
        let edge = match &rope.kind {
            RopeKind::Dynamic { max_position_embeddings, .. } => *max_position_embeddings,
            RopeKind::LongRope { original_max_position_embeddings, .. } => {
                *original_max_position_embeddings
            }
            _ => 1000,
        };
        let lengths = [1, 2, edge - 1, edge, edge + 1, edge + 2, 3 * edge];
        for a in lengths {
            for b in lengths {
                let same = rope.inv_freq(a) == rope.inv_freq(b);
                assert_eq!(rope.regime(a) == rope.regime(b), same, "{text}: lengths {a} and {b}");
                changing += usize::from(!same);
            }
        }
    }
    assert!(changing > 0);
}
