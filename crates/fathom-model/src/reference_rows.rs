//! Rows of a sequence that other rows are compared with.

use std::collections::HashMap;
use std::sync::Arc;

use fathom_backend::Backend;

use crate::taps::SequenceRows;
use crate::{Error, Result, Site};

/// The first rows of a sequence at some sites, in the backend's memory, for
/// [`Access::Dots`](crate::Access::Dots). Clones share the memory, and nothing of one shows in the
/// other.
pub struct ReferenceRows<B: Backend> {
    by_place: HashMap<(Site, usize), StoredRows<B>>,
}

struct StoredRows<B: Backend> {
    rows: Arc<B::Rows>, // [leading, width]
    /// Positions `0..filled` are stored.
    filled: usize,
}

impl<B: Backend> Clone for ReferenceRows<B> {
    fn clone(&self) -> ReferenceRows<B> {
        let clone = |stored: &StoredRows<B>| StoredRows {
            rows: Arc::clone(&stored.rows),
            filled: stored.filled,
        };
        let places = self.by_place.iter().map(|(place, stored)| (*place, clone(stored)));
        ReferenceRows { by_place: places.collect() }
    }
}

impl<B: Backend> ReferenceRows<B> {
    pub(crate) fn new() -> ReferenceRows<B> {
        ReferenceRows { by_place: HashMap::new() }
    }

    /// Stores the rows of `x` that belong to `span` and whose positions are below `leading`.
    pub(crate) fn store(
        &mut self,
        b: &B,
        place: (Site, usize),
        span: &SequenceRows,
        leading: usize,
        x: &B::Rows,
    ) -> Result<()> {
        let end = leading.min(span.first_position + span.rows.len());
        if end <= span.first_position {
            return Ok(());
        }
        let (capacity, width, own) = match self.by_place.get_mut(&place) {
            Some(stored) => {
                let (capacity, width) = b.shape(&stored.rows);
                (capacity, width, Arc::get_mut(&mut stored.rows).is_some())
            }
            None => (0, b.shape(x).1, false),
        };
        if capacity < leading || !own {
            let mut rows = b.alloc(leading.max(capacity), width)?;
            let mut filled = 0;
            if let Some(stored) = self.by_place.get(&place) {
                b.copy_rows(&stored.rows, 0..stored.filled, &mut rows, 0)?;
                filled = stored.filled;
            }
            self.by_place.insert(place, StoredRows { rows: Arc::new(rows), filled });
        }
        let Some(stored) = self.by_place.get_mut(&place) else { return Ok(()) };
        let Some(stored_rows) = Arc::get_mut(&mut stored.rows) else { return Ok(()) };
        if span.first_position > stored.filled {
            return Ok(()); // earlier rows are missing; `rows` refuses these positions
        }
        let rows = span.rows.start..span.rows.start + (end - span.first_position);
        b.copy_rows(x, rows, stored_rows, span.first_position)?;
        stored.filled = stored.filled.max(end);
        Ok(())
    }

    /// The stored rows of a site and layer, from position 0 to at least `position`.
    ///
    /// # Errors
    /// `position` is not stored: the sequence did not start at position 0 with this probe.
    pub(crate) fn rows(&self, place: (Site, usize), position: usize) -> Result<&B::Rows> {
        let stored = self.by_place.get(&place).filter(|stored| position < stored.filled);
        stored.map(|stored| &*stored.rows).ok_or_else(|| {
            Error::Request(format!(
                "rows are compared with that of position {position}, which no pass with this \
                 probe computed"
            ))
        })
    }

    /// Removes positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.by_place.values_mut().for_each(|stored| stored.filled = stored.filled.min(len));
    }
}
