//! Generation by an edited target.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_model::{Access, At, Change, EditProbe, Edits, Error, Measured, Probe, Result, Site};

use super::watch::Watcher;

/// A [`Watcher`] that makes [`Edits`] during the generation of a text. [`ChangedRows`] lists what
/// they changed.
///
/// The values are those of a pass over the finished text with an [`EditProbe`] of the same edits,
/// bit for bit.
pub struct EditWatcher {
    edits: Arc<Edits>,
    then: Option<Box<dyn Watcher>>,
    changed: ChangedRows,
}

/// The rows that an [`EditWatcher`] has changed so far. Clones share them.
#[derive(Clone, Default)]
pub struct ChangedRows(Arc<Mutex<BTreeSet<(Site, usize, usize)>>>);

impl EditWatcher {
    /// A watcher that makes `edits`. `then` observes the values after them; it cannot edit.
    ///
    /// # Errors
    /// An edit with the values of other positions: a pass of a generation does not compute those
    /// again.
    pub fn new(edits: Arc<Edits>, then: Option<Box<dyn Watcher>>) -> Result<EditWatcher> {
        let of_others = |change: &Change| matches!(change, Change::Copy(_) | Change::Mean(_));
        if let Some(edit) = edits.iter().find(|edit| of_others(&edit.change)) {
            return Err(Error::Request(format!(
                "edit `{edit}` copies from other positions and cannot be made while a text is \
                 generated"
            )));
        }
        Ok(EditWatcher { edits, then, changed: ChangedRows::default() })
    }

    /// A handle to list the changed rows, from any thread.
    pub fn changed(&self) -> ChangedRows {
        self.changed.clone()
    }

    /// What `then` wants to observe.
    fn observed(&self, site: Site, layer: usize) -> Access {
        match self.then.as_ref().map_or(Access::Skip, |then| then.access(site, layer)) {
            Access::Edit | Access::Change => Access::Read,
            access => access,
        }
    }
}

impl ChangedRows {
    /// The positions whose rows at `site` of `layer` were changed, ascending. Between steps none of
    /// them belongs to an unverified draft.
    pub fn positions(&self, site: Site, layer: usize) -> Vec<usize> {
        let rows = self.lock();
        let here = rows.range((site, layer, 0)..=(site, layer, usize::MAX));
        here.map(|(_, _, position)| *position).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Site, usize, usize)>> {
        // Entries are inserted and removed whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for EditWatcher {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.edits.iter().any(|edit| (edit.site, edit.layer) == (site, layer)) {
            true => Access::Edit,
            false => self.observed(site, layer),
        }
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        let before = values.to_vec();
        EditProbe::new(&self.edits).edit(at, values)?;
        let width = values.len() / at.positions.len().max(1);
        let rows = before.chunks_exact(width.max(1)).zip(values.chunks_exact(width.max(1)));
        let mut changed = self.changed.lock();
        for (position, (before, after)) in at.positions.clone().zip(rows) {
            if before != after {
                changed.insert((at.site, at.layer, position));
            }
        }
        drop(changed);
        match self.observed(at.site, at.layer) {
            Access::Skip => Ok(()),
            _ => self.read(at, values),
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.then.as_mut().map_or(Ok(()), |then| then.read(at, values))
    }

    fn reference_positions(&self, sequence: usize) -> Vec<usize> {
        self.then.as_ref().map_or_else(Vec::new, |then| then.reference_positions(sequence))
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.then.as_mut().map_or(Ok(()), |then| then.measured(at, measured))
    }
}

impl Watcher for EditWatcher {
    fn truncate(&mut self, len: usize) {
        self.changed.lock().retain(|(_, _, position)| *position < len);
        if let Some(then) = &mut self.then {
            then.truncate(len);
        }
    }

    fn edits(&self) -> bool {
        true
    }
}
