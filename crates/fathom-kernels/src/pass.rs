//! The rows of one pass.

use fathom_backend::Rotary;

use crate::ColumnSums;
use crate::kv::Kv;
use crate::rope::Table;

/// Rows of one sequence, as attention reads them.
pub(crate) type Span<'a> = fathom_backend::Span<'a, Kv, ColumnSums>;

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
