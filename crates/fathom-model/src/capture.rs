//! Writing what a probe sees to a safetensors file, as it is computed.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fathom_backend::{Backend, Precision};
use serde_json::{Map, Value, json};

use crate::site::Layout;
use crate::{
    Access, At, EditProbe, Edits, Error, Model, ModelConfig, PREFILL_CHUNK, Probe, Result,
    SequenceOptions, Site,
};

/// What to capture from one pass.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureRequest {
    /// Sites and layers, each once, in the order of the file; layer 0 for sites without layers.
    places: Vec<(Site, usize)>,
    /// Positions to keep, ascending; `None`: all.
    positions: Option<Vec<usize>>,
    /// What is changed in the pass.
    edits: Edits,
}

impl CaptureRequest {
    /// Captures `sites` at `layers` (all of the model's where empty). A site that names its own layer
    /// ([`Site::parse`]) is captured there only. `positions`: the tokens to keep, `None` for all.
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
        let positions = positions.map(|mut positions| {
            positions.sort_unstable();
            positions.dedup();
            positions
        });
        Ok(CaptureRequest { places, positions, edits: Edits::default() })
    }

    /// Captures a pass in which `edits` are made; what is captured is what the pass goes on with.
    pub fn with_edits(self, edits: Edits) -> CaptureRequest {
        CaptureRequest { edits, ..self }
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
/// `site.layer` (`site` for those without layers), shaped as [`Site`] says with the kept positions for
/// `T`. `attn_weights` keeps rows (queries) only: `[heads, kept, T]`.
///
/// Values go to the file as they are computed, so memory does not grow with what is captured. The file
/// appears under its name once it is whole. `progress` is called with the tokens done.
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
    if ids.is_empty() {
        return Err(Error::Request("there are no tokens to capture from".to_owned()));
    }
    let mut writer = Writer::create(model, ids, request, out)?;
    let wants = |site| request.places.iter().any(|(s, _)| *s == site);
    let mut sequence = model.new_sequence(SequenceOptions {
        planned_len: Some(ids.len()),
        sink_scores: wants(Site::SinkScore),
    });
    // Logits are as wide as the vocabulary: fewer rows at a time keep them small.
    let chunk = if wants(Site::Logits) { PREFILL_CHUNK / 8 } else { PREFILL_CHUNK };
    let mut probe = EditProbe::new(&request.edits).watched_by(&mut writer);
    model.prefill(&mut sequence, ids, chunk, Some(&mut probe), progress)?;
    for (site, layer) in &request.places {
        if let (Site::SinkScore, Some(scores)) = (site, model.sink_score(&sequence, *layer)?) {
            let at = At { site: *site, layer: *layer, sequence: 0, positions: 0..ids.len() };
            writer.read(&at, &scores)?;
        }
    }
    writer.finish()
}

/// A safetensors file of known shapes, filled in the order the pass produces its parts.
struct Writer<'a> {
    request: &'a CaptureRequest,
    tensors: Vec<Tensor>, // one per place
    tokens: usize,
    file: File,
    partial: PathBuf,
    out: PathBuf,
}

struct Tensor {
    layout: Layout,
    /// Byte offset of the tensor in the file.
    offset: u64,
}

impl<'a> Writer<'a> {
    fn create<B: Backend>(
        model: &Model<B>,
        ids: &[u32],
        request: &'a CaptureRequest,
        out: &Path,
    ) -> Result<Writer<'a>> {
        let tokens = ids.len();
        let last = request.positions.as_ref().and_then(|positions| positions.last());
        if let Some(last) = last.filter(|last| **last >= tokens) {
            return Err(Error::Request(format!(
                "position {last} was asked for, but the text has {tokens} tokens"
            )));
        }
        if out.exists() {
            return Err(Error::file(out, "already exists; choose another name or remove it"));
        }
        let kept = request.positions.as_ref().map_or(tokens, Vec::len);
        let precision = match model.backend().precision() {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        let mut header = Map::new();
        let mut metadata = json!({
            "format": "pt",
            "fathom_version": env!("CARGO_PKG_VERSION"),
            "precision": precision,
            "input_ids": Value::from(ids).to_string(),
            "positions": request.positions.as_ref().map_or("all".to_owned(), |p| json!(p).to_string()),
        });
        if !request.edits.is_empty() {
            let edits: Vec<String> = request.edits.iter().map(ToString::to_string).collect();
            metadata["edits"] = json!(edits.join("; "));
        }
        header.insert("__metadata__".to_owned(), metadata);
        let mut tensors = Vec::with_capacity(request.places.len());
        let mut end = 0u64;
        for (site, layer) in &request.places {
            let layout = site.layout(model.config());
            let shape = match layout {
                Layout::Rows { width } => vec![kept, width],
                Layout::Heads { heads, head_dim } => vec![heads, kept, head_dim],
                Layout::Weights { heads } => vec![heads, kept, tokens],
                Layout::Scores { heads } => vec![heads, kept],
            };
            let offset = end;
            end += shape.iter().map(|n| *n as u64).product::<u64>() * 4;
            let name = match site.per_layer() {
                true => format!("{site}.{layer}"),
                false => site.to_string(),
            };
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
            header.insert(name, entry);
            tensors.push(Tensor { layout, offset });
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;
        tensors.iter_mut().for_each(|tensor| tensor.offset += data);

        let partial = out.with_added_extension("partial");
        let mut file = File::create(&partial).map_err(Error::io(&partial, "cannot be written"))?;
        let written = file
            .write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .and_then(|()| file.set_len(data + end));
        let out = out.to_owned();
        let writer = Writer { request, tensors, tokens, file, partial, out };
        written.map_err(Error::io(&writer.partial, "cannot be written"))?;
        Ok(writer)
    }

    /// Writes `values` at element `index` of a tensor.
    fn write(&mut self, tensor: usize, index: usize, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let offset = self.tensors[tensor].offset + index as u64 * 4;
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(&bytes))
            .map_err(Error::io(&self.partial, "cannot be written"))
    }

    fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.partial, "cannot be written"))?;
        fs::rename(&self.partial, &self.out).map_err(Error::io(&self.out, "cannot be written"))
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

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // After `finish` there is nothing left under this name; after an error, half a capture.
        let _ = fs::remove_file(&self.partial);
    }
}

impl Probe for Writer<'_> {
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
                    self.write(tensor, to * width, rows)?;
                }
                Layout::Heads { heads, head_dim } => {
                    let width = heads * head_dim;
                    for head in 0..heads {
                        let rows: Vec<f32> = (from..from + len)
                            .map(|row| row * width + head * head_dim)
                            .flat_map(|start| &values[start..start + head_dim])
                            .copied()
                            .collect();
                        self.write(tensor, (head * total + to) * head_dim, &rows)?;
                    }
                }
                Layout::Weights { heads } => {
                    let keys = at.positions.end;
                    for head in 0..heads {
                        for row in 0..len {
                            let start = (head * n + from + row) * keys;
                            let index = (head * total + to + row) * self.tokens;
                            self.write(tensor, index, &values[start..start + keys])?;
                        }
                    }
                }
                Layout::Scores { heads } => {
                    for head in 0..heads {
                        let start = head * n + from;
                        self.write(tensor, head * total + to, &values[start..start + len])?;
                    }
                }
            }
        }
        Ok(())
    }
}
