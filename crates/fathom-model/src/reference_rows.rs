//! Rows of a sequence that other rows are compared with.

use std::collections::HashMap;

use fathom_backend::Backend;

use crate::taps::SequenceRows;
use crate::{Error, Result, Site};

/// The first rows of a sequence at some sites, in the backend's memory, for
/// [`Access::Dots`](crate::Access::Dots).
pub(crate) struct ReferenceRows<B: Backend> {
    by_place: HashMap<(Site, usize), StoredRows<B>>,
}

struct StoredRows<B: Backend> {
    rows: B::Rows, // [leading, width]
    /// Positions `0..filled` are stored.
    filled: usize,
}

impl<B: Backend> ReferenceRows<B> {
    pub fn new() -> ReferenceRows<B> {
        ReferenceRows { by_place: HashMap::new() }
    }

    /// Stores the rows of `x` that belong to `span` and whose positions are below `leading`.
    pub fn store(
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
        let (capacity, width) = match self.by_place.get(&place) {
            Some(stored) => b.shape(&stored.rows),
            None => (0, b.shape(x).1),
        };
        if capacity < leading {
            let mut rows = b.alloc(leading, width)?;
            let mut filled = 0;
            if let Some(stored) = self.by_place.get(&place) {
                b.copy_rows(&stored.rows, 0..stored.filled, &mut rows, 0)?;
                filled = stored.filled;
            }
            self.by_place.insert(place, StoredRows { rows, filled });
        }
        let Some(stored) = self.by_place.get_mut(&place) else { return Ok(()) };
        if span.first_position > stored.filled {
            return Ok(()); // earlier rows are missing; `rows` refuses these positions
        }
        let rows = span.rows.start..span.rows.start + (end - span.first_position);
        b.copy_rows(x, rows, &mut stored.rows, span.first_position)?;
        stored.filled = stored.filled.max(end);
        Ok(())
    }

    /// The stored rows of a site and layer, from position 0 to at least `position`.
    ///
    /// # Errors
    /// `position` is not stored: the sequence did not start at position 0 with this probe.
    pub fn rows(&self, place: (Site, usize), position: usize) -> Result<&B::Rows> {
        let stored = self.by_place.get(&place).filter(|stored| position < stored.filled);
        stored.map(|stored| &stored.rows).ok_or_else(|| {
            Error::Request(format!(
                "rows are compared with that of position {position}, which no pass with this \
                 probe computed"
            ))
        })
    }

    /// Removes positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.by_place.values_mut().for_each(|stored| stored.filled = stored.filled.min(len));
    }
}
