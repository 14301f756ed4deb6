//! Which sinks do not form if their vector is replaced by the mean token's: "Swapping"
//! (docs/definitions.md), paper Fig. 8.

use std::collections::BTreeMap;
use std::mem;

use fathom_backend::Backend;
use fathom_model::{
    Access, At, Change, Edit, EditProbe, Edits, LogitRows, Probe, Result, Sequence, Site, Step,
    Transformer,
};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{ScannedRun, ScannedTrace, Token, sample, secondary_tokens};
use super::{Analysis, AnalysisResult, ExplainProgress, Inputs, Share};
use crate::Preset;
use crate::vector::cosine_of;

/// How many sinks a swap suppresses, by place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// Secondary sinks that were swapped, one at a time.
    pub sinks: usize,
    /// Secondary sinks of the run.
    pub sinks_of: usize,
    /// By l_start, site (`resid_post`, `attn_out`, `mlp_out`), layer.
    pub cells: Vec<SwapCell>,
}

/// Swaps at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwapCell {
    /// First layer of the sinks that were swapped.
    pub l_start: usize,
    /// `resid_post`, `attn_out` or `mlp_out`.
    pub site: String,
    /// The layer, 0 to l_start + 1, at which the sink's vector was replaced by the mean over the
    /// trace's tokens that are not sinks.
    pub layer: usize,
    /// Sinks whose cosine at l_start is then no longer above the threshold.
    pub suppressed: Share,
}

impl AnalysisResult for Swap {
    const ANALYSIS: Analysis = Analysis::Swap;
}

/// Where vectors are swapped.
const SITES: [Site; 3] = [Site::ResidPost, Site::AttnOut, Site::MlpOut];

/// Swaps sinks one at a time.
///
/// Attention is causal, so a swap does not change earlier tokens. After the plain pass the sequence
/// is therefore truncated to the tokens before the sink, and only the sink's token is run, once for
/// each place, with its vector replaced there. Sinks are swapped from the last to the first, so
/// that the sequence only ever gets shorter.
pub(super) struct SwapAnalyzer {
    preset: Preset,
    threshold: f32,
    /// Layers whose states and means are collected: 0 to the last l_start + 1.
    layers: usize,
    /// The sinks that are swapped.
    sinks: Vec<Token>,
    sinks_of: usize,
    current: CurrentTrace,
    cells: Cells,
}

/// The trace that is being run.
#[derive(Default)]
struct CurrentTrace {
    number: usize,
    reference: usize,
    /// Sinks of any class, ascending.
    sinks: Vec<usize>,
    /// Sums over the other tokens, by (site, layer).
    sums: BTreeMap<(Site, usize), Sum>,
    /// The reference's `resid_post`, by layer.
    references: BTreeMap<usize, Vec<f32>>,
    cells: Cells,
}

/// (suppressed, n) by (l_start, site, layer).
type Cells = BTreeMap<(usize, usize, usize), (usize, usize)>;

#[derive(Default)]
struct Sum {
    values: Vec<f64>,
    rows: usize,
}

impl Sum {
    fn add(&mut self, row: &[f32]) {
        self.values.resize(row.len(), 0.0);
        self.values.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        self.rows += 1;
    }

    fn mean(&self) -> Vec<f32> {
        self.values.iter().map(|sum| (sum / self.rows as f64) as f32).collect()
    }
}

impl Analyzer for SwapAnalyzer {
    type Output = Swap;
    const HELP: &'static str =
        "Replace future sinks by the mean token, by layer and site: which are suppressed";
    const EXTRA_TOKENS: Option<&'static str> = Some("3 · (l_start + 2) single tokens per sink");

    fn new(run: &ScannedRun<'_>) -> SwapAnalyzer {
        let (traces, options) = (&run.traces, &run.options);
        let all = secondary_tokens(traces);
        let last = traces.iter().flat_map(ScannedTrace::secondary).map(crate::Sink::l_start).max();
        SwapAnalyzer {
            preset: run.scan.preset,
            threshold: run.scan.threshold,
            layers: last.map_or(0, |last| (last + 2).min(run.layers)),
            sinks_of: all.len(),
            sinks: sample(all, options.max_sinks, options.seed),
            current: CurrentTrace::default(),
            cells: BTreeMap::new(),
        }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![self]
    }

    fn finish<B: Backend>(self, _: &Inputs<'_, B>, _: &mut dyn ExplainProgress) -> Result<Swap> {
        let cell = |((l_start, site, layer), (suppressed, n)): ((usize, usize, usize), _)| {
            let site = SITES[site].to_string();
            SwapCell { l_start, site, layer, suppressed: Share::of(suppressed, n) }
        };
        let cells = self.cells.into_iter().map(cell).collect();
        Ok(Swap { sinks: self.sinks.len(), sinks_of: self.sinks_of, cells })
    }
}

impl SwapAnalyzer {
    /// The sinks of a trace that are swapped.
    fn positions(&self, trace: usize) -> Vec<usize> {
        let chosen = self.sinks.iter().filter(|(number, _)| *number == trace);
        chosen.map(|(_, position)| *position).collect()
    }
}

impl<B: Backend> Observer<B> for SwapAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Swap.name()
    }

    fn extra_tokens(&self, trace: &ScannedTrace<'_>) -> usize {
        let swaps = |position: usize| {
            let sink = trace.secondary().find(|sink| sink.position == position);
            sink.map_or(0, |sink| SITES.len() * self.layers.min(sink.l_start() + 2))
        };
        self.positions(trace.number).into_iter().map(swaps).sum()
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        self.current = CurrentTrace {
            number: trace.number,
            reference: trace.reference,
            sinks: trace.detection.sinks.iter().map(|sink| sink.position).collect(),
            ..CurrentTrace::default()
        };
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        SITES.contains(&site)
            && layer < self.layers
            && !self.positions(self.current.number).is_empty()
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let CurrentTrace { reference, sinks, sums, references, .. } = &mut self.current;
        if let (Site::ResidPost, Some(row)) = (site, rows.get(*reference)) {
            references.insert(layer, row.to_vec());
        }
        let sum = sums.entry((site, layer)).or_default();
        let others = rows.iter().filter(|(t, _)| sinks.binary_search(t).is_err());
        others.for_each(|(_, row)| sum.add(row));
    }

    fn end(
        &mut self,
        model: &Transformer<B>,
        sequence: &mut Sequence<B>,
        trace: &ScannedTrace<'_>,
        advance: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        for position in self.positions(self.current.number).into_iter().rev() {
            let Some(sink) = trace.secondary().find(|sink| sink.position == position) else {
                continue;
            };
            let l_start = sink.l_start();
            let Some(reference) = self.current.references.get(&l_start) else { continue };
            for ((site, layer), sum) in &self.current.sums {
                if *layer > l_start + 1 || sum.rows == 0 {
                    continue;
                }
                let edit = Edit::new(*site, *layer, position, Change::Replace(sum.mean()));
                let edits = Edits::new(vec![edit], model.config(), None)?;
                let mut state = LastState { layer: l_start, row: Vec::new() };
                let mut probe = EditProbe::new(&edits).observed_by(&mut state);
                model.truncate(sequence, position)?;
                let tokens = &trace.ids[position..=position];
                let mut step = [Step { sequence: &mut *sequence, tokens, logits: LogitRows::None }];
                model.forward(&mut step, Some(&mut probe))?;
                advance(1)?;
                let cosine = cosine_of(&state.row, reference);
                let suppressed = !self.preset.aligned(cosine, self.threshold);
                let index = SITES.iter().position(|s| s == site).unwrap_or(0);
                let cell = self.current.cells.entry((l_start, index, *layer)).or_default();
                cell.0 += usize::from(suppressed);
                cell.1 += 1;
            }
        }
        Ok(())
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&mem::take(&mut self.current.cells).into_iter().collect::<Vec<_>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        type Entry = ((usize, usize, usize), (usize, usize));
        let Some(cells) = decode::<Vec<Entry>>(part) else { return false };
        for (place, (suppressed, n)) in cells {
            let cell = self.cells.entry(place).or_default();
            cell.0 += suppressed;
            cell.1 += n;
        }
        true
    }
}

/// Reads the last row of `resid_post` at a layer.
struct LastState {
    layer: usize,
    row: Vec<f32>,
}

impl Probe for LastState {
    fn access(&self, site: Site, layer: usize) -> Access {
        match (site, layer) == (Site::ResidPost, self.layer) {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, _: &At, values: &[f32]) -> Result<()> {
        self.row = values.to_vec();
        Ok(())
    }
}
