//! Capturing into memory from a pass that the caller runs.

use fathom_backend::Backend;

use super::memory::MemoryStore;
use super::{CaptureProbe, Captured};
use crate::{Access, At, CaptureRequest, ModelConfig, Probe, Result, Sequence, Site, Transformer};

/// A probe that records what a [`CaptureRequest`] names, for callers that run the pass themselves,
/// for example because they also need logits or use other probes. It does not make the request's
/// edits.
///
/// Create the sequence with [`CaptureRequest::sequence_options`], run all tokens from the first
/// one, then call [`Recorder::finish`].
pub struct Recorder<'a>(pub(super) CaptureProbe<'a, MemoryStore>);

impl<'a> Recorder<'a> {
    /// Allocates memory for the values that `request` names, for a pass over `ids`.
    ///
    /// # Errors
    /// No tokens; a position beyond them; not enough memory.
    pub fn new(
        request: &'a CaptureRequest,
        config: &ModelConfig,
        ids: &[u32],
    ) -> Result<Recorder<'a>> {
        request.check(ids)?;
        let tensors = request.tensors(config, ids.len());
        let store = MemoryStore::for_tensors(&tensors)?;
        Ok(Recorder(CaptureProbe { request, tensors, tokens: ids.len(), store }))
    }

    /// The captured values, sorted as by [`crate::capture_in_memory`].
    ///
    /// # Errors
    /// Those of the backend.
    pub fn finish<B: Backend>(
        mut self,
        model: &Transformer<B>,
        sequence: &Sequence<B>,
    ) -> Result<Vec<Captured>> {
        self.0.sink_scores(model, sequence)?;
        Ok(self.into_captured())
    }

    pub(super) fn into_captured(self) -> Vec<Captured> {
        let CaptureProbe { tensors, store, .. } = self.0;
        tensors
            .into_iter()
            .zip(store.values)
            .map(|(tensor, values)| tensor.with_values(values))
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
