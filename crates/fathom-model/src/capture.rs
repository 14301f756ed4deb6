//! Keeping what a probe sees, as it is computed: in a safetensors file, or in memory.

mod file;
mod memory;
mod recorder;

use std::ops::Range;
use std::path::Path;

use fathom_backend::Backend;

use crate::site::Layout;
use crate::{
    Access, At, EditProbe, Edits, Error, Model, ModelConfig, PREFILL_CHUNK, Probe, Result,
    Sequence, SequenceOptions, Site,
};
use file::CaptureFile;
pub use recorder::Recorder;

/// What to capture from one pass; by default nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CaptureRequest {
    /// Sites and layers, each once, in the order of the file; layer 0 for sites without layers.
    places: Vec<(Site, usize)>,
    /// Positions to keep, ascending; `None`: all.
    positions: Option<Vec<usize>>,
    /// What is changed in the pass.
    edits: Edits,
}

impl CaptureRequest {
    /// Captures `sites` at `layers` (all of the model's where empty). A site that names its own
    /// layer ([`Site::parse`]) is captured there only. `positions`: the tokens to keep, `None` for
    /// all.
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

    /// Keeps these tokens only.
    pub fn at_positions(self, mut positions: Vec<usize>) -> CaptureRequest {
        positions.sort_unstable();
        positions.dedup();
        CaptureRequest { positions: Some(positions), ..self }
    }

    /// Captures a pass in which `edits` are made; what is captured is what the pass goes on with.
    pub fn with_edits(self, edits: Edits) -> CaptureRequest {
        CaptureRequest { edits, ..self }
    }

    /// How many layers a pass must compute to show all of this: nothing later is needed.
    pub fn layers(&self, config: &ModelConfig) -> usize {
        let needed = |(site, layer): &(Site, usize)| match site {
            Site::Embed => 0,
            Site::FinalNorm | Site::Logits => config.layers,
            _ => layer + 1,
        };
        self.places.iter().map(needed).max().unwrap_or(0)
    }

    /// Whether `site` is captured, at any layer.
    pub fn has(&self, site: Site) -> bool {
        self.places.iter().any(|(other, _)| *other == site)
    }

    /// How the sequence must be made whose passes show all of this, of a text of `tokens` tokens.
    pub fn sequence_options(&self, config: &ModelConfig, tokens: usize) -> SequenceOptions {
        SequenceOptions {
            planned_len: Some(tokens),
            sink_scores: self.has(Site::SinkScore),
            layers: Some(self.layers(config)),
        }
    }

    /// Refuses ids that nothing can be captured from.
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

    /// The shapes of what is captured from a text of `tokens` tokens.
    fn tensors(&self, config: &ModelConfig, tokens: usize) -> Vec<Tensor> {
        let kept = self.positions.as_ref().map_or(tokens, Vec::len);
        let tensor = |(site, layer): &(Site, usize)| {
            let layout = site.layout(config);
            let shape = match layout {
                Layout::Rows { width } => vec![kept, width],
                Layout::Heads { heads, head_dim } => vec![heads, kept, head_dim],
                Layout::Weights { heads } => vec![heads, kept, tokens],
                Layout::Scores { heads } => vec![heads, kept],
            };
            Tensor { site: *site, layer: *layer, layout, shape }
        };
        self.places.iter().map(tensor).collect()
    }

    /// Bytes of values the capture of a text of `tokens` tokens holds.
    pub fn bytes(&self, config: &ModelConfig, tokens: usize) -> u64 {
        let kept = self.positions.as_ref().map_or(tokens, Vec::len) as u64;
        let per_position = |(site, _): &(Site, usize)| match site.layout(config) {
            Layout::Rows { width } => width as u64,
            Layout::Heads { heads, head_dim } => (heads * head_dim) as u64,
            Layout::Weights { heads } => heads as u64 * tokens as u64,
            Layout::Scores { heads } => heads as u64,
        };
        self.places.iter().map(per_position).sum::<u64>() * kept * 4
    }
}

/// Runs `ids` through the model and writes what `request` names to `out`: f32 tensors called
/// `site.layer` (`site` for those without layers), shaped as [`Site`] says with the kept positions
/// for `T`. `attn_weights` keeps rows (queries) only: `[heads, kept, T]`.
///
/// Values go to the file as they are computed, so memory does not grow with what is captured. The
/// file appears under its name once it is whole. `progress` is called with the tokens done.
///
/// # Errors
/// `out` exists already or cannot be written; a position beyond the text; a token id outside the
/// vocabulary; no tokens.
pub fn capture<B: Backend>(
    model: &Model<B>,
    ids: &[u32],
    request: &CaptureRequest,
    out: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    request.check(ids)?;
    let tensors = request.tensors(model.config(), ids.len());
    let store = CaptureFile::create(model, ids, request, &tensors, out)?;
    let mut filling = Filling { request, tensors, tokens: ids.len(), store };
    filling.run(model, ids, progress)?;
    filling.store.finish()
}

/// As [`capture`], into memory: each place that `request` names, in the order of the forward pass.
///
/// # Errors
/// A position beyond the text; a token id outside the vocabulary; no tokens; more values than there
/// is memory for ([`CaptureRequest::bytes`] says how many there are).
pub fn capture_in_memory<B: Backend>(
    model: &Model<B>,
    ids: &[u32],
    request: &CaptureRequest,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Captured>> {
    let mut recorder = Recorder::new(request, model.config(), ids)?;
    recorder.0.run(model, ids, progress)?;
    Ok(recorder.into_captured())
}

/// What was captured at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Captured {
    /// The site.
    pub site: Site,
    /// 0-based decoder layer; 0 for sites without layers.
    pub layer: usize,
    /// As [`Site`] says, with the kept positions for `T`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// A place that is captured.
struct Tensor {
    site: Site,
    layer: usize,
    layout: Layout,
    shape: Vec<usize>,
}

impl Tensor {
    fn filled(self, values: Vec<f32>) -> Captured {
        let Tensor { site, layer, shape, .. } = self;
        Captured { site, layer, shape, values }
    }
}

/// Where captured values go.
trait Store {
    /// Puts `values` at element `index` of a tensor.
    fn put(&mut self, tensor: usize, index: usize, values: &[f32]) -> Result<()>;
}

/// A probe that fills tensors of known shapes, in the order the pass produces their parts.
struct Filling<'a, S> {
    request: &'a CaptureRequest,
    /// One per place.
    tensors: Vec<Tensor>,
    tokens: usize,
    store: S,
}

impl<S: Store> Filling<'_, S> {
    fn run<B: Backend>(
        &mut self,
        model: &Model<B>,
        ids: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let request = self.request;
        let mut sequence = model.new_sequence(request.sequence_options(model.config(), ids.len()));
        // Logits are as wide as the vocabulary: fewer rows at a time keep them small.
        let chunk = if request.has(Site::Logits) { PREFILL_CHUNK / 8 } else { PREFILL_CHUNK };
        let mut probe = EditProbe::new(&request.edits).watched_by(self);
        model.prefill(&mut sequence, ids, chunk, Some(&mut probe), progress)?;
        self.sink_scores(model, &sequence)
    }

    /// Takes the sink scores of a sequence that is over.
    fn sink_scores<B: Backend>(&mut self, model: &Model<B>, sequence: &Sequence<B>) -> Result<()> {
        for (site, layer) in &self.request.places {
            if let (Site::SinkScore, Some(scores)) = (site, model.sink_score(sequence, *layer)?) {
                let at = At { site: *site, layer: *layer, sequence: 0, positions: 0..self.tokens };
                self.read(&at, &scores)?;
            }
        }
        Ok(())
    }

    /// Runs of the given positions that are kept: (offset within `positions`, index among the kept,
    /// length).
    fn kept(&self, positions: &Range<usize>) -> Vec<(usize, usize, usize)> {
        let Some(kept) = &self.request.positions else {
            return vec![(0, positions.start, positions.len())];
        };
        let first = kept.partition_point(|p| *p < positions.start);
        let end = kept.partition_point(|p| *p < positions.end);
        (first..end).map(|index| (kept[index] - positions.start, index, 1)).collect()
    }
}

impl<S: Store> Probe for Filling<'_, S> {
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
        for (from, to, len) in self.kept(&at.positions) {
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
