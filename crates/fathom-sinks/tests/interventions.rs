//! Edits of the planted model have the same effects as in HuggingFace (`interventions` of
//! truth.json).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    Access, At, Change, Edit, EditProbe, Edits, Probe, Result, SequenceOptions, Site, Transformer,
};
use fathom_sinks::{DetectOptions, Preset, ScalarOptions, ScalarProbe, detect};
use serde_json::Value;

fn planted() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/planted/basic")
}

fn json(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(planted().join(name)).unwrap();
    serde_json::Deserializer::from_str(&text).into_iter().map(|value| value.unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The layers at which the token at `position` is a sink in a pass with `edit`.
fn layers(
    model: &Transformer<Cpu>,
    ids: &[u32],
    position: usize,
    edit: Option<Edit>,
) -> Vec<usize> {
    let edits = Edits::new(edit.into_iter().collect(), model.config(), Some(ids.len())).unwrap();
    let options = ScalarOptions { candidates: vec![0], final_state: false, massive: false };
    let mut scalars = ScalarProbe::new(model.config().layers, ids, &options);
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut probe = EditProbe::new(&edits).observed_by(&mut scalars);
    model.prefill(&mut sequence, ids, 50, Some(&mut probe), &mut |_| {}).unwrap();
    let detection = detect(&scalars.finish().unwrap(), &DetectOptions::new(Preset::Paper));
    let sink = detection.sinks.into_iter().find(|sink| sink.position == position);
    sink.map_or(Vec::new(), |sink| sink.layers)
}

/// Records the embedding and the residual stream at the input of every layer, at one position.
struct States {
    position: usize,
    rows: BTreeMap<(Site, usize), Vec<f32>>,
}

impl Probe for States {
    fn access(&self, site: Site, _: usize) -> Access {
        match site {
            Site::ResidPre | Site::Embed => Access::Read,
            _ => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let width = values.len() / at.positions.len();
        if at.positions.contains(&self.position) {
            let row = (self.position - at.positions.start) * width;
            self.rows.insert((at.site, at.layer), values[row..row + width].to_vec());
        }
        Ok(())
    }
}

fn states(
    model: &Transformer<Cpu>,
    ids: &[u32],
    position: usize,
) -> BTreeMap<(Site, usize), Vec<f32>> {
    let mut states = States { position, rows: BTreeMap::new() };
    let mut sequence = model.new_sequence(SequenceOptions::default());
    model.prefill(&mut sequence, ids, 50, Some(&mut states), &mut |_| {}).unwrap();
    states.rows
}

#[test]
fn replaced_and_added_states_have_the_same_effects_as_in_huggingface() {
    let truth = json("truth.json").remove(0);
    let traces = json("traces.jsonl");
    let options =
        CpuOptions { precision: Precision::F32, threads: Some(2), ..CpuOptions::default() };
    let model = Transformer::load(&planted(), Cpu::new(options).unwrap()).unwrap();
    let interventions = truth["interventions"].as_array().unwrap();
    assert_eq!(interventions.len(), 3);
    for case in interventions {
        let number = |field: &str| case[field].as_u64().unwrap() as usize;
        let trace = &traces[number("sequence")]["input_ids"];
        let ids: Vec<u32> = serde_json::from_value(trace.clone()).unwrap();
        let (sink, at) = (number("sink_position"), number("swap_position"));
        let mut swapped = ids.clone();
        swapped[at] = number("donor_token_id") as u32;

        assert_eq!(layers(&model, &ids, sink, None), numbers(&case["layers_without_swap"]));
        let after = numbers(&case["layers_after_swapping_input_id"]);
        assert_eq!(layers(&model, &swapped, sink, None), after);

        let (ours, donor) = (states(&model, &ids, at), states(&model, &swapped, at));
        let embed = (Site::Embed, 0);
        let difference: Vec<f32> =
            donor[&embed].iter().zip(&ours[&embed]).map(|(new, old)| new - old).collect();
        for l in 0..model.config().layers {
            let place = (Site::ResidPre, l);
            let edit = |change| Some(Edit::new(Site::ResidPre, l, at, change));
            let replaced = edit(Change::Replace(donor[&place].clone()));
            let expected = numbers(&case["layers_after_replacing_state_at_layer"][l]);
            assert_eq!(layers(&model, &ids, sink, replaced), expected, "{} {l}", case["kind"]);
            let added = edit(Change::Add(difference.clone()));
            let expected = numbers(&case["layers_after_adding_embedding_difference_at_layer"][l]);
            assert_eq!(layers(&model, &ids, sink, added), expected, "{} {l}", case["kind"]);
        }
    }
}
