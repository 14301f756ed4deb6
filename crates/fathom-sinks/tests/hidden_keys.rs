//! Knock-out and eviction are those of eager attention in NumPy (`data/attention`).
#![allow(clippy::unwrap_used)]

mod common;

use common::{planted, traces};
use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Checkpoint, Transformer};
use fathom_sinks::explain::{
    Analysis, AnalysisResult, Evict, ExplainOptions, Explanation, Inputs, KeyOptions, KnockedKeys,
    Knockout, TraceEviction, TraceKnockout, read,
};
use fathom_sinks::{Manifest, ModelNote, Preset, RunDir, RunWriter, ScanOptions, TracesNote, scan};
use serde_json::Value;
use tempfile::TempDir;

/// A scan of the planted model.
struct Scanned {
    model: Transformer<Cpu>,
    dir: TempDir,
}

impl Scanned {
    fn new() -> Scanned {
        let options =
            CpuOptions { precision: Precision::F32, threads: Some(2), ..CpuOptions::default() };
        let model = Transformer::load(&planted(), Cpu::new(options).unwrap()).unwrap();
        let note = ModelNote::new("planted", &planted(), model.config()).unwrap();
        let file = TracesNote::new(&planted().join("traces.jsonl")).unwrap();
        let options = ScanOptions::new(Preset::Paper);
        let manifest = Manifest::new(note, file, "cpu".to_owned(), options);
        let dir = tempfile::tempdir().unwrap();
        let writer = RunWriter::create(&dir.path().join("run"), manifest).unwrap();
        scan(&model, &traces(), &|_| None, writer, &mut ()).unwrap();
        Scanned { model, dir }
    }

    fn run(&self) -> RunDir {
        RunDir::open(&self.dir.path().join("run")).unwrap()
    }

    fn explain<T: AnalysisResult>(&self, keys: KeyOptions) -> T {
        let (run, options) = (self.run(), ExplainOptions { keys, ..ExplainOptions::default() });
        let explanation = Explanation::new(&run, &[T::ANALYSIS], options).unwrap();
        let checkpoint = Checkpoint::open(&planted()).unwrap();
        let inputs = Inputs {
            model: &self.model,
            checkpoint: &checkpoint,
            traces: &traces(),
            text: &|_| None,
            engine: "cpu",
        };
        explanation.with_model(&inputs, &mut ()).unwrap();
        read::<T>(run.dir()).unwrap().unwrap().result
    }
}

fn golden() -> Value {
    serde_json::from_str(include_str!("data/attention/golden.json")).unwrap()
}

fn indices(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Compares a number with the golden one of that name, which was computed in f64.
fn close(got: f64, want: &Value, name: &str) {
    let number = want[name].as_f64().unwrap();
    let same = (got - number).abs() <= 1e-4 * number.abs() + 2e-6;
    assert!(same, "{name} is {got}, expected {number}: {want}");
}

#[test]
fn knocking_out_keys_is_masking_eager_attention() {
    let (scanned, golden) = (Scanned::new(), golden());
    let draws = golden["draws"].as_u64().unwrap() as usize;
    for case in golden["knockout"].as_array().unwrap() {
        let knockout_layers = indices(&case["layers"]);
        let knockout_by = serde_json::from_value(case["by"].clone()).unwrap();
        let keys = KeyOptions { knockout_by, knockout_layers, draws, ..KeyOptions::DEFAULT };
        let knockout: Knockout = scanned.explain(keys);
        assert_eq!(knockout.layers, indices(&case["layers"]));
        let want = case["traces"].as_array().unwrap();
        assert_eq!(knockout.traces.len(), want.len());
        assert!(knockout.traces.iter().any(|one| one.kl > 1e-3), "something happens");
        for (got, want) in knockout.traces.iter().zip(want) {
            same_knockout(got, want);
        }
        // A sum over traces is the sum of what was found in each.
        for variant in &knockout.variants {
            let of = knockout.traces.iter().filter(|one| one.keys == variant.keys);
            let (mut positions, mut kl, mut top1) = (0, 0.0, 0);
            for one in of {
                positions += one.positions;
                kl += one.kl * one.positions as f64;
                top1 += one.top1;
            }
            assert_eq!((variant.top1.n, variant.top1.count), (positions, top1));
            let mean = variant.kl.unwrap().mean;
            assert!((mean - kl / positions as f64).abs() < 1e-9, "{variant:?}");
        }
    }
}

fn same_knockout(got: &TraceKnockout, want: &Value) {
    let keys: KnockedKeys = serde_json::from_value(want.clone()).unwrap();
    assert_eq!(got.keys, keys, "{want}");
    assert_eq!(got.trace as u64, want["trace"].as_u64().unwrap());
    assert_eq!(got.knocked, indices(&want["knocked"]), "{want}");
    assert_eq!(got.of_same_ids as u64, want["of_same_ids"].as_u64().unwrap(), "{want}");
    assert_eq!(got.positions as u64, want["positions"].as_u64().unwrap(), "{want}");
    assert_eq!(got.top1 as u64, want["top1"].as_u64().unwrap(), "{want}");
    close(got.kl, want, "kl");
    close(got.nll_before, want, "nll_before");
    close(got.nll_after, want, "nll_after");
    let attention = &got.attention;
    close(attention.freed, want, "freed");
    close(attention.to_bos, want, "to_bos");
    close(attention.to_primary, want, "to_primary");
    close(attention.to_secondary, want, "to_secondary");
    close(attention.to_others, want, "to_others");
    close(attention.entropy_before, want, "entropy_before");
    close(attention.entropy_after, want, "entropy_after");
    let gained = attention.to_bos + attention.to_primary + attention.to_secondary;
    assert!((gained + attention.to_others - attention.freed).abs() < 1e-6, "{attention:?}");
    let most = &want["receiver"];
    match got.receivers.first() {
        Some(receiver) => close(receiver.gained, most, "gained"),
        None => assert!(most["gained"].as_f64().unwrap() < 1e-9, "{want}"),
    }
}

#[test]
fn evicting_keys_is_masking_eager_attention() {
    let golden = golden();
    let budgets = [indices(&golden["budgets"]), vec![4096]].concat();
    let evict: Evict = Scanned::new().explain(KeyOptions { budgets, ..KeyOptions::DEFAULT });
    assert_eq!(evict.skipped, [4096]);
    let want = golden["evict"].as_array().unwrap();
    assert_eq!(evict.traces.len(), want.len());
    for (got, want) in evict.traces.iter().zip(want) {
        same_eviction(got, want);
    }
    assert!(evict.policies.iter().any(|one| one.kl.unwrap().mean > 0.01), "something happens");
}

fn same_eviction(got: &TraceEviction, want: &Value) {
    assert_eq!(serde_json::to_value(got.policy).unwrap(), want["policy"], "{want}");
    assert_eq!(got.trace as u64, want["trace"].as_u64().unwrap());
    assert_eq!(got.budget as u64, want["budget"].as_u64().unwrap());
    assert_eq!(got.positions as u64, want["positions"].as_u64().unwrap(), "{want}");
    assert_eq!(got.top1 as u64, want["top1"].as_u64().unwrap(), "{want}");
    close(got.kl, want, "kl");
    close(got.nll_before, want, "nll_before");
    close(got.nll_after, want, "nll_after");
    assert_eq!(got.repetition_before.is_some(), want["repetition_before"].is_number(), "{want}");
    if let (Some(before), Some(after)) = (got.repetition_before, got.repetition_after) {
        close(before, want, "repetition_before");
        close(after, want, "repetition_after");
    }
}

#[test]
fn settings_of_keys_matter_only_to_what_hides_keys() {
    let scanned = Scanned::new();
    let run = scanned.run();
    let left = |keys: KeyOptions| {
        let options = ExplainOptions { keys, ..ExplainOptions::default() };
        Explanation::new(&run, &[Analysis::Knockout, Analysis::Stages], options)
            .map(|explanation| explanation.analyses().to_vec())
    };
    let other = KeyOptions { draws: 0, ..KeyOptions::DEFAULT };
    let all = vec![Analysis::Stages, Analysis::Knockout];
    assert_eq!(left(KeyOptions::DEFAULT).unwrap(), all);
    let _: fathom_sinks::explain::Stages = scanned.explain(KeyOptions::DEFAULT);
    let knockout: Knockout = scanned.explain(other.clone());
    assert!(!knockout.variants.iter().any(|one| matches!(one.keys, KnockedKeys::Random { .. })));
    assert_eq!(left(other.clone()).unwrap(), []);
    assert_eq!(left(KeyOptions::DEFAULT).unwrap(), [Analysis::Knockout]);

    let refused = |keys: KeyOptions| left(keys).unwrap_err().to_string();
    let error = refused(KeyOptions { knockout_layers: vec![3, 16], ..other.clone() });
    assert!(error.contains("layer 16: the run's model has 16 layers"), "{error}");
    let error = refused(KeyOptions { budgets: vec![64, 63], ..other });
    assert!(error.contains("a budget of 63 keys is too small: expected at least 64"), "{error}");
}
