//! The forward pass against what HuggingFace transformers computes, on every golden checkpoint.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Tensor, cpu, fixture, goldens, isas, load, prompts, read_tensors, relative_error};
use fathom_backend::Backend;
use fathom_backend::Precision;
use fathom_model::{CaptureRequest, LogitRows, SequenceOptions, Site, Step, Transformer, capture};
use foreign_backend::Foreign;

/// All sites of a pass over `ids`, through a capture file.
fn capture_all<B: Backend>(model: &Transformer<B>, ids: &[u32]) -> BTreeMap<String, Tensor> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("capture.safetensors");
    let sites: Vec<_> = Site::all().map(|site| (site, None)).collect();
    let request = CaptureRequest::new(&sites, &[], None, model.config()).unwrap();
    capture(model, ids, &request, &out, &mut |_| {}).unwrap();
    let size = fs::metadata(&out).unwrap().len();
    assert!(size > request.bytes(model.config(), ids.len()), "the estimate counts every value");
    read_tensors(&out)
}

/// Compares every reference tensor for whose site `chosen` returns true; returns their number.
fn compare<B: Backend>(
    what: &str,
    model: &Transformer<B>,
    dir: &Path,
    tolerance: f64,
    chosen: impl Fn(Site) -> bool,
) -> usize {
    let mut compared = 0;
    for prompt in prompts(dir) {
        let ours = capture_all(model, &prompt.input_ids);
        for (name, (shape, expected)) in read_tensors(&dir.join(&prompt.file)) {
            let Ok((site, _)) = Site::parse(&name) else {
                assert!(["input_ids", "rope_cos", "rope_sin"].contains(&name.as_str()), "{name}");
                continue;
            };
            if !chosen(site) {
                continue;
            }
            let (our_shape, values) = &ours[&name];
            assert_eq!(*our_shape, shape, "{what} {} {name}", prompt.file);
            let error = relative_error(values, &expected);
            assert!(error <= tolerance, "{what} {} {name}: {error:.2e}", prompt.file);
            compared += 1;
        }
    }
    compared
}

#[test]
fn f32_equals_huggingface_at_every_site_of_every_layer() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for isa in isas() {
            let model = Transformer::load(&dir, cpu(Precision::F32, 2, Some(isa))).unwrap();
            let what = format!("{golden} {isa:?}");
            let compared = compare(&what, &model, &dir, 1e-4, |_| true);
            // The references have 18 sites per layer (all but resid_pre), embed, final_norm and
            // logits.
            assert!(
                compared >= 18 * model.config().layers + 3,
                "{golden}: only {compared} tensors"
            );
        }
    }
}

#[test]
fn bf16_stays_near_huggingface_in_the_residual_stream_and_the_logits() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        for isa in isas() {
            let model = Transformer::load(&dir, cpu(Precision::Bf16, 2, Some(isa))).unwrap();
            let chosen = |site| matches!(site, Site::ResidPost | Site::Logits);
            compare(&format!("{golden} {isa:?}"), &model, &dir, 2e-2, chosen);
        }
    }
}

/// The model code does not assume host memory: the results are the same on a device with its own
/// memory and asynchronous execution.
#[test]
fn a_foreign_backend_equals_huggingface_too() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        let foreign = |precision| Foreign::new(cpu(precision, 2, None));
        let model = Transformer::load(&dir, foreign(Precision::F32)).unwrap();
        let compared = compare(&format!("{golden} foreign"), &model, &dir, 1e-4, |_| true);
        assert!(compared >= 18 * model.config().layers + 3, "{golden}: only {compared} tensors");
        greedy_continuations_of(golden, &model);
        let model = Transformer::load(&dir, foreign(Precision::Bf16)).unwrap();
        let chosen = |site| matches!(site, Site::ResidPost | Site::Logits);
        compare(&format!("{golden} foreign"), &model, &dir, 2e-2, chosen);
    }
}

#[test]
fn both_config_layouts_load_to_the_same_network() {
    for golden in &goldens() {
        let dir = fixture("golden").join(golden);
        let v5 = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, v5.path().join(path.file_name().unwrap())).unwrap();
        }
        fs::copy(dir.join("config.v5.json"), v5.path().join("config.json")).unwrap();
        let model = load(v5.path(), Precision::F32);
        compare(&format!("{golden} v5"), &model, &dir, 1e-4, |site| site == Site::Logits);
    }
}

#[test]
fn greedy_continuations_are_token_exact() {
    for golden in &goldens() {
        let model = load(&fixture("golden").join(golden), Precision::F32);
        greedy_continuations_of(golden, &model);
    }
}

fn greedy_continuations_of<B: Backend>(golden: &str, model: &Transformer<B>) {
    let dir = fixture("golden").join(golden);
    let backend = model.backend();
    for prompt in prompts(&dir) {
        let mut sequence = model.new_sequence(SequenceOptions::default());
        let mut next = prompt.input_ids.clone();
        let mut continuation: Vec<u32> = Vec::new();
        for _ in 0..prompt.greedy_ids.len() {
            let logits = LogitRows::Last;
            let step = Step { sequence: &mut sequence, tokens: &next, logits };
            let logits = model.forward(&mut [step], None).unwrap();
            next = logits.argmax(backend, model.config().vocab).unwrap().remove(0);
            continuation.extend(&next);
        }
        assert_eq!(continuation, prompt.greedy_ids, "{golden} {}", prompt.file);
    }
}
