//! An untrusted `config.json`: parsing returns a consistent config or an error.
#![no_main]

use std::path::Path;

use fathom_model::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = ModelConfig::parse(Path::new("config.json"), text) {
        assert!(config.kv_heads > 0 && config.heads % config.kv_heads == 0, "{config:?}");
        assert_eq!(config.windows.len(), config.layers, "{config:?}");
    }
});
