//! Assignment of cores to target and draft.

/// Numbers of threads of target and draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadSplit {
    /// The target's.
    pub target: usize,
    /// The draft's.
    pub draft: usize,
}

impl ThreadSplit {
    /// Splits `cores` between target and draft for co-running: one core in four for the draft, the
    /// rest for the target, at least one each. Explicit numbers take precedence.
    pub fn new(cores: usize, target: Option<usize>, draft: Option<usize>) -> ThreadSplit {
        let rest = |taken: usize| cores.saturating_sub(taken).max(1);
        let draft = draft.unwrap_or_else(|| target.map_or((cores / 4).max(1), rest));
        ThreadSplit { target: target.unwrap_or_else(|| rest(draft)), draft }
    }
}

/// Threads of target and draft, running alone and co-running, and their pinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Threads of a model that runs alone.
    pub alone: ThreadSplit,
    /// Threads of each model while both run.
    pub together: ThreadSplit,
    /// Whether every thread is pinned to a core of its own.
    pub pinned: bool,
}

impl Placement {
    /// Cores of the target's and of the draft's threads, out of `cores`: the target's from the
    /// front and the draft's from the back, so that co-running models share no core. `None` if
    /// there are too few cores.
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
    fn pinned_models_share_no_core_while_both_run() {
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
    fn all_cores_are_used_and_each_model_has_at_least_one() {
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
