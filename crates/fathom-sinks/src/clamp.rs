//! Clamping the sink direction of a layer: "Suppression" (docs/definitions.md).

use std::collections::BTreeSet;
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{
    Access, At, Change, Edit, Edits, Error, PREFILL_CHUNK, Positions, Probe, Result,
    SequenceOptions, Site, Transformer,
};
use fathom_vector::norm;
use serde::{Deserialize, Serialize};

use crate::{ScalarProbe, ScanOptions, detect};

/// An `mlp_out` is clamped if its cosine with the sink direction exceeds this.
///
/// The sink direction is taken from the reference's `resid_post`, not from its `mlp_out`. The two
/// agree in layers whose MLP writes the sink direction for the reference; in all other layers only
/// `resid_post` has it.
pub const CLAMP_COSINE: f32 = 0.98;

/// The clamp of `layer`: rescales the `mlp_out` of every token after the reference that has the
/// sink direction to the norm `norm`, if its own is larger.
pub fn clamp(layer: usize, direction: Vec<f32>, norm: f32, reference: usize) -> Edit {
    let positions = Positions::Aligned { direction, cosine: CLAMP_COSINE, from: reference + 1 };
    Edit::new(Site::MlpOut, layer, positions, Change::Clamp(norm))
}

/// A layer to clamp in texts that are being written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clamp {
    /// The layer.
    pub layer: usize,
    /// ‖mlp_out‖ of clamped tokens. `None`: the mean of the prompt's ordinary tokens, which are
    /// those after the reference without the sink direction.
    pub norm: Option<f32>,
}

/// The clamps of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextClamps {
    /// Position of the reference.
    pub reference: usize,
    /// Layer and norm of each clamp.
    pub norms: Vec<(usize, f32)>,
    /// The clamps as edits of the text's passes.
    pub edits: Arc<Edits>,
}

impl TextClamps {
    /// The clamps of a text with this prompt. The direction of each layer is that of the reference,
    /// chosen among the candidates in the prompt by the rules of `scan`. It does not depend on
    /// later tokens, so it is the reference's in the finished text too.
    ///
    /// # Errors
    /// No candidate in the prompt; a norm to be measured in a prompt without ordinary tokens; a
    /// layer that the model does not have; a pass that fails.
    pub fn of_prompt<B: Backend>(
        model: &Transformer<B>,
        prompt: &[u32],
        clamps: &[Clamp],
        scan: &ScanOptions,
    ) -> Result<TextClamps> {
        let layers = model.config().layers;
        if let Some(Clamp { layer, .. }) = clamps.iter().find(|clamp| clamp.layer >= layers) {
            return Err(Error::Request(format!(
                "sinks of layer {layer} are to be suppressed, but the model's layers are 0..={}",
                layers - 1
            )));
        }
        let reference = reference(model, prompt, scan)?;
        let mut directions = Directions { reference, clamps, rows: vec![Vec::new(); clamps.len()] };
        let last = clamps.iter().map(|clamp| clamp.layer + 1).max();
        run(model, prompt, reference + 1, last, &mut directions)?;
        let directions = directions.rows.iter().map(|row| unit(row));
        // The norms are filled in below.
        let unclamped = clamps.iter().zip(directions);
        let unclamped = unclamped.map(|(Clamp { layer, .. }, direction)| {
            clamp(*layer, direction, f32::INFINITY, reference)
        });
        let mut edits: Vec<Edit> = unclamped.collect();
        let given: Option<Vec<f32>> = clamps.iter().map(|clamp| clamp.norm).collect();
        let norms = match given {
            Some(norms) => norms,
            None => {
                let sums = vec![(0.0, 0); clamps.len()];
                let mut ordinary = OrdinaryNorms { reference, edits: &edits, sums };
                run(model, prompt, prompt.len(), last, &mut ordinary)?;
                let means = clamps.iter().zip(ordinary.sums);
                means.map(|(clamp, sum)| clamp.norm_or_mean(sum)).collect::<Result<_>>()?
            }
        };
        for (edit, norm) in edits.iter_mut().zip(&norms) {
            edit.change = Change::Clamp(*norm);
        }
        let norms = clamps.iter().map(|clamp| clamp.layer).zip(norms).collect();
        let edits = Arc::new(Edits::new(edits, model.config(), None)?);
        Ok(TextClamps { reference, norms, edits })
    }

    /// What the clamps did, given the positions that they changed at a layer.
    pub fn suppressed(&self, changed: impl Fn(usize) -> Vec<usize>) -> Suppressed {
        let clamped = |(layer, norm): &(usize, f32)| ClampedTokens {
            layer: *layer,
            norm: *norm,
            positions: changed(*layer),
        };
        let layers: Vec<ClampedTokens> = self.norms.iter().map(clamped).collect();
        let tokens: BTreeSet<usize> = layers.iter().flat_map(|l| &l.positions).copied().collect();
        Suppressed { reference: self.reference, tokens: tokens.len(), layers }
    }
}

/// What was suppressed in a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suppressed {
    /// Position of the reference.
    pub reference: usize,
    /// Number of clamped tokens, each counted once.
    pub tokens: usize,
    /// The clamped layers.
    pub layers: Vec<ClampedTokens>,
}

/// The tokens of a text that were clamped at a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClampedTokens {
    /// The layer.
    pub layer: usize,
    /// ‖mlp_out‖ after the clamp.
    pub norm: f32,
    /// Their positions, ascending. Tokens whose norm was not larger are not among them.
    pub positions: Vec<usize>,
}

impl Suppressed {
    /// The object as JSON.
    pub fn to_json(&self) -> String {
        // Serialization cannot fail: there are no maps, and norms are finite.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Clamp {
    /// Its norm, or the mean of `count` norms with this sum.
    fn norm_or_mean(&self, (sum, count): (f64, usize)) -> Result<f32> {
        match (self.norm, count) {
            (Some(norm), _) => Ok(norm),
            (None, 0) => Err(Error::Request(format!(
                "the prompt has no ordinary token to take the norm of layer {}'s clamp from; \
                 expected a norm, or a longer prompt",
                self.layer
            ))),
            (None, count) => Ok((sum / count as f64) as f32),
        }
    }
}

/// Position of the reference of a text with this prompt.
fn reference<B: Backend>(
    model: &Transformer<B>,
    prompt: &[u32],
    scan: &ScanOptions,
) -> Result<usize> {
    let within: Vec<usize> =
        scan.reference.iter().copied().filter(|position| *position < prompt.len()).collect();
    match within[..] {
        [] => Err(Error::Request(format!(
            "the prompt has {} tokens, and sinks are suppressed by a reference beyond it",
            prompt.len()
        ))),
        [only] => Ok(only),
        _ => {
            // Two tokens at least, with which `detect` chooses among the candidates.
            let tokens = within.iter().max().map_or(0, |last| last + 1);
            let options = ScanOptions { reference: within, ..scan.clone() };
            let layers = model.config().layers;
            let mut probe = ScalarProbe::new(layers, &prompt[..tokens], &options.scalars());
            run(model, prompt, tokens, None, &mut probe)?;
            Ok(detect(&probe.finish()?, &options.detect()).reference)
        }
    }
}

/// Runs the first `tokens` tokens of a prompt through the first `layers` layers.
fn run<B: Backend>(
    model: &Transformer<B>,
    prompt: &[u32],
    tokens: usize,
    layers: Option<usize>,
    probe: &mut dyn Probe,
) -> Result<()> {
    // The planned length is that of the text's own passes.
    let planned_len = Some(prompt.len());
    let options = SequenceOptions { planned_len, layers, ..SequenceOptions::default() };
    let mut sequence = model.new_sequence(options);
    model.prefill(&mut sequence, &prompt[..tokens], PREFILL_CHUNK, Some(probe), &mut |_| {})
}

/// Reads the reference's `resid_post` at each clamped layer.
struct Directions<'a> {
    reference: usize,
    clamps: &'a [Clamp],
    rows: Vec<Vec<f32>>,
}

impl Probe for Directions<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        match site == Site::ResidPost && self.clamps.iter().any(|clamp| clamp.layer == layer) {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let width = values.len() / at.positions.len().max(1);
        let mut rows = at.positions.clone().zip(values.chunks_exact(width.max(1)));
        let row = rows.find(|(position, _)| *position == self.reference);
        for (clamp, stored) in self.clamps.iter().zip(&mut self.rows) {
            if let (true, Some((_, row))) = (clamp.layer == at.layer, row) {
                *stored = row.to_vec();
            }
        }
        Ok(())
    }
}

/// Sums ‖mlp_out‖ of the ordinary tokens at each clamped layer.
struct OrdinaryNorms<'a> {
    reference: usize,
    edits: &'a [Edit],
    /// Sum and number of the norms, for each edit.
    sums: Vec<(f64, usize)>,
}

impl Probe for OrdinaryNorms<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.edits.iter().any(|edit| (edit.site, edit.layer) == (site, layer)) {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let width = values.len() / at.positions.len().max(1);
        let rows = || at.positions.clone().zip(values.chunks_exact(width.max(1)));
        let here = self.edits.iter().zip(&mut self.sums).filter(|(edit, _)| edit.layer == at.layer);
        for (edit, (sum, count)) in here {
            for (position, row) in rows().filter(|(position, _)| *position > self.reference) {
                if !edit.positions.contain(position, row) {
                    *sum += f64::from(norm(row));
                    *count += 1;
                }
            }
        }
        Ok(())
    }
}

/// The vector of norm 1 in the direction of `row`.
fn unit(row: &[f32]) -> Vec<f32> {
    let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    row.iter().map(|x| (f64::from(*x) / norm) as f32).collect()
}
