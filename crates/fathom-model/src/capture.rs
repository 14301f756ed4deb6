//! Captures: values of a pass, recorded by a probe in a safetensors file or in memory.

mod file;
mod memory;
mod recorder;

use std::ops::Range;
use std::path::Path;

use fathom_backend::Backend;

use crate::site::Layout;
use crate::{
    Access, At, EditProbe, Edits, Error, ModelConfig, PREFILL_CHUNK, Probe, Result, Sequence,
    SequenceOptions, Site, Transformer,
};
use file::CaptureFile;
pub use recorder::Recorder;

/// Which values to capture from a pass; by default none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CaptureRequest {
    /// Sites and layers, sorted and unique, in the order of the file; layer 0 for sites outside the
    /// layers.
    places: Vec<(Site, usize)>,
    /// Positions to keep, ascending; `None`: all.
    positions: Option<Vec<usize>>,
    /// Edits made in the pass.
    edits: Edits,
}

impl CaptureRequest {
    /// Captures `sites` at `layers` (if empty, at every layer of the model). A site with its own
    /// layer ([`Site::parse`]) is captured at that layer only. `positions` are the tokens to keep,
    /// `None` for all.
    ///
    /// # Errors
    /// No site, or a layer the model does not have.
    pub fn new(
        sites: &[(Site, Option<usize>)],
        layers: &[usize],
        positions: Option<Vec<usize>>,
        config: &ModelConfig,
    ) -> Result<CaptureRequest> {
        if sites.is_empty() {
            return Err(Error::Request("no site to capture was named".to_owned()));
        }
        let every: Vec<usize> = (0..config.layers).collect();
        let layers = if layers.is_empty() { &every } else { layers };
        let named = sites.iter().filter_map(|(_, layer)| *layer);
        if let Some(layer) = layers.iter().copied().chain(named).find(|l| *l >= config.layers) {
            return Err(Error::Request(format!(
                "layer {layer} was asked for, but the model's layers are 0..={}",
                config.layers - 1
            )));
        }
        let mut places = Vec::new();
        for (site, layer) in sites {
            match layer {
                Some(layer) => places.push((*site, *layer)),
                None if !site.per_layer() => places.push((*site, 0)),
                None => places.extend(layers.iter().map(|layer| (*site, *layer))),
            }
        }
        places.sort_unstable();
        places.dedup();
        let request = CaptureRequest { places, positions: None, edits: Edits::default() };
        Ok(match positions {
            Some(positions) => request.at_positions(positions),
            None => request,
        })
    }

    /// Keeps only these positions.
    pub fn at_positions(self, mut positions: Vec<usize>) -> CaptureRequest {
        positions.sort_unstable();
        positions.dedup();
        CaptureRequest { positions: Some(positions), ..self }
    }

    /// Captures a pass in which `edits` are made. The captured values are those after the edits.
    pub fn with_edits(self, edits: Edits) -> CaptureRequest {
        CaptureRequest { edits, ..self }
    }

    /// Number of layers a pass must compute to reach every requested site.
    pub fn layers(&self, config: &ModelConfig) -> usize {
        let needed = |(site, layer): &(Site, usize)| site.layers_needed(*layer, config.layers);
        self.places.iter().map(needed).max().unwrap_or(0)
    }

    /// Whether `site` is captured, at any layer.
    pub fn has(&self, site: Site) -> bool {
        self.places.iter().any(|(other, _)| *other == site)
    }

    /// Options for the sequence to capture from, for a text of `tokens` tokens.
    pub fn sequence_options(&self, config: &ModelConfig, tokens: usize) -> SequenceOptions {
        SequenceOptions {
            planned_len: Some(tokens),
            sink_scores: self.has(Site::SinkScore),
            attention_entropy: false,
            layers: Some(self.layers(config)),
        }
    }

    /// Checks that the text has tokens and all requested positions.
    fn check(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("there are no tokens to capture from".to_owned()));
        }
        let last = self.positions.as_ref().and_then(|positions| positions.last());
        match last.filter(|last| **last >= ids.len()) {
            None => Ok(()),
            Some(last) => Err(Error::Request(format!(
                "position {last} was asked for, but the text has {} tokens",
                ids.len()
            ))),
        }
    }

    /// The tensors captured from a text of `tokens` tokens.
    fn tensors(&self, config: &ModelConfig, tokens: usize) -> Vec<TensorSpec> {
        let kept = self.positions.as_ref().map_or(tokens, Vec::len);
        let tensor = |(site, layer): &(Site, usize)| {
            let layout = site.layout(config);
            let shape = layout.captured_shape(kept, tokens);
            TensorSpec { site: *site, layer: *layer, layout, shape }
        };
        self.places.iter().map(tensor).collect()
    }

    /// Size in bytes of the values captured from a text of `tokens` tokens.
    pub fn bytes(&self, config: &ModelConfig, tokens: usize) -> u64 {
        let values = |tensor: &TensorSpec| tensor.shape.iter().map(|n| *n as u64).product::<u64>();
        self.tensors(config, tokens).iter().map(values).sum::<u64>() * 4
    }
}

/// Runs `ids` through the model and writes the values that `request` names to `out`: f32 tensors
/// called `site.layer` (`site` outside the layers), with the shapes of [`Site`], in which `T` is
/// the number of kept positions. `attn_weights` has the kept queries and all keys:
/// `[heads, kept, T]`.
///
/// Values are written as they are computed, so memory does not grow with the size of the capture.
/// The file gets its final name once it is complete. `progress` is called with the tokens done.
///
/// # Errors
/// `out` exists already or cannot be written; a position beyond the text; a token id outside the
/// vocabulary; no tokens.
pub fn capture<B: Backend>(
    model: &Transformer<B>,
    ids: &[u32],
    request: &CaptureRequest,
    out: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    request.check(ids)?;
    let tensors = request.tensors(model.config(), ids.len());
    let store = CaptureFile::create(model, ids, request, &tensors, out)?;
    let mut probe = CaptureProbe { request, tensors, tokens: ids.len(), store };
    probe.run(model, ids, progress)?;
    probe.store.finish()
}

/// As [`capture`], into memory. The results are sorted by site, in the order of [`Site::all`], then
/// by layer.
///
/// # Errors
/// A position beyond the text; a token id outside the vocabulary; no tokens; not enough memory
/// ([`CaptureRequest::bytes`] returns how much is needed).
pub fn capture_in_memory<B: Backend>(
    model: &Transformer<B>,
    ids: &[u32],
    request: &CaptureRequest,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Captured>> {
    let mut recorder = Recorder::new(request, model.config(), ids)?;
    recorder.0.run(model, ids, progress)?;
    Ok(recorder.into_captured())
}

/// The values captured at one site of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Captured {
    /// The site.
    pub site: Site,
    /// 0-based decoder layer; 0 for sites outside the layers.
    pub layer: usize,
    /// The shape of [`Site`], in which `T` is the number of kept positions.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// A tensor of the capture, without its values.
struct TensorSpec {
    site: Site,
    layer: usize,
    layout: Layout,
    shape: Vec<usize>,
}

impl TensorSpec {
    fn with_values(self, values: Vec<f32>) -> Captured {
        let TensorSpec { site, layer, shape, .. } = self;
        Captured { site, layer, shape, values }
    }
}

/// Storage for captured values.
trait CaptureStore {
    /// Writes `values` from element `index` of a tensor on.
    fn put(&mut self, tensor: usize, index: usize, values: &[f32]) -> Result<()>;
}

/// A probe that fills tensors of known shapes, in the order in which the pass computes them.
struct CaptureProbe<'a, S> {
    request: &'a CaptureRequest,
    /// One per (site, layer) of the request.
    tensors: Vec<TensorSpec>,
    tokens: usize,
    store: S,
}

impl<S: CaptureStore> CaptureProbe<'_, S> {
    fn run<B: Backend>(
        &mut self,
        model: &Transformer<B>,
        ids: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let request = self.request;
        let mut sequence = model.new_sequence(request.sequence_options(model.config(), ids.len()));
        // Logits are as wide as the vocabulary: shorter chunks limit their memory.
        let chunk = if request.has(Site::Logits) { PREFILL_CHUNK / 8 } else { PREFILL_CHUNK };
        let mut probe = EditProbe::new(&request.edits).observed_by(self);
        model.prefill(&mut sequence, ids, chunk, Some(&mut probe), progress)?;
        self.sink_scores(model, &sequence)
    }

    /// Captures the sink scores, which are complete only after the last chunk.
    fn sink_scores<B: Backend>(
        &mut self,
        model: &Transformer<B>,
        sequence: &Sequence<B>,
    ) -> Result<()> {
        for (site, layer) in &self.request.places {
            if *site == Site::SinkScore
                && let Some(scores) = model.sink_score(sequence, *layer)?
            {
                let at = At { site: *site, layer: *layer, sequence: 0, positions: 0..self.tokens };
                self.read(&at, &scores)?;
            }
        }
        Ok(())
    }

    /// The kept positions within `positions` as runs: one run if all positions are kept, otherwise
    /// one per position. A run is (offset within `positions`, index among all kept positions,
    /// length).
    fn kept_runs(&self, positions: &Range<usize>) -> Vec<(usize, usize, usize)> {
        let Some(kept) = &self.request.positions else {
            return vec![(0, positions.start, positions.len())];
        };
        let first = kept.partition_point(|p| *p < positions.start);
        let end = kept.partition_point(|p| *p < positions.end);
        (first..end).map(|index| (kept[index] - positions.start, index, 1)).collect()
    }
}

impl<S: CaptureStore> Probe for CaptureProbe<'_, S> {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.request.places.contains(&(site, layer)) && site != Site::SinkScore {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let Ok(tensor) = self.request.places.binary_search(&(at.site, at.layer)) else {
            return Ok(());
        };
        let n = at.positions.len();
        let total = self.request.positions.as_ref().map_or(self.tokens, Vec::len);
        for (from, to, len) in self.kept_runs(&at.positions) {
            match self.tensors[tensor].layout {
                Layout::Rows { width } => {
                    let rows = &values[from * width..(from + len) * width];
                    self.store.put(tensor, to * width, rows)?;
                }
                Layout::Heads { heads, head_dim } => {
                    let width = heads * head_dim;
                    for head in 0..heads {
                        let rows: Vec<f32> = (from..from + len)
                            .map(|row| row * width + head * head_dim)
                            .flat_map(|start| &values[start..start + head_dim])
                            .copied()
                            .collect();
                        self.store.put(tensor, (head * total + to) * head_dim, &rows)?;
                    }
                }
                Layout::Weights { heads } => {
                    let keys = at.positions.end;
                    for head in 0..heads {
                        for row in 0..len {
                            let start = (head * n + from + row) * keys;
                            let index = (head * total + to + row) * self.tokens;
                            self.store.put(tensor, index, &values[start..start + keys])?;
                        }
                    }
                }
                Layout::Scores { heads } => {
                    for head in 0..heads {
                        let start = head * n + from;
                        self.store.put(tensor, head * total + to, &values[start..start + len])?;
                    }
                }
            }
        }
        Ok(())
    }
}
