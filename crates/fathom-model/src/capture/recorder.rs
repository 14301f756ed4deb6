//! Keeping what a probe sees in memory, in a pass of the caller's own.

use fathom_backend::Backend;

use super::memory::Memory;
use super::{Captured, Filling};
use crate::{Access, At, CaptureRequest, Model, ModelConfig, Probe, Result, Sequence, Site};

/// A probe that keeps what a [`CaptureRequest`] names, for whoever runs the pass himself: because
/// he wants logits of it too, or watches it with other probes. The request's edits are not made.
///
/// The sequence is made with at least what [`CaptureRequest::sequence_options`] says, all tokens
/// are run, from the first, and [`Recorder::finish`] gives what was seen.
pub struct Recorder<'a>(pub(super) Filling<'a, Memory>);

impl<'a> Recorder<'a> {
    /// Makes room for what `request` names of a pass over `ids`.
    ///
    /// # Errors
    /// No tokens; a position beyond them; more values than there is memory for.
    pub fn new(
        request: &'a CaptureRequest,
        config: &ModelConfig,
        ids: &[u32],
    ) -> Result<Recorder<'a>> {
        request.check(ids)?;
        let tensors = request.tensors(config, ids.len());
        let store = Memory::for_tensors(&tensors)?;
        Ok(Recorder(Filling { request, tensors, tokens: ids.len(), store }))
    }

    /// What was captured, in the order of the forward pass.
    ///
    /// # Errors
    /// The backend's.
    pub fn finish<B: Backend>(
        mut self,
        model: &Model<B>,
        sequence: &Sequence<B>,
    ) -> Result<Vec<Captured>> {
        self.0.sink_scores(model, sequence)?;
        Ok(self.into_captured())
    }

    pub(super) fn into_captured(self) -> Vec<Captured> {
        let Filling { tensors, store, .. } = self.0;
        tensors
            .into_iter()
            .zip(store.values)
            .map(|(tensor, values)| tensor.filled(values))
            .collect()
    }
}

impl Probe for Recorder<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        self.0.access(site, layer)
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.0.read(at, values)
    }
}
