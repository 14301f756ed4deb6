//! Several passes over the same text in one batch, each with its own edits and hidden keys.

use fathom_backend::{Backend, RowEdit};
use fathom_model::{
    Access, At, EditProbe, Edits, LogitRows, Logits, Measured, Probe, Result, Sequence,
    SequenceOptions, Site, Step, Transformer,
};

use super::keys::{CHUNK, KeyPolicy};

/// What a pass over a trace does differently from the plain pass.
#[derive(Default)]
pub(super) struct EditedPass {
    /// Its edits.
    pub edits: Edits,
    /// The keys it hides from later queries, if any.
    pub keys: Option<KeyPolicy>,
    /// Whether to measure the attention that tokens receive, here and in the plain pass.
    pub attention: bool,
}

impl EditedPass {
    /// A pass with edits only.
    pub fn of(edits: Edits) -> EditedPass {
        EditedPass { edits, ..EditedPass::default() }
    }

    /// A pass that hides keys.
    pub fn hiding(keys: KeyPolicy) -> EditedPass {
        EditedPass { keys: Some(keys), ..EditedPass::default() }
    }
}

/// The sequences of several passes over the same text.
pub(super) struct Batch<'a, B: Backend> {
    model: &'a Transformer<B>,
    pub passes: Vec<&'a EditedPass>,
    pub sequences: Vec<Sequence<B>>,
}

impl<'a, B: Backend> Batch<'a, B> {
    /// Empty sequences of a text that will have at least `planned_len` tokens. The first pass is
    /// the plain one.
    pub fn new(
        model: &'a Transformer<B>,
        passes: Vec<&'a EditedPass>,
        planned_len: usize,
    ) -> Batch<'a, B> {
        let measured = passes.iter().any(|pass| pass.attention);
        let of_pass = |(number, pass): (usize, &&EditedPass)| {
            let policy = pass.keys.as_ref();
            let sink_scores = pass.attention
                || (number == 0 && measured)
                || policy.is_some_and(KeyPolicy::needs_attention);
            let mut sequence = model.new_sequence(SequenceOptions {
                planned_len: Some(planned_len),
                sink_scores,
                attention_entropy: sink_scores && measured,
                ..SequenceOptions::default()
            });
            if let Some(policy) = policy {
                policy.begin(&mut sequence);
            }
            sequence
        };
        let sequences = passes.iter().enumerate().map(of_pass).collect();
        Batch { model, passes, sequences }
    }

    /// Runs the next tokens of each sequence: at most [`CHUNK`], up to the next multiple of it.
    ///
    /// # Errors
    /// A pass that fails.
    pub fn forward(
        &mut self,
        tokens: &[&[u32]],
        logits: LogitRows,
        probe: &mut dyn Probe,
    ) -> Result<Logits<B>> {
        for (pass, sequence) in self.passes.iter().zip(&mut self.sequences) {
            if let Some(policy) =
                pass.keys.as_ref().filter(|_| sequence.len().is_multiple_of(CHUNK))
            {
                policy.before_chunk(self.model, sequence)?;
            }
        }
        let steps = self.sequences.iter_mut().zip(tokens);
        let mut steps: Vec<Step<'_, B>> =
            steps.map(|(sequence, tokens)| Step { sequence, tokens, logits }).collect();
        self.model.forward(&mut steps, Some(probe))
    }

    /// Greedily generates `tokens` tokens after `ids` in every sequence, all of them still empty.
    ///
    /// # Errors
    /// A pass that fails.
    pub fn write_after(mut self, ids: &[u32], tokens: usize) -> Result<Vec<Vec<u32>>> {
        let edits = self.passes.iter().map(|pass| EditProbe::new(&pass.edits));
        let mut probe = ProbePerSequence { probes: edits.collect() };
        let mut written = vec![Vec::with_capacity(tokens); self.passes.len()];
        let Some((last, before)) = ids.split_last() else { return Ok(written) };
        for chunk in before.chunks(CHUNK) {
            let same = vec![chunk; self.passes.len()];
            self.forward(&same, LogitRows::None, &mut probe)?;
        }
        let mut next = vec![*last; self.passes.len()];
        for _ in 0..tokens {
            let step: Vec<&[u32]> = next.iter().map(std::slice::from_ref).collect();
            let logits = self.forward(&step, LogitRows::Last, &mut probe)?;
            for (pass, written) in written.iter_mut().enumerate() {
                next[pass] = argmax(&logits.step(self.model.backend(), pass)?);
                written.push(next[pass]);
            }
        }
        Ok(written)
    }
}

/// The index of the largest value, the first of equals.
pub(super) fn argmax(values: &[f32]) -> u32 {
    let best = values.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    best.and_then(|(index, _)| u32::try_from(index).ok()).unwrap_or(0)
}

/// A probe for each sequence of a batch.
pub(super) struct ProbePerSequence<'a> {
    pub probes: Vec<EditProbe<'a>>,
}

impl Probe for ProbePerSequence<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        let wanted = self.probes.iter().map(|probe| probe.access(site, layer));
        wanted.fold(Access::Skip, Access::union)
    }

    fn access_of(&self, sequence: usize, site: Site, layer: usize) -> Access {
        self.probes.get(sequence).map_or(Access::Skip, |probe| probe.access(site, layer))
    }

    fn reference_positions(&self, sequence: usize) -> Vec<usize> {
        self.probes.get(sequence).map_or_else(Vec::new, |probe| probe.reference_positions(sequence))
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.probes.get_mut(at.sequence).map_or(Ok(()), |probe| probe.read(at, values))
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        self.probes.get_mut(at.sequence).map_or(Ok(()), |probe| probe.edit(at, values))
    }

    fn changes(&mut self, at: &At) -> Result<Vec<RowEdit<'_>>> {
        self.probes.get_mut(at.sequence).map_or_else(|| Ok(Vec::new()), |probe| probe.changes(at))
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.probes.get_mut(at.sequence).map_or(Ok(()), |probe| probe.measured(at, measured))
    }
}
