//! One plain pass over each trace, shared by every analysis that looks at one.

use std::cell::RefCell;
use std::ops::Range;

use fathom_backend::Backend;
use fathom_model::{
    Access, At, Model, PREFILL_CHUNK, Probe, Result, Sequence, SequenceOptions, Site,
};

use super::ExplainProgress;
use super::driver::advanced;
use super::parts::{Learner, Parts};
use super::subjects::Subject;
use crate::checked::Checked;

/// What an analysis does with the pass: it learns of one trace after the other, and adds them up.
pub(super) trait Observer<B: Backend> {
    /// Whose its parts are.
    fn learner(&self) -> Learner;

    /// Tokens it runs beside the pass over a trace.
    fn more_tokens(&self, _subject: &Subject<'_>) -> usize {
        0
    }

    /// Whether it wants [`Observer::scores`].
    fn wants_scores(&self) -> bool {
        false
    }

    /// A trace begins.
    fn begin(&mut self, subject: &Subject<'_>);

    /// Whether it wants to see this place.
    fn wants(&self, site: Site, layer: usize) -> bool;

    /// Some consecutive rows of a place it wants.
    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>);

    /// Sink scores `[heads, T]` of a layer, after the whole trace.
    fn scores(&mut self, _subject: &Subject<'_>, _layer: usize, _scores: &[f32]) {}

    /// The trace is through. The sequence holds all of it and may be run on, or truncated.
    ///
    /// # Errors
    /// A pass that fails.
    fn end(
        &mut self,
        _model: &Model<B>,
        _sequence: &mut Sequence<B>,
        _subject: &Subject<'_>,
        _advance: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        Ok(())
    }

    /// What it learnt of the trace that passed, to be kept and then added.
    ///
    /// # Errors
    /// None: see [`super::parts::encode`].
    fn part(&mut self) -> Result<Vec<u8>>;

    /// Adds what was learnt of the next trace; whether it could be read.
    fn add(&mut self, part: &[u8]) -> bool;
}

/// Rows `[positions, width]` of consecutive positions.
pub(super) struct Rows<'a> {
    positions: Range<usize>,
    values: &'a [f32],
}

impl<'a> Rows<'a> {
    pub fn new(positions: Range<usize>, values: &'a [f32]) -> Rows<'a> {
        Rows { positions, values }
    }

    /// The row of a position, if it is among these.
    pub fn get(&self, position: usize) -> Option<&'a [f32]> {
        let width = self.values.len() / self.positions.len().max(1);
        let row = position.checked_sub(self.positions.start)?;
        self.values.get(row * width..(row + 1) * width).filter(|_| width > 0)
    }

    /// (position, row)
    pub fn iter(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        let width = (self.values.len() / self.positions.len().max(1)).max(1);
        self.positions.clone().zip(self.values.chunks_exact(width))
    }
}

/// Runs through the model once each trace that some observer has not learnt of before. `progress`
/// is told how many tokens that is, and of those done since.
///
/// # Errors
/// A pass that fails; a part that cannot be kept.
pub(super) fn observe<B: Backend>(
    model: &Model<B>,
    subjects: &[Subject<'_>],
    observers: &mut [&mut dyn Observer<B>],
    parts: &Parts,
    progress: &mut dyn ExplainProgress,
) -> Result<()> {
    let left = |subject: &Subject<'_>| {
        let learnt = |observer: &&mut dyn Observer<B>| parts.has(observer.learner().of(subject));
        let left = || observers.iter().filter(|observer| !learnt(observer));
        let more: usize = left().map(|observer| observer.more_tokens(subject)).sum();
        if left().next().is_some() { subject.ids.len() + more } else { 0 }
    };
    progress.start("observing", "tokens", subjects.iter().map(left).sum());
    for subject in subjects {
        let mut left: Vec<&mut dyn Observer<B>> = Vec::new();
        for observer in observers.iter_mut() {
            let part = parts.read(observer.learner().of(subject));
            if !part.is_some_and(|part| observer.add(&part)) {
                left.push(&mut **observer);
            }
        }
        if left.is_empty() {
            continue;
        }
        observe_one(model, subject, &mut left, progress)?;
        for observer in left {
            let part = observer.part()?;
            parts.write(observer.learner().of(subject), &part)?;
            observer.add(&part);
        }
    }
    Ok(())
}

/// Runs one trace through the model.
fn observe_one<B: Backend>(
    model: &Model<B>,
    subject: &Subject<'_>,
    observers: &mut [&mut dyn Observer<B>],
    progress: &mut dyn ExplainProgress,
) -> Result<()> {
    observers.iter_mut().for_each(|observer| observer.begin(subject));
    let sink_scores = observers.iter().any(|observer| observer.wants_scores());
    let planned_len = Some(subject.ids.len());
    let mut sequence = model.new_sequence(SequenceOptions {
        planned_len,
        sink_scores,
        ..SequenceOptions::default()
    });
    let mut done = 0;
    let mut probe = Shared { observers: &mut *observers };
    let shared = RefCell::new(&mut *progress);
    let mut check = || shared.borrow_mut().check();
    let mut checked = Checked { probe: &mut probe, check: &mut check };
    model.prefill(&mut sequence, subject.ids, PREFILL_CHUNK, Some(&mut checked), &mut |total| {
        shared.borrow_mut().advance(total - done);
        done = total;
    })?;
    for layer in 0..model.config().layers {
        if let Some(scores) = model.sink_score(&sequence, layer)? {
            let wanting = observers.iter_mut().filter(|observer| observer.wants_scores());
            wanting.for_each(|observer| observer.scores(subject, layer, &scores));
        }
    }
    sequence.stop_sink_scores();
    for observer in observers.iter_mut() {
        observer.end(model, &mut sequence, subject, &mut |tokens| advanced(progress, tokens))?;
    }
    Ok(())
}

/// All observers, as one probe.
struct Shared<'a, 'b, B: Backend> {
    observers: &'a mut [&'b mut dyn Observer<B>],
}

impl<B: Backend> Probe for Shared<'_, '_, B> {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.observers.iter().any(|observer| observer.wants(site, layer)) {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let rows = Rows::new(at.positions.clone(), values);
        for observer in self.observers.iter_mut() {
            if observer.wants(at.site, at.layer) {
                observer.read(at.site, at.layer, &rows);
            }
        }
        Ok(())
    }
}
