//! Reordering of numbered items.

use std::collections::BTreeMap;

/// Returns items numbered 0, 1, 2, … in this order, each as soon as it and all earlier ones have
/// been inserted.
#[derive(Clone, Debug, Default)]
pub struct InOrder<T> {
    next: u64,
    early: BTreeMap<u64, T>,
}

impl<T> InOrder<T> {
    /// Starts with number `next`.
    pub fn starting_at(next: u64) -> InOrder<T> {
        InOrder { next, early: BTreeMap::new() }
    }

    /// The number of the next item to return.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Inserts item `number`.
    pub fn insert(&mut self, number: u64, item: T) {
        self.early.insert(number, item);
    }

    /// Removes and returns the next item, if it has been inserted.
    pub fn take_next(&mut self) -> Option<T> {
        let item = self.early.remove(&self.next)?;
        self.next += 1;
        Some(item)
    }
}
