//! Toy language models and a minimal engine.
//!
//! A toy model's next-token logits are a hash of the whole prefix, so one wrong token, or one stale
//! token in a cache, changes everything after it.

mod rule;

use fathom_decode::{
    BlockJudge, Branch, Completion, ConstrainedText, Drafted, History, Judge, LogitsJudge, Mode,
    Outcome, Pearl, Phase, Proposal, Sampler, SuffixIndex, Verification, ar, philox4x32, sd,
};
pub use rule::Rule;

/// Logits as a hash of the prefix.
#[derive(Clone, Copy, Debug)]
pub struct Toy {
    pub vocab: usize,
    pub seed: u32,
    /// Share of prefixes after which the logits equal the target's.
    pub agreement: f64,
}

impl Toy {
    pub fn target(vocab: usize, seed: u32) -> Toy {
        Toy { vocab, seed, agreement: 1.0 }
    }

    pub fn draft(self, agreement: f64) -> Toy {
        Toy { agreement, ..self }
    }

    /// Logits `[vocab]` after `prefix`, in -2..2.
    pub fn logits(&self, prefix: &[u32]) -> Vec<f32> {
        let hash = |state: [u32; 4], token: &u32| philox4x32(state, [self.seed, *token]);
        let state = prefix.iter().fold([prefix.len() as u32, 0, 0, 0], hash);
        let unit = |x: u32| f64::from(x) / f64::from(u32::MAX);
        let agrees = unit(philox4x32(state, [1, 0])[0]) <= self.agreement;
        let key = if agrees { 2 } else { 3 };
        let logit = |id| (4.0 * unit(philox4x32(state, [key, id])[0]) - 2.0) as f32;
        (0..self.vocab as u32).map(logit).collect()
    }
}

/// A model with its cache. Like a real model it scores tokens given the content of the cache.
pub struct Cached {
    model: Toy,
    cache: Vec<u32>,
}

impl Cached {
    pub fn new(model: Toy) -> Cached {
        Cached { model, cache: Vec::new() }
    }

    /// Feeds the tokens of `prefix` after the cached ones. Returns logits `[tokens fed, vocab]`.
    fn feed(&mut self, prefix: &[u32]) -> Vec<f32> {
        assert!(prefix.len() > self.cache.len(), "nothing to feed");
        let mut logits = Vec::new();
        for &token in &prefix[self.cache.len()..] {
            self.cache.push(token);
            logits.extend(self.model.logits(&self.cache));
        }
        logits
    }

    fn draft(
        &mut self,
        prefix: &[u32],
        prompt_len: usize,
        gamma: usize,
        sampler: &Sampler,
        mut constraint: Option<&mut ConstrainedText>,
    ) -> Proposal {
        let mut prefix = prefix.to_vec();
        let draft = |_| {
            let logits = self.feed(&prefix);
            let mut last = logits[logits.len() - self.model.vocab..].to_vec();
            if let Some(history) = counted(sampler, prompt_len, &prefix) {
                sampler.process(&mut last, &history);
            }
            if let Some(constraint) = &mut constraint {
                constraint.follow(&prefix[prompt_len..]).unwrap();
                constraint.mask(&mut last).unwrap();
            }
            let drafted: Drafted = sampler.draft(&last, prefix.len()).unwrap();
            prefix.push(drafted.token);
            drafted
        };
        (0..gamma).map(draft).collect()
    }
}

/// The draft of a text, and what it needs to choose tokens.
struct Drafting<'a> {
    draft: &'a mut Cached,
    prompt_len: usize,
    sampler: &'a Sampler,
    constraint: &'a mut Option<ConstrainedText>,
}

impl Drafting<'_> {
    fn draft(&mut self, prefix: &[u32], gamma: usize) -> Proposal {
        let Drafting { draft, prompt_len, sampler, constraint } = self;
        draft.draft(prefix, *prompt_len, gamma, sampler, constraint.as_mut())
    }

    /// Branches with γ - 1 drafts behind up to four rejections at every position, each with its
    /// cache.
    fn branches(
        &mut self,
        text: &Completion,
        pearl: &Pearl,
        chunk: &[Drafted],
        gamma: usize,
        verification: Verification,
    ) -> Vec<(Cached, Branch)> {
        let mut all = Vec::new();
        let judged: Vec<u32> =
            pearl.pending().iter().chain(chunk.first()).map(|draft| draft.token).collect();
        for (after, rejected) in judged.iter().enumerate() {
            for token in (0..self.draft.model.vocab as u32).filter(|id| id != rejected).take(4) {
                let prefix = [text.tokens(), &judged[..after], &[token]].concat();
                let mut cache = Cached::new(self.draft.model);
                let mut sampler = self.sampler.clone();
                if verification == Verification::Block {
                    sampler.start_run(prefix.len());
                }
                // A token that the constraint does not allow is never a correction.
                let mut constraint = self.constraint.as_mut().map(|own| own.fork().unwrap());
                let allowed = constraint
                    .as_mut()
                    .is_none_or(|constraint| constraint.follow(&prefix[self.prompt_len..]).is_ok());
                if !allowed {
                    continue;
                }
                let mut drafting = Drafting {
                    draft: &mut cache,
                    prompt_len: self.prompt_len,
                    sampler: &sampler,
                    constraint: &mut constraint,
                };
                let drafts = drafting.draft(&prefix, gamma.saturating_sub(1));
                all.push((cache, Branch { after, token, drafts }));
            }
        }
        all
    }
}

/// A new history of `tokens`. `None` if `sampler` needs none.
pub fn counted(sampler: &Sampler, prompt_len: usize, tokens: &[u32]) -> Option<History> {
    let mut history = sampler.history(prompt_len)?;
    history.follow(0, tokens);
    Some(history)
}

/// What followed the last tokens of `text` where they occurred before: at most `most` tokens.
fn guessed(text: &[u32], most: usize) -> Proposal {
    let mut index = SuffixIndex::default();
    index.extend(text);
    let guesses = index.guess(index.latest(), most).into_iter();
    guesses.map(|guess| Drafted { token: guess.token, q: None }).collect()
}

/// Decodes `text` to its end in `mode`, under a rule if there is one. `gamma` returns γ for a step
/// number.
pub fn decode(
    rule: Option<Rule>,
    mode: Mode,
    text: &mut Completion,
    sampler: &Sampler,
    target: Toy,
    draft: Toy,
    gamma: impl FnMut(usize) -> usize,
) {
    decode_verified(rule, (mode, Verification::Token), text, sampler, target, draft, gamma);
}

/// Like [`decode`], with a choice of verification. Returns the outcomes of the steps.
pub fn decode_verified(
    rule: Option<Rule>,
    (mode, verification): (Mode, Verification),
    text: &mut Completion,
    sampler: &Sampler,
    target: Toy,
    draft: Toy,
    mut gamma: impl FnMut(usize) -> usize,
) -> Vec<Outcome> {
    let (mut keyed, mut outcomes) = (sampler.clone(), Vec::new());
    let mut constraint = rule.map(|rule| ConstrainedText::new(Box::new(rule)));
    let mut drafts_constraint = constraint.as_mut().map(|constraint| constraint.fork().unwrap());
    let vocab = target.vocab;
    let (mut target, mut draft) = (Cached::new(target), Cached::new(draft));
    let mut pearl = Pearl::new();
    let mut step = 0;
    let prompt_len = text.tokens().len() - text.generated().len();
    while !text.is_finished() {
        let before = text.tokens().len();
        let sampler = &keyed;
        let mut history = counted(sampler, prompt_len, text.tokens());
        let history = history.as_mut();
        let mut constraint = constraint.as_mut();
        if let Some(constraint) = &mut constraint {
            constraint.follow(text.generated()).unwrap();
        }
        let judge = |logits| {
            let position = before;
            LogitsJudge { sampler, logits, vocab, position, history, constraint }
        };
        let outcome = if step == 0 || mode == Mode::Ar {
            // The first token of every text is the target's own, and every token in AR.
            let logits = target.feed(text.tokens());
            let logits = &logits[logits.len() - vocab..];
            ar::step(text, &mut judge(logits))
        } else if mode == Mode::Sd || mode == Mode::Suffix {
            let constraint = drafts_constraint.as_mut();
            let chunk = match mode {
                Mode::Suffix => guessed(text.tokens(), gamma(step)),
                _ => draft.draft(text.tokens(), prompt_len, gamma(step), sampler, constraint),
            };
            let drafted = chunk.iter().map(|draft| draft.token);
            let prefix: Vec<u32> = text.tokens().iter().copied().chain(drafted).collect();
            let logits = &target.feed(&prefix);
            assert_eq!(logits.len(), (1 + chunk.len()) * vocab);
            sd::step(text, &chunk, verified(verification, judge(logits)).as_mut())
        } else {
            let prefix = pearl.prefix(text);
            let logits = &target.feed(&prefix);
            assert_eq!(logits.len(), (1 + pearl.pending().len()) * vocab);
            let gamma = gamma(step);
            let mut drafting = Drafting {
                draft: &mut draft,
                prompt_len,
                sampler,
                constraint: &mut drafts_constraint,
            };
            let chunk = drafting.draft(&prefix, gamma);
            let branches = match mode {
                Mode::Forked => drafting.branches(text, &pearl, &chunk, gamma, verification),
                _ => Vec::new(),
            };
            let (caches, branches): (Vec<Cached>, Vec<Branch>) = branches.into_iter().unzip();
            let mut judge = verified(verification, judge(logits));
            let step = pearl.step_with_branches(text, chunk, &[], &branches, judge.as_mut());
            step.map(|(outcome, taken)| {
                if let Some(cache) = taken.and_then(|i| caches.into_iter().nth(i))
                    && pearl.phase() == Phase::PostVerify
                {
                    draft = cache;
                }
                outcome
            })
        }
        .unwrap();
        assert_eq!(text.tokens().len(), before + outcome.committed);
        assert!(outcome.committed > 0, "a step commits at least one token");
        assert!(outcome.accepted <= outcome.judged && outcome.judged <= outcome.accepted + 1);
        target.cache.truncate(text.tokens().len() - 1);
        draft.cache.truncate(pearl.prefix(text).len() - 1);
        if verification == Verification::Block && outcome.ends_run {
            keyed.start_run(text.tokens().len());
        }
        outcomes.push(outcome);
        step += 1;
    }
    assert!(pearl.pending().is_empty(), "a finished text has nothing pending");
    outcomes
}

/// A judge that verifies drafts one by one or together.
fn verified<'a>(verification: Verification, judge: LogitsJudge<'a>) -> Box<dyn Judge + 'a> {
    match verification {
        Verification::Token => Box::new(judge),
        Verification::Block => Box::new(BlockJudge(judge)),
    }
}
