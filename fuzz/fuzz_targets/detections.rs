//! A line of a detections file: parsing returns a detection or an error, and all tables can be
//! computed from a detection.
#![no_main]

use std::path::Path;

use fathom_sinks::{Preset, SinkRow, TokenRow, TraceDetection};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok(mut trace) = TraceDetection::parse(Path::new("detections.jsonl"), 1, line) {
        for preset in [Preset::Paper, Preset::Upstream] {
            trace.reclassify(preset, 48);
            let _ = SinkRow::new("model", None, std::slice::from_ref(&trace));
            let _ = TokenRow::new("model", std::slice::from_ref(&trace));
        }
    }
});
