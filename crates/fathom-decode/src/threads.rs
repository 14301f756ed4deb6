//! Which of the machine's cores work for which model.

/// Threads of target and draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadSplit {
    /// The target's.
    pub target: usize,
    /// The draft's.
    pub draft: usize,
}

impl ThreadSplit {
    /// Shares `cores` between the two, which work at the same time: one core in four for the draft, the
    /// rest for the target, at least one each, except where a number is given.
    pub fn new(cores: usize, target: Option<usize>, draft: Option<usize>) -> ThreadSplit {
        let rest = |taken: usize| cores.saturating_sub(taken).max(1);
        let draft = draft.unwrap_or_else(|| target.map_or((cores / 4).max(1), rest));
        ThreadSplit { target: target.unwrap_or_else(|| rest(draft)), draft }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_has_work_and_everyone_a_core() {
        let split = |cores, target, draft| {
            let split = ThreadSplit::new(cores, target, draft);
            (split.target, split.draft)
        };
        assert_eq!(split(1, None, None), (1, 1));
        assert_eq!(split(2, None, None), (1, 1));
        assert_eq!(split(16, None, None), (12, 4));
        assert_eq!(split(16, None, Some(6)), (10, 6));
        assert_eq!(split(16, Some(15), None), (15, 1));
        assert_eq!(split(4, Some(9), None), (9, 1));
        assert_eq!(split(4, Some(2), Some(3)), (2, 3));
    }
}
