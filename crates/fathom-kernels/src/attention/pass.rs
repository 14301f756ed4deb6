//! The rows of one pass.

use std::sync::Mutex;

use fathom_backend::{Result, Rotary};

use super::column_sums::ColumnSums;
use super::kv::Kv;
use crate::cpu::{Cpu, lock};
use crate::memory::Rows;
use crate::ops::rope::Table;

/// Rows of one sequence, as attention reads them.
pub(super) type Span<'a> = fathom_backend::Span<'a, Kv, ColumnSums>;

/// The rows of a pass: their positions, caches, column sums and rotary angles.
pub struct Pass<'a> {
    pub(crate) spans: Vec<Span<'a>>,
    pub(crate) rope: Table,
    /// Rows that each span appends to its cache.
    appended: Vec<usize>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(spans: Vec<Span<'a>>, rotary: Rotary<'_>) -> Pass<'a> {
        let appended = spans.iter().map(|span| span.rows.len()).collect();
        Pass { spans, rope: Table::new(rotary), appended }
    }

    /// Keeps the last `kept[i]` rows of each span, renumbered from 0.
    pub(crate) fn narrow(&mut self, kept: &[usize]) {
        assert_eq!(kept.len(), self.spans.len(), "one row count per span");
        let mut first = 0;
        for (span, &kept) in self.spans.iter_mut().zip(kept) {
            assert!(kept <= span.rows.len(), "{kept} of {} rows", span.rows.len());
            span.first_position += span.rows.len() - kept;
            span.rows = first..first + kept;
            first += kept;
        }
    }

    /// Commits the appended keys and values.
    pub(crate) fn end(self) {
        for (span, rows) in self.spans.into_iter().zip(self.appended) {
            span.kv.advance(rows);
        }
    }
}

/// Cost of writing one element of a key, which misses the cache, relative to an element accessed in
/// order.
const SCATTERED_COST: usize = 16;

/// Appends a layer's keys and values to each span's cache.
pub(crate) fn append(
    cpu: &Cpu,
    layer: usize,
    k: &Rows,
    v: &Rows,
    spans: &mut [Span<'_>],
) -> Result<()> {
    let mut slots = Vec::new();
    for Span { rows, first_position, kv, .. } in spans {
        assert_eq!([k.columns(), v.columns()], [kv.width(); 2], "columns of keys and values");
        assert_eq!(*first_position, kv.len(), "appended rows must start at the cache's length");
        // Each mutex is locked by one thread only, so it never blocks.
        slots.extend(kv.append_slots(rows.clone())?.into_iter().map(Mutex::new));
    }
    cpu.split_rows(slots.len(), SCATTERED_COST * k.as_slice().len(), |part| {
        for slots in &slots[part] {
            lock(slots).write(layer, k, v);
        }
    });
    Ok(())
}
