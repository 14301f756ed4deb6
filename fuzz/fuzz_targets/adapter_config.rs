//! An untrusted `adapter_config.json`: parsing returns a config or an error, and matching its
//! patterns ends.
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
