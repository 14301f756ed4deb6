//! `adapter_config.json`, as a stranger wrote it: a config or an error, and patterns that end.
#![no_main]

use std::path::Path;

use fathom_model::AdapterConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = AdapterConfig::parse(Path::new("adapter_config.json"), text) {
        for module in ["model.layers.11.self_attn.q_proj", "model.layers.0.mlp.down_proj"] {
            let _ = config.targets(module, true);
        }
        let _ = config.targets("model.embed_tokens", false);
    }
});
