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

/// Whose rows a pass is over: positions, caches, column sums and rotary angles.
pub struct Pass<'a> {
    pub(crate) spans: Vec<Span<'a>>,
    pub(crate) rope: Table,
    /// Rows of each span that its cache gets.
    appended: Vec<usize>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(spans: Vec<Span<'a>>, rotary: Rotary<'_>) -> Pass<'a> {
        let appended = spans.iter().map(|span| span.rows.len()).collect();
        Pass { spans, rope: Table::new(rotary), appended }
    }

    /// Leaves the last `kept[i]` rows of each span, renumbered.
    pub(crate) fn narrow(&mut self, kept: &[usize]) {
        assert_eq!(kept.len(), self.spans.len(), "a number of rows for each span");
        let mut first = 0;
        for (span, &kept) in self.spans.iter_mut().zip(kept) {
            assert!(kept <= span.rows.len(), "{kept} of {} rows", span.rows.len());
            span.first_position += span.rows.len() - kept;
            span.rows = first..first + kept;
            first += kept;
        }
    }

    /// What was appended counts.
    pub(crate) fn end(self) {
        for (span, rows) in self.spans.into_iter().zip(self.appended) {
            span.kv.advance(rows);
        }
    }
}

/// What writing an element of a key takes, a cache line of its own from memory, in elements touched
/// in order.
const SCATTERED: usize = 16;

/// Writes a layer's keys and values behind each span's cache.
pub(crate) fn append(
    cpu: &Cpu,
    layer: usize,
    k: &Rows,
    v: &Rows,
    spans: &mut [Span<'_>],
) -> Result<()> {
    let mut arrivals = Vec::new();
    for Span { rows, first_position, kv, .. } in spans {
        assert_eq!([k.columns(), v.columns()], [kv.width(); 2], "columns of keys and values");
        assert_eq!(*first_position, kv.len(), "what is appended follows what is there");
        // Each is one thread's.
        arrivals.extend(kv.arrivals(rows.clone())?.map(Mutex::new));
    }
    cpu.split_rows(arrivals.len(), SCATTERED * k.as_slice().len(), |part| {
        for arrivals in &arrivals[part] {
            lock(arrivals).write(layer, k, v);
        }
    });
    Ok(())
}
