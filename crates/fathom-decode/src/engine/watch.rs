//! Looking at a text while it is written: what the target's own passes compute of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_model::{Access, At, Error, Measured, Probe, Result, Site};

/// Sees what the target computes of one request's text, as it is written.
///
/// It is a [`Probe`] of that text alone: [`At::sequence`] is 0, and positions count from the
/// prompt's first token. Every position is seen in every mode and batch, with the bits that a pass
/// over the finished text has, but for the last token: the target was never given it. It reads and
/// measures; what is written is the target's own text, so nothing can be changed.
///
/// An error ends the request, and no other.
pub trait Watcher: Probe + Send {
    /// What was seen of positions from `len` on does not count: they held drafts that were
    /// rejected, or will be computed once more because the caches were full.
    fn keep(&mut self, len: usize);
}

/// The watchers of the sequences of one pass, as one probe.
pub(super) struct Watching<'a> {
    watchers: Vec<Option<&'a mut (dyn Watcher + 'static)>>,
    /// What the watchers of each sequence failed on.
    pub errors: Vec<Option<Error>>,
}

impl<'a> Watching<'a> {
    /// Of the watcher, if there is one, of each sequence of the pass.
    pub fn new(watchers: Vec<Option<&'a mut (dyn Watcher + 'static)>>) -> Watching<'a> {
        let errors = watchers.iter().map(|_| None).collect();
        Watching { watchers, errors }
    }

    /// Whether anybody watches.
    pub fn is_wanted(&self) -> bool {
        self.watchers.iter().any(Option::is_some)
    }

    /// Tells the watcher of a sequence something, if it wants to know of the place.
    fn tell(
        &mut self,
        at: &At,
        tell: impl FnOnce(&mut dyn Watcher, &At) -> Result<()>,
    ) -> Result<()> {
        let Some(Some(watcher)) = self.watchers.get_mut(at.sequence) else { return Ok(()) };
        let error = &mut self.errors[at.sequence];
        if error.is_none() {
            let own = At { sequence: 0, ..at.clone() };
            *error = tell(&mut **watcher, &own).err();
        }
        Ok(())
    }
}

impl Probe for Watching<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        let of = |sequence| self.access_of(sequence, site, layer);
        (0..self.watchers.len()).map(of).fold(Access::Skip, Access::union)
    }

    fn access_of(&self, sequence: usize, site: Site, layer: usize) -> Access {
        let watcher = self.watchers.get(sequence).and_then(Option::as_ref);
        match watcher.map_or(Access::Skip, |watcher| watcher.access(site, layer)) {
            Access::Edit | Access::Change => Access::Read,
            access => access,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.tell(at, |watcher, at| watcher.read(at, values))
    }

    fn landmarks(&self, sequence: usize) -> Vec<usize> {
        let watcher = self.watchers.get(sequence).and_then(Option::as_ref);
        watcher.map_or_else(Vec::new, |watcher| watcher.landmarks(0))
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.tell(at, |watcher, at| watcher.measured(at, measured))
    }
}

/// A [`Watcher`] that keeps the rows of chosen places; [`WatchedRows`] reads them.
pub struct RowWatcher(WatchedRows);

/// What a [`RowWatcher`] has seen so far. Clones are of the same rows.
#[derive(Clone)]
pub struct WatchedRows {
    places: Arc<[(Site, usize)]>,
    rows: Arc<Mutex<Rows>>,
}

#[derive(Default)]
struct Rows {
    /// `[len, width]` of each place.
    values: Vec<Vec<f32>>,
    len: usize,
}

impl RowWatcher {
    /// Keeps the rows of `places`: (site, layer) of sites that have rows ([`Site::has_rows`]).
    ///
    /// # Errors
    /// A site without rows.
    pub fn new(places: &[(Site, usize)]) -> Result<RowWatcher> {
        if let Some((site, _)) = places.iter().find(|(site, _)| !site.has_rows()) {
            return Err(Error::Request(format!(
                "`{site}` has no row for each token, and cannot be watched while a text is written"
            )));
        }
        let rows = Rows { values: vec![Vec::new(); places.len()], len: 0 };
        Ok(RowWatcher(WatchedRows { places: places.into(), rows: Arc::new(Mutex::new(rows)) }))
    }

    /// To read what is kept, at any time and from any thread.
    pub fn rows(&self) -> WatchedRows {
        self.0.clone()
    }
}

impl WatchedRows {
    /// The places, in the order in which they were given.
    pub fn places(&self) -> &[(Site, usize)] {
        &self.places
    }

    /// Positions that count so far: between steps, all of the text but its last token.
    pub fn positions(&self) -> usize {
        self.lock().len
    }

    /// The rows of place `index` from position `from` on, `[positions, width]`.
    pub fn since(&self, index: usize, from: usize) -> Vec<f32> {
        let rows = self.lock();
        let values = rows.values.get(index).map_or(&[][..], Vec::as_slice);
        let width = values.len().checked_div(rows.len).unwrap_or(0);
        values.get(from * width..).unwrap_or_default().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        // Rows are appended and cut; a panic in between leaves nothing half done.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for RowWatcher {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.0.places.contains(&(site, layer)) {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let mut rows = self.0.lock();
        rows.len = at.positions.end;
        for (place, kept) in self.0.places.iter().zip(&mut rows.values) {
            if *place == (at.site, at.layer) {
                let width = values.len() / at.positions.len().max(1);
                kept.truncate(at.positions.start * width);
                kept.extend_from_slice(values);
            }
        }
        Ok(())
    }
}

impl Watcher for RowWatcher {
    fn keep(&mut self, len: usize) {
        let mut rows = self.0.lock();
        if len < rows.len {
            let before = rows.len;
            rows.values.iter_mut().for_each(|values| {
                values.truncate(values.len() / before * len);
            });
            rows.len = len;
        }
    }
}
