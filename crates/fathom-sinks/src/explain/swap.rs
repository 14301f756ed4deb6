//! Which sinks are gone when a token's vector is swapped early on (definition 2.8, paper Fig. 8).

use std::collections::BTreeMap;
use std::mem;

use fathom_backend::Backend;
use fathom_model::{
    Access, At, Change, Edit, EditProbe, Edits, LogitRows, Model, Probe, Result, Sequence, Site,
    Step,
};
use serde::{Deserialize, Serialize};

use super::parts::{Learner, decode, encode};
use super::pass::{Observer, Rows};
use super::subjects::{Subject, Token, sample, secondary_tokens};
use super::{Analysis, AnalysisResult, ExplainOptions, Share};
use crate::Preset;
use crate::vector::cosine_of;

/// How many sinks a swap suppresses, by place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// Secondary sinks that were swapped, one at a time.
    pub sinks: usize,
    /// Of so many that the run has.
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
    /// Where the vector was replaced by the mean of the trace's tokens that are no sinks: 0 to
    /// l_start + 1.
    pub layer: usize,
    /// Sinks whose cosine at l_start is not above the threshold any more.
    pub suppressed: Share,
}

impl AnalysisResult for Swap {
    const ANALYSIS: Analysis = Analysis::Swap;
}

/// Where vectors are swapped.
const SITES: [Site; 3] = [Site::ResidPost, Site::AttnOut, Site::MlpOut];

/// Swaps sinks one at a time.
///
/// What becomes of a token depends on the tokens before it alone, and those are not touched. So
/// after the plain pass the sequence is cut off before the sink, whose token is then run by itself
/// with the vector replaced, place by place; sinks come in descending order, each cutting off more.
pub(super) struct SwapObserver {
    preset: Preset,
    threshold: f32,
    /// Layers whose states and means are kept: up to one behind the last l_start.
    layers: usize,
    sinks: Vec<Token>,
    sinks_of: usize,
    trace: Trace,
    cells: Cells,
}

/// What is known of the trace that is passing.
#[derive(Default)]
struct Trace {
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

impl SwapObserver {
    pub fn new(
        subjects: &[Subject<'_>],
        layers: usize,
        (preset, threshold): (Preset, f32),
        options: ExplainOptions,
    ) -> SwapObserver {
        let all = secondary_tokens(subjects);
        let last = subjects.iter().flat_map(Subject::secondary).map(crate::Sink::l_start).max();
        SwapObserver {
            preset,
            threshold,
            layers: last.map_or(0, |last| (last + 2).min(layers)),
            sinks_of: all.len(),
            sinks: sample(all, options.max_sinks, options.seed),
            trace: Trace::default(),
            cells: BTreeMap::new(),
        }
    }

    pub fn finish(self) -> Swap {
        let cell = |((l_start, site, layer), (suppressed, n)): ((usize, usize, usize), _)| {
            let site = SITES[site].to_string();
            SwapCell { l_start, site, layer, suppressed: Share::of(suppressed, n) }
        };
        let cells = self.cells.into_iter().map(cell).collect();
        Swap { sinks: self.sinks.len(), sinks_of: self.sinks_of, cells }
    }

    /// The sinks of a trace that are swapped.
    fn positions(&self, trace: usize) -> Vec<usize> {
        let chosen = self.sinks.iter().filter(|(number, _)| *number == trace);
        chosen.map(|(_, position)| *position).collect()
    }
}

impl<B: Backend> Observer<B> for SwapObserver {
    fn learner(&self) -> Learner {
        Learner::For(Analysis::Swap)
    }

    fn more_tokens(&self, subject: &Subject<'_>) -> usize {
        let swaps = |position: usize| {
            let sink = subject.secondary().find(|sink| sink.position == position);
            sink.map_or(0, |sink| SITES.len() * self.layers.min(sink.l_start() + 2))
        };
        self.positions(subject.number).into_iter().map(swaps).sum()
    }

    fn begin(&mut self, subject: &Subject<'_>) {
        self.trace = Trace {
            number: subject.number,
            reference: subject.reference,
            sinks: subject.detection.sinks.iter().map(|sink| sink.position).collect(),
            ..Trace::default()
        };
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        SITES.contains(&site)
            && layer < self.layers
            && !self.positions(self.trace.number).is_empty()
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Trace { reference, sinks, sums, references, .. } = &mut self.trace;
        if let (Site::ResidPost, Some(row)) = (site, rows.get(*reference)) {
            references.insert(layer, row.to_vec());
        }
        let sum = sums.entry((site, layer)).or_default();
        let others = rows.iter().filter(|(t, _)| sinks.binary_search(t).is_err());
        others.for_each(|(_, row)| sum.add(row));
    }

    fn end(
        &mut self,
        model: &Model<B>,
        sequence: &mut Sequence<B>,
        subject: &Subject<'_>,
        advance: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        for position in self.positions(self.trace.number).into_iter().rev() {
            let Some(sink) = subject.secondary().find(|sink| sink.position == position) else {
                continue;
            };
            let l_start = sink.l_start();
            let Some(reference) = self.trace.references.get(&l_start) else { continue };
            for ((site, layer), sum) in &self.trace.sums {
                if *layer > l_start + 1 || sum.rows == 0 {
                    continue;
                }
                let edit = Edit::new(*site, *layer, position, Change::Replace(sum.mean()));
                let edits = Edits::new(vec![edit], model.config(), None)?;
                let mut state = State { layer: l_start, row: Vec::new() };
                let mut probe = EditProbe::new(&edits).watched_by(&mut state);
                model.truncate(sequence, position)?;
                let tokens = &subject.ids[position..=position];
                let mut step = [Step { sequence: &mut *sequence, tokens, logits: LogitRows::None }];
                model.forward(&mut step, Some(&mut probe))?;
                advance(1)?;
                let cosine = cosine_of(&state.row, reference);
                let suppressed = !self.preset.aligned(cosine, self.threshold);
                let index = SITES.iter().position(|s| s == site).unwrap_or(0);
                let cell = self.trace.cells.entry((l_start, index, *layer)).or_default();
                cell.0 += usize::from(suppressed);
                cell.1 += 1;
            }
        }
        Ok(())
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&mem::take(&mut self.trace.cells).into_iter().collect::<Vec<_>>())
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

/// Keeps the last row of `resid_post` at a layer.
struct State {
    layer: usize,
    row: Vec<f32>,
}

impl Probe for State {
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
