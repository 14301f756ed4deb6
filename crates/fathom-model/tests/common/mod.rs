//! Shared by the tests of the forward pass: the golden checkpoints and comparisons with them.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions, Isa};
use fathom_model::Transformer;
use safetensors::SafeTensors;
use serde_json::Value;

/// Names of the golden checkpoints, sorted.
pub fn goldens() -> Vec<String> {
    let entries = fs::read_dir(fixture("golden")).unwrap().map(|entry| entry.unwrap());
    let dirs = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        dirs.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert!(names.len() >= 9, "{names:?}");
    names
}

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path)
}

pub fn cpu(precision: Precision, threads: usize, isa: Option<Isa>) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), precision, isa }).unwrap()
}

pub fn load(dir: &Path, precision: Precision) -> Transformer<Cpu> {
    Transformer::load(dir, cpu(precision, 2, None)).unwrap()
}

/// Every instruction set this machine can run.
pub fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect()
}

/// A tensor of a safetensors file, as f32, with its shape.
pub type Tensor = (Vec<usize>, Vec<f32>);

pub fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(path).unwrap();
    SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (name, (view.shape().to_vec(), values.collect()))
        })
        .collect()
}

/// ‖a − b‖ / ‖b‖, or ‖a‖ where b is zero.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square((*a - *b).into())).sum();
    let norm: f64 = b.iter().map(|b| square((*b).into())).sum();
    (difference / if norm == 0.0 { 1.0 } else { norm }).sqrt()
}

/// One prompt of a golden directory.
pub struct Prompt {
    pub file: String,
    pub input_ids: Vec<u32>,
    pub greedy_ids: Vec<u32>,
}

pub fn prompts(dir: &Path) -> Vec<Prompt> {
    let reference: Value =
        serde_json::from_slice(&fs::read(dir.join("reference.json")).unwrap()).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    reference["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| Prompt {
            file: prompt["file"].as_str().unwrap().to_owned(),
            input_ids: ids(&prompt["input_ids"]),
            greedy_ids: ids(&prompt["greedy_ids"]),
        })
        .collect()
}
