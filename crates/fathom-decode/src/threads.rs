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
    /// Shares `cores` between the two, which work at the same time: one core in four for the draft,
    /// the rest for the target, at least one each, except where a number is given.
    pub fn new(cores: usize, target: Option<usize>, draft: Option<usize>) -> ThreadSplit {
        let rest = |taken: usize| cores.saturating_sub(taken).max(1);
        let draft = draft.unwrap_or_else(|| target.map_or((cores / 4).max(1), rest));
        ThreadSplit { target: target.unwrap_or_else(|| rest(draft)), draft }
    }
}

/// Who has which threads when, and whether they stay where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Threads of a model that works while the other waits.
    pub alone: ThreadSplit,
    /// Threads of each while both work.
    pub together: ThreadSplit,
    /// Whether every thread has a core of its own.
    pub pinned: bool,
}

impl Placement {
    /// The cores of target and draft, thread by thread, out of those there are: the target's from
    /// the front and the draft's from the back, so that beside each other they share none. `None`
    /// where there are too few.
    pub fn cores(&self, cores: &[usize]) -> Option<(Vec<usize>, Vec<usize>)> {
        let ThreadSplit { target, draft } = self.together;
        let most = self.alone.target.max(self.alone.draft).max(target + draft);
        let from_the_back = cores.iter().rev().copied().collect();
        (most <= cores.len()).then(|| (cores.to_vec(), from_the_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_models_share_no_core_while_both_work() {
        let placement = |alone, target, draft| {
            let split = |target, draft| ThreadSplit { target, draft };
            Placement { alone: split(alone, alone), together: split(target, draft), pinned: true }
        };
        let (target, draft) = placement(4, 3, 1).cores(&[2, 3, 6, 7]).unwrap_or_default();
        assert_eq!((&target[..3], &draft[..1]), (&[2, 3, 6][..], &[7][..]));
        assert_eq!((target.len(), draft.len()), (4, 4));
        assert_eq!(placement(2, 2, 1).cores(&[0, 1]), None);
        assert_eq!(placement(3, 1, 1).cores(&[0, 1]), None);
    }

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
