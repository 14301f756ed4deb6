//! The standalone MLP equals the MLP of a pass.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use fathom_backend::Precision;
use fathom_model::{Access, At, Error, Probe, SequenceOptions, Site};

/// Records inputs and outputs of the MLPs.
#[derive(Default)]
struct InOut(BTreeMap<(Site, usize), Vec<f32>>);

impl Probe for InOut {
    fn access(&self, site: Site, _: usize) -> Access {
        if matches!(site, Site::MlpIn | Site::MlpOut) { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<(), Error> {
        self.0.entry((at.site, at.layer)).or_default().extend_from_slice(values);
        Ok(())
    }
}

#[test]
fn mlp_out_has_the_same_bits_in_a_pass_and_alone() {
    for golden in ["qwen2", "phi3"] {
        for precision in [Precision::F32, Precision::Bf16] {
            let model = common::load(&common::fixture(&format!("golden/{golden}")), precision);
            let mut seen = InOut::default();
            let mut sequence = model.new_sequence(SequenceOptions::default());
            let ids = [1, 17, 23, 99, 4, 56, 77];
            model.prefill(&mut sequence, &ids, 3, Some(&mut seen), &mut |_| {}).unwrap();
            for layer in 0..model.config().layers {
                let alone = model.mlp(layer, &seen.0[&(Site::MlpIn, layer)]).unwrap();
                assert!(alone == seen.0[&(Site::MlpOut, layer)], "{golden} {precision:?} {layer}");
            }
            let hidden = model.config().hidden;
            assert!(
                model.mlp(99, &vec![0.0; hidden]).unwrap_err().to_string().contains("layer 99")
            );
            assert!(model.mlp(0, &vec![0.0; hidden + 1]).is_err());
        }
    }
}
