//! Probing and editing a text during its generation, in the target's own passes.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_model::{Access, At, Error, Measured, Probe, Result, Site};

/// Observes the target's computation of one request's text during its generation.
///
/// A watcher is a [`Probe`] of that text alone: [`At::sequence`] is 0, and positions count from the
/// prompt's first token. In every mode and batch it sees every position except the last token's,
/// which the target is never fed, with the same bits as a pass over the finished text.
///
/// An error ends this request and no other.
pub trait Watcher: Probe + Send {
    /// Discards what was observed at positions ≥ `len`: they held rejected drafts, or will be
    /// computed again after a preemption.
    fn truncate(&mut self, len: usize);

    /// Whether it edits the target's computation ([`Access::Edit`]). If not, it can only read and
    /// measure, and the text is the target's own.
    ///
    /// The text of a watcher that edits is that of the edited target, in every mode and batch; the
    /// draft is not edited. An edit may depend only on the row it changes and on its position,
    /// because a pass may begin at any position and run over it again.
    fn edits(&self) -> bool {
        false
    }

    /// Whether what it observes of rows can be kept with them in the prefix cache. If not, or if it
    /// edits, its text takes no rows from there and leaves none.
    ///
    /// What it observes at a position must then depend only on the tokens up to there and on
    /// [`Probe::reference_positions`].
    fn shares(&self) -> bool {
        false
    }

    /// What it observed at `positions`, for watchers of other texts with the same tokens from the
    /// first one to the last of these. `None` if it cannot be kept.
    fn observed(&self, _positions: Range<usize>) -> Option<Observations> {
        None
    }

    /// Whether it can take over these observations of another watcher.
    fn accepts(&self, _observations: &Observations) -> bool {
        false
    }

    /// Takes over observations that it accepts, instead of seeing the rows computed. `positions`
    /// are the first ones of those that they were made at, and continue its own.
    ///
    /// # Errors
    /// The observations cannot be taken over.
    fn adopt(&mut self, _positions: Range<usize>, _observations: &Observations) -> Result<()> {
        Ok(())
    }
}

/// What a [`Watcher`] observed at some positions. Only watchers know what it is.
pub type Observations = Arc<dyn Any + Send + Sync>;

/// The watchers of all sequences of a pass, as one probe.
pub(super) struct Watching<'a> {
    watchers: Vec<Option<&'a mut (dyn Watcher + 'static)>>,
    /// The watcher's error of each sequence.
    pub errors: Vec<Option<Error>>,
}

impl<'a> Watching<'a> {
    /// Combines the watchers of the sequences of a pass, `None` for a sequence without one.
    pub fn new(watchers: Vec<Option<&'a mut (dyn Watcher + 'static)>>) -> Watching<'a> {
        let errors = watchers.iter().map(|_| None).collect();
        Watching { watchers, errors }
    }

    /// Whether any sequence has a watcher.
    pub fn is_wanted(&self) -> bool {
        self.watchers.iter().any(Option::is_some)
    }

    /// Calls the watcher of a sequence, unless it has failed.
    fn notify(
        &mut self,
        at: &At,
        notify: impl FnOnce(&mut dyn Watcher, &At) -> Result<()>,
    ) -> Result<()> {
        let Some(Some(watcher)) = self.watchers.get_mut(at.sequence) else { return Ok(()) };
        let error = &mut self.errors[at.sequence];
        if error.is_none() {
            let own = At { sequence: 0, ..at.clone() };
            *error = notify(&mut **watcher, &own).err();
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
        let Some(Some(watcher)) = self.watchers.get(sequence) else { return Access::Skip };
        match watcher.access(site, layer) {
            Access::Edit if watcher.edits() => Access::Edit,
            Access::Edit | Access::Change => Access::Read,
            access => access,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.notify(at, |watcher, at| watcher.read(at, values))
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        self.notify(at, |watcher, at| watcher.edit(at, values))
    }

    fn reference_positions(&self, sequence: usize) -> Vec<usize> {
        let watcher = self.watchers.get(sequence).and_then(Option::as_ref);
        watcher.map_or_else(Vec::new, |watcher| watcher.reference_positions(0))
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.notify(at, |watcher, at| watcher.measured(at, measured))
    }
}

/// A [`Watcher`] that stores the rows of chosen sites. [`WatchedRows`] reads them.
pub struct RowWatcher(WatchedRows);

/// The rows a [`RowWatcher`] has stored so far. Clones share them.
#[derive(Clone)]
pub struct WatchedRows {
    places: Arc<[(Site, usize)]>,
    rows: Arc<Mutex<StoredRows>>,
}

#[derive(Default)]
struct StoredRows {
    /// `[len, width]` of each place.
    values: Vec<Vec<f32>>,
    /// Positions stored.
    len: usize,
}

impl RowWatcher {
    /// A watcher that stores the rows of `places`, which are pairs of site and layer.
    ///
    /// # Errors
    /// A site without rows ([`Site::has_rows`]).
    pub fn new(places: &[(Site, usize)]) -> Result<RowWatcher> {
        if let Some((site, _)) = places.iter().find(|(site, _)| !site.has_rows()) {
            return Err(Error::Request(format!(
                "`{site}` has no row for each token and cannot be watched during generation"
            )));
        }
        let rows = StoredRows { values: vec![Vec::new(); places.len()], len: 0 };
        Ok(RowWatcher(WatchedRows { places: places.into(), rows: Arc::new(Mutex::new(rows)) }))
    }

    /// A handle to read the stored rows at any time, from any thread.
    pub fn rows(&self) -> WatchedRows {
        self.0.clone()
    }
}

impl WatchedRows {
    /// The places in the order of [`RowWatcher::new`].
    pub fn places(&self) -> &[(Site, usize)] {
        &self.places
    }

    /// Number of valid positions: between steps, those of the text without its last token.
    pub fn positions(&self) -> usize {
        self.lock().len
    }

    /// The rows of place `index` from position `from` on: `[positions() - from, width]`.
    pub fn since(&self, index: usize, from: usize) -> Vec<f32> {
        let rows = self.lock();
        let values = rows.values.get(index).map_or(&[][..], Vec::as_slice);
        let width = values.len().checked_div(rows.len).unwrap_or(0);
        values.get(from * width..).unwrap_or_default().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, StoredRows> {
        // A panic between appending and truncating leaves consistent rows.
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
        for (place, stored) in self.0.places.iter().zip(&mut rows.values) {
            if *place == (at.site, at.layer) {
                let width = values.len() / at.positions.len().max(1);
                stored.truncate(at.positions.start * width);
                stored.extend_from_slice(values);
            }
        }
        Ok(())
    }
}

impl Watcher for RowWatcher {
    fn truncate(&mut self, len: usize) {
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
