//! Overhead of probes: a plain pass compared with the same pass with probes.

use std::time::{Duration, Instant};

use fathom_backend::Backend;
use fathom_model::{
    Access, At, PREFILL_CHUNK, Probe, Result, SequenceOptions, Site, TokenizedTrace, Transformer,
};
use fathom_sinks::{Preset, ScanOptions, scan_trace};
use serde::Serialize;

use crate::{median, synthetic_ids};

/// Time for one text without and with probes; medians over the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Overhead {
    /// Length of the text in tokens.
    pub tokens: usize,
    /// Prefill without a probe, in tokens per second.
    pub prefill_tokens_per_s: f64,
    /// Relative time with every layer's `resid_post` copied to the host (1 = no overhead).
    pub capture: f64,
    /// Relative time of a scan: norms and cosines at every layer.
    pub scan: f64,
    /// Relative time of a scan with the sink scores of every token, head and layer.
    pub scan_attention: f64,
}

/// Measures a text of `tokens` tokens `repeats` times in each mode. The modes alternate, so that a
/// slowdown of the machine affects all of them; ratios are medians of the ratios within a repeat.
///
/// # Errors
/// As [`scan_trace`].
pub fn overhead<B: Backend>(
    model: &Transformer<B>,
    tokens: usize,
    repeats: usize,
) -> Result<Overhead> {
    let ids = synthetic_ids(model.config(), tokens);
    let trace = TokenizedTrace { index: 0, line: 1, ids, prompt_len: 0, remarks: Vec::new() };
    let bare = ScanOptions::new(Preset::Paper);
    let attention = ScanOptions { attention: true, ..bare.clone() };

    let (mut prefill, mut ratios) = (Vec::new(), [const { Vec::new() }; 3]);
    for _ in 0..repeats.max(1) {
        let base = timed(|| run(model, &trace, None))?;
        let mut copied = ResidPost(Vec::new());
        let probed = [
            timed(|| run(model, &trace, Some(&mut copied)))?,
            timed(|| scan_trace(model, &trace, &|_| None, &bare, &mut ()).map(drop))?,
            timed(|| scan_trace(model, &trace, &|_| None, &attention, &mut ()).map(drop))?,
        ];
        prefill.push(tokens as f64 / base.as_secs_f64());
        for (ratios, time) in ratios.iter_mut().zip(probed) {
            ratios.push(time.as_secs_f64() / base.as_secs_f64());
        }
    }
    let [capture, scan, scan_attention] = ratios.map(median);
    Ok(Overhead { tokens, prefill_tokens_per_s: median(prefill), capture, scan, scan_attention })
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}

fn run<B: Backend>(
    model: &Transformer<B>,
    trace: &TokenizedTrace,
    probe: Option<&mut dyn Probe>,
) -> Result<()> {
    let mut sequence = model.new_sequence(SequenceOptions::default());
    model.prefill(&mut sequence, &trace.ids, PREFILL_CHUNK, probe, &mut |_| {})
}

/// Copies every layer's output for the current chunk.
struct ResidPost(Vec<f32>);

impl Probe for ResidPost {
    fn access(&self, site: Site, _: usize) -> Access {
        if site == Site::ResidPost { Access::Read } else { Access::Skip }
    }

    fn read(&mut self, _: &At, values: &[f32]) -> Result<()> {
        self.0.clear();
        self.0.extend_from_slice(values);
        Ok(())
    }
}
