//! Rows of a sequence that later rows are compared with.

use std::collections::HashMap;

use fathom_backend::Backend;

use crate::taps::Part;
use crate::{Error, Result, Site};

/// The first rows of a sequence at some places, in the backend's memory, for
/// [`Access::Dots`](crate::Access::Dots).
pub(crate) struct Landmarks<B: Backend> {
    places: HashMap<(Site, usize), Kept<B>>,
}

struct Kept<B: Backend> {
    rows: B::Rows, // [leading, width]
    /// Positions `0..filled` are there.
    filled: usize,
}

impl<B: Backend> Landmarks<B> {
    pub fn new() -> Landmarks<B> {
        Landmarks { places: HashMap::new() }
    }

    /// Keeps those of a part's rows `x` that hold positions below `leading`.
    pub fn keep(
        &mut self,
        b: &B,
        place: (Site, usize),
        part: &Part,
        leading: usize,
        x: &B::Rows,
    ) -> Result<()> {
        let end = leading.min(part.first_position + part.rows.len());
        if end <= part.first_position {
            return Ok(());
        }
        let (kept_rows, width) = match self.places.get(&place) {
            Some(kept) => b.shape(&kept.rows),
            None => (0, b.shape(x).1),
        };
        if kept_rows < leading {
            let mut rows = b.alloc(leading, width)?;
            let mut filled = 0;
            if let Some(kept) = self.places.get(&place) {
                b.copy_rows(&kept.rows, 0..kept.filled, &mut rows, 0)?;
                filled = kept.filled;
            }
            self.places.insert(place, Kept { rows, filled });
        }
        let Some(kept) = self.places.get_mut(&place) else { return Ok(()) };
        if part.first_position > kept.filled {
            return Ok(()); // a gap: what lies behind it cannot be used, see `rows`
        }
        let rows = part.rows.start..part.rows.start + (end - part.first_position);
        b.copy_rows(x, rows, &mut kept.rows, part.first_position)?;
        kept.filled = kept.filled.max(end);
        Ok(())
    }

    /// The kept rows of a place, a landmark's among them.
    ///
    /// # Errors
    /// It was not seen: the sequence did not start at position 0 with this probe.
    pub fn rows(&self, place: (Site, usize), landmark: usize) -> Result<&B::Rows> {
        let kept = self.places.get(&place).filter(|kept| landmark < kept.filled);
        kept.map(|kept| &kept.rows).ok_or_else(|| {
            Error::Request(format!(
                "rows are to be compared with that of position {landmark}, which no pass with this probe \
                 computed"
            ))
        })
    }

    /// Forgets positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.places.values_mut().for_each(|kept| kept.filled = kept.filled.min(len));
    }
}
