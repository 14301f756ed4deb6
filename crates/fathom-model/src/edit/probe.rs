//! The probe that carries out edits.

use fathom_backend::{RowChange, RowEdit};
use fathom_vector::{change_values, dot, squared_norm};

use super::{Change, Edit, Edits, Positions};
use crate::{Access, At, Error, Measured, Probe, Result, Site};

/// A probe that makes [`Edits`] in a pass over a single sequence. A second probe may observe the
/// values after the edits.
pub struct EditProbe<'a> {
    edits: Vec<(&'a Edit, SourceMean)>,
    watcher: Option<&'a mut dyn Probe>,
    /// Positions changed by [`Positions::Aligned`] edits, as (site, layer, position), in the order
    /// of the changes.
    aligned: Vec<(Site, usize, usize)>,
}

/// Running mean of the rows that a [`Change::Copy`] or [`Change::Mean`] reads.
#[derive(Default)]
struct SourceMean {
    sum: Vec<f64>, // [columns]
    rows: usize,
}

impl<'a> EditProbe<'a> {
    /// A probe that makes `edits`.
    pub fn new(edits: &'a Edits) -> EditProbe<'a> {
        let edits = edits.edits.iter().map(|edit| (edit, SourceMean::default())).collect();
        EditProbe { edits, watcher: None, aligned: Vec::new() }
    }

    /// Also passes `watcher` the values it asks for, after the edits. The watcher cannot edit. At
    /// an edited site, a watcher that asks for norms or dot products receives the values
    /// ([`Probe::read`]) instead.
    pub fn observed_by(mut self, watcher: &'a mut dyn Probe) -> EditProbe<'a> {
        self.watcher = Some(watcher);
        self
    }

    /// The positions that [`Positions::Aligned`] edits changed, as (site, layer, position), in the
    /// order of the changes. For one edit they are ascending.
    pub fn aligned(&self) -> &[(Site, usize, usize)] {
        &self.aligned
    }
}

impl Probe for EditProbe<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        let watched = self.watcher.as_ref().map(|watcher| watcher.access(site, layer));
        let watched = match watched {
            None | Some(Access::Skip | Access::Change) => Access::Skip,
            Some(Access::Edit) => Access::Read,
            Some(access) => access,
        };
        let here = |(edit, _): &&(&Edit, SourceMean)| (edit.site, edit.layer) == (site, layer);
        if !self.edits.iter().any(|edit| here(&edit)) {
            return watched;
        }
        let mut edits = self.edits.iter().filter(here);
        match watched == Access::Skip && edits.all(|(edit, _)| edit.is_row_local()) {
            true => Access::Change,
            false => Access::Edit,
        }
    }

    fn before_layer(&mut self, layer: usize) -> Result<()> {
        match &mut self.watcher {
            Some(watcher) => watcher.before_layer(layer),
            None => Ok(()),
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        match &mut self.watcher {
            Some(watcher) => watcher.read(at, values),
            None => Ok(()),
        }
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        let width = values.len() / at.positions.len().max(1);
        let computed = values.to_vec();
        for (edit, source) in &mut self.edits {
            if (edit.site, edit.layer) != (at.site, at.layer) {
                continue;
            }
            source.accumulate(edit, at, &computed, width);
            let source = source.mean();
            for (i, position) in at.positions.clone().enumerate() {
                let row = i * width..(i + 1) * width;
                if !edit.positions.contain(position, &computed[row.clone()]) {
                    continue;
                }
                if matches!(edit.positions, Positions::Aligned { .. }) {
                    self.aligned.push((at.site, at.layer, position));
                }
                match &edit.columns {
                    None => change(&edit.change, &source, &mut values[row])?,
                    Some(columns) => {
                        let row = &mut values[row];
                        let mut chosen: Vec<f32> = columns.iter().map(|c| row[*c]).collect();
                        change(&edit.change, &source, &mut chosen)?;
                        columns.iter().zip(chosen).for_each(|(c, value)| row[*c] = value);
                    }
                }
            }
        }
        let watcher = self.watcher.as_mut();
        match watcher.filter(|watcher| watcher.access(at.site, at.layer) != Access::Skip) {
            Some(watcher) => watcher.read(at, values),
            None => Ok(()),
        }
    }

    fn changes(&mut self, at: &At) -> Result<Vec<RowEdit<'_>>> {
        let mut changes = Vec::new();
        for (edit, _) in &self.edits {
            let (Positions::These(ranges), Some(change)) =
                (&edit.positions, row_change(&edit.change))
            else {
                continue;
            };
            if (edit.site, edit.layer) == (at.site, at.layer) {
                let columns = edit.columns.as_deref();
                let rows = at.positions.clone().enumerate();
                let rows = rows.filter(|(_, p)| ranges.iter().any(|range| range.contains(p)));
                changes.extend(rows.map(|(row, _)| RowEdit { row, columns, change }));
            }
        }
        Ok(changes)
    }

    fn reference_positions(&self, sequence: usize) -> Vec<usize> {
        self.watcher.as_ref().map_or_else(Vec::new, |watcher| watcher.reference_positions(sequence))
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        match &mut self.watcher {
            Some(watcher) => watcher.measured(at, measured),
            None => Ok(()),
        }
    }
}

impl Edit {
    /// Whether the backend can make the edit without reading rows back: its positions are listed,
    /// and the new value of a row depends on that row alone.
    fn is_row_local(&self) -> bool {
        matches!(self.positions, Positions::These(_)) && row_change(&self.change).is_some()
    }
}

/// The change as a backend operation; `None` if it needs rows of other positions.
fn row_change(change: &Change) -> Option<RowChange<'_>> {
    match change {
        Change::Zero => Some(RowChange::Fill(0.0)),
        Change::Scale(factor) => Some(RowChange::Scale(*factor)),
        Change::Clamp(norm) => Some(RowChange::Clamp(*norm)),
        Change::Add(terms) => Some(RowChange::Add(terms)),
        Change::Replace(values) => Some(RowChange::Write(values)),
        Change::Copy(_) | Change::Mean(_) => None,
    }
}

impl Positions {
    /// Whether a position is among them. `row` is its whole row at the edit's site and layer,
    /// before any edit.
    pub fn contain(&self, position: usize, row: &[f32]) -> bool {
        match self {
            Positions::These(ranges) => ranges.iter().any(|range| range.contains(&position)),
            Positions::Aligned { direction, cosine, from } => {
                let norms = (squared_norm(direction) * squared_norm(row)).sqrt();
                position >= *from && norms > 0.0 && dot(direction, row) > cosine * norms
            }
        }
    }
}

/// Changes the chosen columns of a row.
fn change(change: &Change, source: &[f32], values: &mut [f32]) -> Result<()> {
    match row_change(change) {
        Some(change) => change_values(&change, values),
        None if source.is_empty() => {
            // The source positions were computed in a pass without this probe.
            let problem = "an edit copies from positions that this pass did not compute";
            return Err(Error::Request(problem.to_owned()));
        }
        None => values.copy_from_slice(source),
    }
    Ok(())
}

impl SourceMean {
    /// Adds the rows of a chunk that the edit copies from.
    fn accumulate(&mut self, edit: &Edit, at: &At, computed: &[f32], width: usize) {
        for (position, row) in at.positions.clone().zip(computed.chunks_exact(width)) {
            let copied = match &edit.change {
                Change::Copy(source) => position == *source,
                Change::Mean(ranges) => ranges.iter().any(|range| range.contains(&position)),
                _ => return,
            };
            if copied {
                self.add(edit.columns.as_deref(), row);
            }
        }
    }

    /// Adds the chosen columns of a row.
    fn add(&mut self, columns: Option<&[usize]>, row: &[f32]) {
        let chosen: Vec<f32> = match columns {
            None => row.to_vec(),
            Some(columns) => columns.iter().map(|column| row[*column]).collect(),
        };
        self.sum.resize(chosen.len(), 0.0);
        self.sum.iter_mut().zip(chosen).for_each(|(sum, value)| *sum += f64::from(value));
        self.rows += 1;
    }

    /// The mean; empty if there were no rows yet.
    fn mean(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.rows as f64) as f32).collect()
    }
}
