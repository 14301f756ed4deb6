//! Norms, dot products and edits on the device have the bits of those computed from rows on the
//! host, for any chunks and batches, on the CPU and on a device with its own memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{cpu, fixture};
use fathom_backend::{Backend, Precision};
use fathom_model::{
    Access, At, Change, Edit, EditProbe, Edits, LogitRows, Measured, Positions, Probe, Result,
    SequenceOptions, Site, Step, Transformer,
};
use fathom_vector::dot;
use foreign_backend::Foreign;

const REFERENCE_POSITIONS: [usize; 2] = [4, 1];
const TOKENS: [usize; 2] = [13, 9];

/// (sequence, site, layer, position) → norm, dot products.
type Numbers = BTreeMap<(usize, Site, usize, usize), (u32, Vec<u32>)>;

/// Sites with rows, in the order of the pass.
fn row_sites() -> impl Iterator<Item = Site> {
    Site::all().filter(|site| site.has_rows())
}

/// Computes norms and dot products on the host, from rows.
#[derive(Default)]
struct FromRows {
    rows: BTreeMap<(usize, Site, usize, usize), Vec<f32>>,
}

impl Probe for FromRows {
    fn access(&self, site: Site, _: usize) -> Access {
        if site.has_rows() { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let width = values.len() / at.positions.len();
        for (position, row) in at.positions.clone().zip(values.chunks(width)) {
            self.rows.insert((at.sequence, at.site, at.layer, position), row.to_vec());
        }
        Ok(())
    }
}

impl FromRows {
    fn numbers(&self) -> Numbers {
        let of = |(&(sequence, site, layer, position), row): (_, &Vec<f32>)| {
            let reference = |&at: &usize| &self.rows[&(sequence, site, layer, at)];
            let dots = REFERENCE_POSITIONS.iter().map(|at| dot(row, reference(at)).to_bits());
            let norm = dot(row, row).sqrt().to_bits();
            ((sequence, site, layer, position), (norm, dots.collect()))
        };
        self.rows.iter().map(of).collect()
    }
}

/// Requests norms at every layer and dot products at every second layer, computed on the device.
#[derive(Default)]
struct OnDevice {
    norms: BTreeMap<(usize, Site, usize, usize), u32>,
    dots: BTreeMap<(usize, Site, usize, usize), BTreeMap<usize, u32>>,
}

impl Probe for OnDevice {
    fn access(&self, site: Site, layer: usize) -> Access {
        match (site.has_rows(), layer % 2) {
            (false, _) => Access::Skip,
            (true, 0) if site == Site::ResidPost => Access::Massive,
            (true, 0) => Access::Dots,
            _ => Access::Norms,
        }
    }

    fn reference_positions(&self, _: usize) -> Vec<usize> {
        REFERENCE_POSITIONS.to_vec()
    }

    fn read(&mut self, at: &At, _: &[f32]) -> Result<()> {
        panic!("rows of {at:?} were read")
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        let key = |position| (at.sequence, at.site, at.layer, position);
        assert_eq!(measured.norms.len(), at.positions.len());
        for (position, norm) in at.positions.clone().zip(measured.norms) {
            assert_eq!(self.norms.insert(key(position), norm.to_bits()), None);
        }
        for (i, dots) in measured.dots.iter().enumerate() {
            let before = dots.before.iter().enumerate();
            for (position, dot) in before.chain(at.positions.clone().zip(dots.these)) {
                let of_row = self.dots.entry(key(position)).or_default();
                assert_eq!(of_row.insert(i, dot.to_bits()), None, "{at:?} {i} {position}");
            }
        }
        Ok(())
    }
}

fn ids(sequence: usize) -> Vec<u32> {
    (0..TOKENS[sequence] as u32).map(|i| (i * 31 + 7 * sequence as u32 + 3) % 200).collect()
}

/// Two sequences in one batch, in chunks.
fn run<B: Backend>(model: &Transformer<B>, chunk: usize, probe: &mut dyn Probe) {
    let mut sequences = [0, 1].map(|_| model.new_sequence(SequenceOptions::default()));
    let texts = [ids(0), ids(1)];
    for start in (0..TOKENS[0]).step_by(chunk) {
        let part = |ids: &'_ [u32]| start.min(ids.len())..(start + chunk).min(ids.len());
        // The longer sequence is first, so its index stays 0 after the other one has ended.
        let steps = sequences.iter_mut().zip(&texts).filter(|(_, ids)| !part(ids).is_empty());
        let mut steps: Vec<Step<'_, B>> = steps
            .map(|(sequence, ids)| Step {
                sequence,
                tokens: &ids[part(ids)],
                logits: LogitRows::None,
            })
            .collect();
        model.forward(&mut steps, Some(probe)).unwrap();
    }
}

fn assert_measured<B: Backend>(model: &Transformer<B>) {
    let mut rows = FromRows::default();
    run(model, 5, &mut rows);
    let want = rows.numbers();
    let layers = model.config().layers;
    assert!(layers > 1 && want.len() > row_sites().count() * TOKENS[0]);
    for chunk in [1, 2, 5, 13] {
        let mut probe = OnDevice::default();
        run(model, chunk, &mut probe);
        assert_eq!(probe.norms.len(), want.len(), "{chunk}");
        for (key, (norm, dots)) in &want {
            assert_eq!(probe.norms[key], *norm, "{chunk} {key:?}");
            let measured: Vec<u32> = probe
                .dots
                .get(key)
                .map(|dots| dots.values().copied().collect())
                .unwrap_or_default();
            let expected = if key.2 % 2 == 0 { dots.clone() } else { Vec::new() };
            assert_eq!(measured, expected, "{chunk} {key:?}");
        }
    }
}

#[test]
fn norms_and_dot_products_are_those_of_the_rows() {
    for (golden, precision) in [("llama3.2", Precision::F32), ("qwen3", Precision::Bf16)] {
        let dir = fixture("golden").join(golden);
        assert_measured(&Transformer::load(&dir, cpu(precision, 2, None)).unwrap());
        assert_measured(&Transformer::load(&dir, Foreign::new(cpu(precision, 2, None))).unwrap());
    }
}

#[test]
fn a_reference_position_without_a_row_is_an_error() {
    let model =
        Transformer::load(&fixture("golden/llama3.2"), cpu(Precision::F32, 1, None)).unwrap();
    let mut sequence = model.new_sequence(SequenceOptions::default());
    model.prefill(&mut sequence, &[1, 2, 3], 8, None, &mut |_| {}).unwrap();
    let mut probe = OnDevice::default();
    let error = model.prefill(&mut sequence, &[4, 5, 6], 8, Some(&mut probe), &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("position 4, which no pass with this probe computed"), "{error}");

    // A truncated reference position is replaced.
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut probe = OnDevice::default();
    model.prefill(&mut sequence, &[1, 2, 3, 4, 5, 6], 8, Some(&mut probe), &mut |_| {}).unwrap();
    model.truncate(&mut sequence, 2).unwrap();
    let mut probe = OnDevice::default();
    model.prefill(&mut sequence, &[9, 9, 9, 9], 8, Some(&mut probe), &mut |_| {}).unwrap();
    let first = (0, Site::ResidPost, 0, 2);
    assert_eq!(probe.dots[&first].len(), REFERENCE_POSITIONS.len());
}

/// Reads the sites that are edited, so that they are edited on the host.
struct Onlooker;

impl Probe for Onlooker {
    fn access(&self, _: Site, _: usize) -> Access {
        Access::Read
    }

    fn read(&mut self, _: &At, _: &[f32]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn edits_on_the_device_have_the_bits_of_edits_on_the_host() {
    let dir = fixture("golden").join("llama3.2");
    let on_host = Transformer::load(&dir, cpu(Precision::F32, 2, None)).unwrap();
    let on_device = Transformer::load(&dir, Foreign::new(cpu(Precision::F32, 2, None))).unwrap();
    let config = on_host.config();
    let some: Vec<f32> = (0..config.hidden).map(|i| i as f32 / 50.0 - 0.3).collect();
    let few = vec![0.5, -2.0];
    let changes = |values: &[f32]| {
        let values = values.to_vec();
        [
            Change::Zero,
            Change::Scale(-1.5),
            Change::Clamp(0.7),
            Change::Add(values.clone()),
            Change::Replace(values),
        ]
    };
    let positions = || Positions::These(vec![1..3, 6..usize::MAX]);
    let whole = changes(&some).map(|change| Edit::new(Site::ResidMid, 1, positions(), change));
    let columns = changes(&few).map(|change| Edit {
        columns: Some(vec![3, 17]),
        ..Edit::new(Site::MlpOut, 0, positions(), change)
    });
    let ids = ids(0);
    for edit in whole.into_iter().chain(columns) {
        let what = edit.to_string();
        let edits = Edits::new(vec![edit], config, Some(ids.len())).unwrap();
        let place = edits.iter().next().map(|edit| (edit.site, edit.layer)).unwrap();
        assert_eq!(EditProbe::new(&edits).access(place.0, place.1), Access::Change, "{what}");
        let plain = logits(&on_host, &ids, None);
        let mut onlooker = Onlooker;
        let mut on_the_host = EditProbe::new(&edits).observed_by(&mut onlooker);
        let want = logits(&on_host, &ids, Some(&mut on_the_host));
        assert!(want != plain, "{what} changes nothing");
        assert_eq!(logits(&on_host, &ids, Some(&mut EditProbe::new(&edits))), want, "{what}");
        assert_eq!(logits(&on_device, &ids, Some(&mut EditProbe::new(&edits))), want, "{what}");
    }
}

fn logits<B: Backend>(
    model: &Transformer<B>,
    ids: &[u32],
    mut probe: Option<&mut dyn Probe>,
) -> Vec<u32> {
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let mut all = Vec::new();
    for tokens in ids.chunks(5) {
        let mut step = [Step { sequence: &mut sequence, tokens, logits: LogitRows::All }];
        let probe: Option<&mut dyn Probe> = match &mut probe {
            Some(probe) => Some(&mut **probe),
            None => None,
        };
        let logits = model.forward(&mut step, probe).unwrap();
        all.extend(logits.step(model.backend(), 0).unwrap().iter().map(|x| x.to_bits()));
    }
    all
}
