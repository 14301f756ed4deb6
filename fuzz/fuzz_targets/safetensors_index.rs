//! `model.safetensors.index.json`: parsing returns an error, or shard names inside the directory.
#![no_main]

use std::path::{Component, Path};

use fathom_model::parse_index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(index) = parse_index(Path::new("model.safetensors.index.json"), text) {
        for shard in index.values() {
            let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            assert!(Path::new(shard).components().all(inside), "{shard}");
        }
    }
});
