//! One plain pass over each trace, shared by all observers.

use std::cell::RefCell;
use std::ops::Range;

use fathom_backend::Backend;
use fathom_model::{
    Access, At, PREFILL_CHUNK, Probe, Result, Sequence, SequenceOptions, Site, Transformer,
};

use super::ExplainProgress;
use super::driver::advanced;
use super::parts::{PartId, Parts};
use super::scanned::ScannedTrace;
use crate::checked::Checked;

/// Collects what an analysis needs from the plain pass over each trace.
///
/// For each trace it makes a part: `begin`, `read` of each place it wants, `scores`, `end`, `part`.
/// The part is stored and then passed to `add`. After an interruption `add` gets the stored parts
/// instead, in the same order, so the sums have the same bits.
pub(super) trait Observer<B: Backend> {
    /// The name of its parts. Observers with the same name must collect the same data.
    fn name(&self) -> &'static str;

    /// Number of tokens that [`Observer::end`] runs, for the progress.
    fn extra_tokens(&self, _trace: &ScannedTrace<'_>) -> usize {
        0
    }

    /// Whether it wants [`Observer::scores`].
    fn wants_scores(&self) -> bool {
        false
    }

    /// A trace begins.
    fn begin(&mut self, trace: &ScannedTrace<'_>);

    /// Whether it wants to read a site of a layer.
    fn wants(&self, site: Site, layer: usize) -> bool;

    /// Consecutive rows of a place it wants.
    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>);

    /// Sink scores `[heads, T]` of a layer, after the whole trace.
    fn scores(&mut self, _trace: &ScannedTrace<'_>, _layer: usize, _scores: &[f32]) {}

    /// The trace is done. `sequence` holds its keys and values, and may be truncated or extended,
    /// so it may already have been changed by observers earlier in the list. Call `advance` with
    /// the number of tokens run here.
    ///
    /// # Errors
    /// A pass that fails.
    fn end(
        &mut self,
        _model: &Transformer<B>,
        _sequence: &mut Sequence<B>,
        _trace: &ScannedTrace<'_>,
        _advance: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        Ok(())
    }

    /// What it collected from this trace, encoded by [`super::parts::encode`].
    ///
    /// # Errors
    /// None: see [`super::parts::encode`].
    fn part(&mut self) -> Result<Vec<u8>>;

    /// Adds the part of the next trace. Returns false if the part cannot be decoded.
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

    /// The row of a position, if it is one of these positions.
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

/// Observers with the same name: the first collects for all of them.
struct SameName<'a, B: Backend> {
    observers: Vec<&'a mut dyn Observer<B>>,
}

impl<B: Backend> SameName<'_, B> {
    fn name(&self) -> &'static str {
        self.observers[0].name()
    }

    fn add(&mut self, part: &[u8]) -> bool {
        self.observers.iter_mut().all(|observer| observer.add(part))
    }
}

/// Adds the stored parts of all traces. Each trace for which some observer has no stored part is
/// run through the model once, for all such observers. Reports the tokens to `progress`.
///
/// # Errors
/// A pass that fails; a part that cannot be stored.
pub(super) fn observe<B: Backend>(
    model: &Transformer<B>,
    traces: &[ScannedTrace<'_>],
    observers: Vec<&mut dyn Observer<B>>,
    parts: &Parts,
    progress: &mut dyn ExplainProgress,
) -> Result<()> {
    let mut groups: Vec<SameName<'_, B>> = Vec::new();
    for observer in observers {
        match groups.iter_mut().find(|group| group.name() == observer.name()) {
            Some(group) => group.observers.push(observer),
            None => groups.push(SameName { observers: vec![observer] }),
        }
    }
    let tokens = |trace: &ScannedTrace<'_>| {
        let missing = || groups.iter().filter(|g| !parts.has(PartId::new(g.name(), trace)));
        let extra: usize = missing().map(|group| group.observers[0].extra_tokens(trace)).sum();
        if missing().next().is_some() { trace.ids.len() + extra } else { 0 }
    };
    progress.start("observing", "tokens", traces.iter().map(tokens).sum());
    for trace in traces {
        let mut missing: Vec<&mut SameName<'_, B>> = Vec::new();
        for group in &mut groups {
            let part = parts.read(PartId::new(group.name(), trace));
            if !part.is_some_and(|part| group.add(&part)) {
                missing.push(group);
            }
        }
        if missing.is_empty() {
            continue;
        }
        let mut observers: Vec<&mut dyn Observer<B>> = Vec::new();
        for group in &mut missing {
            observers.push(&mut *group.observers[0]);
        }
        observe_one(model, trace, &mut observers, progress)?;
        for group in missing {
            let part = group.observers[0].part()?;
            parts.write(PartId::new(group.name(), trace), &part)?;
            group.add(&part);
        }
    }
    Ok(())
}

/// Runs one trace through the model.
fn observe_one<B: Backend>(
    model: &Transformer<B>,
    trace: &ScannedTrace<'_>,
    observers: &mut [&mut dyn Observer<B>],
    progress: &mut dyn ExplainProgress,
) -> Result<()> {
    observers.iter_mut().for_each(|observer| observer.begin(trace));
    let sink_scores = observers.iter().any(|observer| observer.wants_scores());
    let planned_len = Some(trace.ids.len());
    let mut sequence = model.new_sequence(SequenceOptions {
        planned_len,
        sink_scores,
        ..SequenceOptions::default()
    });
    let mut done = 0;
    let mut probe = AllObservers { observers: &mut *observers };
    let shared = RefCell::new(&mut *progress);
    let mut check = || shared.borrow_mut().check();
    let mut checked = Checked { probe: &mut probe, check: &mut check };
    model.prefill(&mut sequence, trace.ids, PREFILL_CHUNK, Some(&mut checked), &mut |total| {
        shared.borrow_mut().advance(total - done);
        done = total;
    })?;
    for layer in 0..model.config().layers {
        if let Some(scores) = model.sink_score(&sequence, layer)? {
            let wanting = observers.iter_mut().filter(|observer| observer.wants_scores());
            wanting.for_each(|observer| observer.scores(trace, layer, &scores));
        }
    }
    sequence.stop_sink_scores();
    for observer in observers.iter_mut() {
        observer.end(model, &mut sequence, trace, &mut |tokens| advanced(progress, tokens))?;
    }
    Ok(())
}

/// All observers, as one probe.
struct AllObservers<'a, 'b, B: Backend> {
    observers: &'a mut [&'b mut dyn Observer<B>],
}

impl<B: Backend> Probe for AllObservers<'_, '_, B> {
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
