//! Things that end in any order, given out in one.

use std::collections::BTreeMap;

/// Gives out what is numbered 0, 1, 2, … in that order, each as soon as it and all before it are
/// there.
#[derive(Clone, Debug, Default)]
pub struct InOrder<T> {
    next: u64,
    early: BTreeMap<u64, T>,
}

impl<T> InOrder<T> {
    /// Begins with number `next`.
    pub fn starting_at(next: u64) -> InOrder<T> {
        InOrder { next, early: BTreeMap::new() }
    }

    /// The number that is next.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Takes in number `number`.
    pub fn insert(&mut self, number: u64, item: T) {
        self.early.insert(number, item);
    }

    /// The next one, if it is there.
    pub fn take_next(&mut self) -> Option<T> {
        let item = self.early.remove(&self.next)?;
        self.next += 1;
        Some(item)
    }
}
