//! Edits change the values they name and no others; edits that are impossible are refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use fathom_backend::Precision;
use fathom_kernels::Cpu;
use fathom_model::{
    Access, At, CaptureRequest, Change, Edit, EditProbe, Edits, Error, LogitRows, Positions, Probe,
    SequenceOptions, Site, Step, Transformer, capture,
};
use proptest::prelude::*;

const IDS: [u32; 12] = [1, 17, 23, 99, 4, 56, 77, 8, 120, 64, 33, 5];

fn model() -> Transformer<Cpu> {
    common::load(&common::fixture("golden/qwen2"), Precision::F32)
}

/// Records the rows of chosen sites.
struct Keep {
    sites: Vec<Site>,
    rows: BTreeMap<(Site, usize), Vec<f32>>,
}

impl Probe for Keep {
    fn access(&self, site: Site, _: usize) -> Access {
        if self.sites.contains(&site) { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<(), Error> {
        self.rows.entry((at.site, at.layer)).or_default().extend_from_slice(values);
        Ok(())
    }
}

/// Rows of `sites`, by (site, layer), in a pass with `edits` over [`IDS`], `chunk` at a time.
fn pass(
    model: &Transformer<Cpu>,
    edits: &Edits,
    sites: &[Site],
    chunk: usize,
) -> BTreeMap<(Site, usize), Vec<f32>> {
    let mut keep = Keep { sites: sites.to_vec(), rows: BTreeMap::new() };
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut probe = EditProbe::new(edits).observed_by(&mut keep);
    model.prefill(&mut sequence, &IDS, chunk, Some(&mut probe), &mut |_| {}).unwrap();
    keep.rows
}

fn checked(model: &Transformer<Cpu>, edits: &[&str]) -> Result<Edits, String> {
    let edits = edits.iter().map(|text| Edit::parse(text)).collect::<Result<Vec<_>, _>>();
    edits
        .and_then(|edits| Edits::new(edits, model.config(), Some(IDS.len())))
        .map_err(|error| error.to_string())
}

fn row(rows: &[f32], width: usize, position: usize) -> &[f32] {
    &rows[position * width..(position + 1) * width]
}

#[test]
fn every_change_has_its_effect_at_its_positions_only() {
    let model = model();
    let hidden = model.config().hidden;
    let plain = pass(&model, &Edits::default(), &[Site::MlpOut], 5);
    let before = &plain[&(Site::MlpOut, 1)];
    let mean: Vec<f32> = (0..hidden)
        .map(|c| ((0..4).map(|t| f64::from(before[t * hidden + c])).sum::<f64>() / 4.0) as f32)
        .collect();
    let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    let old = row(before, hidden, 7);
    type Expected<'a> = &'a dyn Fn(usize) -> f32;
    let cases: [(&str, Expected<'_>); 6] = [
        ("zero", &|_| 0.0),
        ("scale(-2)", &|c| old[c] * -2.0),
        ("clamp(0.01)", &|c| old[c] * (0.01 / norm(old))),
        ("clamp(1000000)", &|c| old[c]),
        ("copy(3)", &|c| before[3 * hidden + c]),
        ("mean(0..4)", &|c| mean[c]),
    ];
    for (change, expected) in cases {
        for chunk in [1, 5, 12] {
            let edits = checked(&model, &[&format!("mlp_out.1@7={change}")]).unwrap();
            let edited = pass(&model, &edits, &[Site::MlpOut], chunk);
            let after = &edited[&(Site::MlpOut, 1)];
            for t in 0..IDS.len() {
                for c in 0..hidden {
                    let expected = if t == 7 { expected(c) } else { before[t * hidden + c] };
                    let found = after[t * hidden + c];
                    let close = (found - expected).abs() <= 1e-6 * expected.abs();
                    assert!(close, "{change} in chunks of {chunk}: {t} {c}: {found} {expected}");
                }
            }
            // Earlier layers are unchanged, the last one is not.
            assert_eq!(edited[&(Site::MlpOut, 0)], plain[&(Site::MlpOut, 0)]);
        }
    }
}

#[test]
fn an_edit_affects_later_positions_and_layers_only() {
    let model = model();
    let hidden = model.config().hidden;
    let last = model.config().layers - 1;
    let plain = pass(&model, &Edits::default(), &[Site::ResidPost], 12);
    let edits = checked(&model, &["resid_pre.0@4=scale(3)"]).unwrap();
    let edited = pass(&model, &edits, &[Site::ResidPost], 12);
    for t in 0..IDS.len() {
        let at = (Site::ResidPost, last);
        let same = row(&plain[&at], hidden, t) == row(&edited[&at], hidden, t);
        assert_eq!(same, t < 4, "{t}");
    }
}

#[test]
fn columns_are_neurons() {
    let model = model();
    let width = model.config().intermediate;
    let edits = checked(&model, &["mlp_elementwise.1[2,5..=6]@3..=zero"]).unwrap();
    assert_eq!(edits, checked(&model, &["mlp_elementwise.1[2,5,6]@3..=zero"]).unwrap());
    let plain = pass(&model, &Edits::default(), &[Site::MlpElementwise], 4);
    let edited = pass(&model, &edits, &[Site::MlpElementwise], 4);
    for (i, value) in edited[&(Site::MlpElementwise, 1)].iter().enumerate() {
        let (t, c) = (i / width, i % width);
        let zero = t >= 3 && [2, 5, 6].contains(&c);
        let expected = if zero { 0.0 } else { plain[&(Site::MlpElementwise, 1)][i] };
        assert_eq!(*value, expected, "{t} {c}");
    }
}

#[test]
fn an_aligned_edit_finds_its_tokens_by_cosine() {
    let model = model();
    let hidden = model.config().hidden;
    let plain = pass(&model, &Edits::default(), &[Site::MlpOut], 12);
    let direction = row(&plain[&(Site::MlpOut, 0)], hidden, 6).to_vec();
    let positions = Positions::Aligned { direction, cosine: 0.999, from: 1 };
    let edit = Edit::new(Site::MlpOut, 0, positions, Change::Zero);
    let edits = Edits::new(vec![edit], model.config(), None).unwrap();
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut probe = EditProbe::new(&edits);
    model.prefill(&mut sequence, &IDS, 5, Some(&mut probe), &mut |_| {}).unwrap();
    assert_eq!(probe.aligned(), [(Site::MlpOut, 0, 6)]);
}

#[test]
fn impossible_edits_are_refused() {
    let model = model();
    let layers = model.config().layers;
    let hidden = model.config().hidden;
    let cases: &[(&[&str], &str)] = &[
        (&["mlp_out.1@17=zero"], "there is no such position, the text has 12 tokens"),
        (&[&format!("mlp_out.{layers}@1=zero")], "no such layer"),
        (&["attn_weights.0@1=zero"], "can be read, but not edited"),
        (&["sink_score.0@1=zero"], "can be read, but not edited"),
        (&["mlp_out@1=zero"], "needs its layer"),
        (&["embed.1@1=zero"], "has no layers"),
        (&["nonsense.1@1=zero"], "unknown site"),
        (&["mlp_out.1=zero"], "expected SITE.LAYER@POSITIONS=CHANGE"),
        (&["mlp_out.1@1"], "expected SITE.LAYER@POSITIONS=CHANGE"),
        (&["mlp_out.1@x=zero"], "`x` is not a number"),
        (&["mlp_out.1@3..3=zero"], "the range `3..3` is empty"),
        (&["mlp_out.1@3,2..4=zero"], "named twice"),
        (&["mlp_out.1[0,0]@3=zero"], "named twice"),
        (&[&format!("mlp_out.1[{hidden}]@3=zero")], "no column"),
        (&["mlp_out.1[0..99999999999]@3=zero"], "more than"),
        (&["mlp_out.1@3=half"], "is not one of zero"),
        (&["mlp_out.1@3=scale(x)"], "`x` is not a number"),
        (&["mlp_out.1@3=scale(inf)"], "finite"),
        (&["mlp_out.1@3=clamp(-1)"], "not negative"),
        (&["mlp_out.1@3=copy(3)"], "the copied position must be before all changed ones"),
        (&["mlp_out.1@3=mean(1..)"], "the positions of the mean must be before all changed ones"),
        (&["mlp_out.1@3=replace(nowhere.safetensors:mlp_out.1:0)"], "cannot be read"),
        (&["mlp_out.1@3=replace(0)"], "is not FILE:TENSOR:ROW"),
        (&["mlp_out.1@3=zero", "mlp_out.1@2..5=scale(2)"], "their order would matter"),
        (&["mlp_out.1@*=zero", "mlp_out.1[3]@5=scale(2)"], "their order would matter"),
    ];
    for (edits, problem) in cases {
        let error = checked(&model, edits).unwrap_err();
        assert!(error.contains(problem), "{edits:?}: {error}");
    }
    // Two edits are compatible if they commute or change different values.
    checked(&model, &["mlp_out.1@3=zero", "mlp_out.1@4=scale(2)", "mlp_out.0@3=zero"]).unwrap();
    checked(&model, &["mlp_out.1@3=scale(3)", "mlp_out.1@2..5=scale(2)"]).unwrap();
    checked(&model, &["mlp_out.1[1]@3=zero", "mlp_out.1[2]@3=scale(2)"]).unwrap();

    let short = Edit::new(Site::MlpOut, 0, 3, Change::Replace(vec![0.0; 3]));
    let error = Edits::new(vec![short], model.config(), None).unwrap_err().to_string();
    assert!(error.contains(&format!("3 values are given for {hidden} columns")), "{error}");
}

#[test]
fn edits_round_trip_through_text() {
    for text in ["mlp_out.3@17=zero", "embed@*=scale(0.5)", "q.1[0,3]@2..5,9..=clamp(4)"] {
        assert_eq!(Edit::parse(text).unwrap().to_string(), text);
    }
    assert_eq!(Edit::parse("v.0@3..=5=zero").unwrap().to_string(), "v.0@3..6=zero");
    let lens = Edit::parse("blocks.3.hook_mlp_out@17=copy(2)").unwrap();
    assert_eq!(lens.to_string(), "mlp_out.3@17=copy(2)");
}

#[test]
fn a_vector_of_a_capture_can_replace_a_row() {
    let model = model();
    let hidden = model.config().hidden;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("captured.safetensors");
    let request = CaptureRequest::new(&[(Site::ResidPost, Some(0))], &[], None, model.config());
    capture(&model, &IDS, &request.unwrap(), &file, &mut |_| {}).unwrap();

    let text = format!("resid_post.0@9=replace({}:resid_post.0:2)", file.display());
    let edits = checked(&model, &[&text]).unwrap();
    let edited = pass(&model, &edits, &[Site::ResidPost], 12);
    let rows = &edited[&(Site::ResidPost, 0)];
    assert_eq!(row(rows, hidden, 9), row(rows, hidden, 2));
    for (part, problem) in [("resid_post.1:2", "is missing"), ("resid_post.0:12", "no row 12")] {
        let text = format!("resid_post.0@9=replace({}:{part})", file.display());
        assert!(checked(&model, &[&text]).unwrap_err().contains(problem));
    }

    // A capture with edits holds the edited values, and its metadata lists the edits.
    let file = dir.path().join("edited.safetensors");
    let request = CaptureRequest::new(&[(Site::ResidPost, Some(0))], &[], None, model.config());
    let request = request.unwrap().with_edits(edits);
    capture(&model, &IDS, &request, &file, &mut |_| {}).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let captured: Vec<f32> = tensors
        .tensor("resid_post.0")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    assert_eq!(&captured, rows);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let edits = &metadata.metadata().as_ref().unwrap()["edits"];
    assert_eq!(edits, &format!("resid_post.0@9=replace({hidden} values)"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The order in which edits are declared does not change a bit of the logits.
    #[test]
    fn declared_order_does_not_matter(
        order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let texts = [
            "mlp_out.1@3=scale(0.3)",
            "mlp_out.1@2..6=scale(1.7)",
            "mlp_out.1@3=scale(-1.1)",
            "resid_post.0@8=copy(2)",
            "attn_out.1@5..9=mean(0..3)",
            "mlp_elementwise.0[1,4]@*=zero",
        ];
        let model = model();
        let logits = |texts: &[&str]| {
            let edits = checked(&model, texts).unwrap();
            let mut sequence = model.new_sequence(SequenceOptions::default());
            let mut step =
                [Step { sequence: &mut sequence, tokens: &IDS, logits: LogitRows::All }];
            let logits = model.forward(&mut step, Some(&mut EditProbe::new(&edits))).unwrap();
            logits.step(model.backend(), 0).unwrap()
        };
        let shuffled: Vec<&str> = order.iter().map(|i| texts[*i]).collect();
        prop_assert_eq!(logits(&shuffled), logits(&texts));
    }
}
