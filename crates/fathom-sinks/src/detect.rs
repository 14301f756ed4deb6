//! Sink detection: which tokens are sinks, at which layers, and of which class. See "Reference sink
//! and span", "Sink tokens" and "Classes" in docs/definitions.md.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::phases::{merged, runs};
use crate::{
    CandidateCosines, Class, FinalState, Measures, Phase, Phases, Preset, Sink, TraceScalars,
};

/// Options of sink detection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectOptions {
    /// Rules of alignment and classification.
    pub preset: Preset,
    /// τ: a token is a sink where its cosine with the reference exceeds it.
    pub threshold: f32,
    /// The reference is a primary sink if its norm rises by at least this many times the mean norm
    /// of the other tokens; see [`Detection::rise`].
    pub rise_factor: f32,
}

impl DetectOptions {
    /// The preset's threshold, and a rise of at least five.
    pub fn new(preset: Preset) -> DetectOptions {
        DetectOptions { preset, threshold: preset.threshold(), rise_factor: 5.0 }
    }
}

/// The layers at which the reference is a sink: `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clip {
    /// First layer.
    pub start: usize,
    /// One past the last layer.
    pub end: usize,
}

impl Clip {
    /// The layers.
    pub fn layers(self) -> Range<usize> {
        self.start..self.end
    }

    /// From the largest rise of the reference's norm to the largest fall after it: Reference sink
    /// and span (docs/definitions.md). `None` with fewer than two layers, which show no rise. If
    /// the largest rise is the last step, the reference remains a sink to the end.
    fn of(reference_norm: &[f32]) -> Option<Clip> {
        let steps: Vec<f32> = reference_norm.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let start = first_best(&steps, |step, best| step > best)? + 1;
        let fall = first_best(&steps[start..], |step, best| step < best);
        let end = fall.map_or(reference_norm.len(), |i| start + i + 1);
        Some(Clip { start, end })
    }

    /// The span within a run of layers in which the norm of the reference is large: from the
    /// largest step into or within the run to the largest fall after it, or to the end of the run
    /// if the norm never falls.
    fn within(run: Range<usize>, reference_norm: &[f32]) -> Clip {
        let step = |l: usize| reference_norm[l] - reference_norm[l - 1];
        let rises: Vec<f32> = (run.start.max(1)..run.end).map(step).collect();
        let start = first_best(&rises, |step, best| step > best).unwrap_or(0) + run.start.max(1);
        let start = start.min(run.end - 1); // a run of the first layer alone has no step
        let falls: Vec<f32> =
            (start + 1..=run.end.min(reference_norm.len() - 1)).map(step).collect();
        let fall = first_best(&falls, |step, best| step < best).filter(|i| falls[*i] < 0.0);
        Clip { start, end: fall.map_or(run.end, |i| start + 1 + i) }
    }
}

/// The outcome of detection for a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Fewer than two tokens or two layers, or no candidate for the reference within the trace:
    /// sinks cannot be detected.
    TooShort,
    /// The reference does not rise above the other tokens, so alignment with it means nothing.
    NoPrimarySink,
    /// Primary sinks, and no secondary ones.
    PrimaryOnly,
    /// Primary and secondary sinks.
    SecondarySinks,
}

impl Finding {
    /// The finding for a trace with these sinks, which include the reference.
    pub(crate) fn of(sinks: &[Sink]) -> Finding {
        match sinks.iter().any(|sink| sink.class == Class::Secondary) {
            true => Finding::SecondarySinks,
            false => Finding::PrimaryOnly,
        }
    }
}

/// The sinks of one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// The outcome.
    pub finding: Finding,
    /// Position of the reference sink, or of the chosen candidate if there is no primary sink.
    pub reference: usize,
    /// The layers at which the reference is a sink; `None` for [`Finding::TooShort`].
    pub clip: Option<Clip>,
    /// Rise of the reference's norm into the clip's first layer, divided by the mean norm at that
    /// layer of the tokens not aligned with it (by its own previous norm if all tokens are
    /// aligned). 0 for [`Finding::TooShort`].
    pub rise: f32,
    /// The sinks by position, including the reference; empty without a primary sink.
    pub sinks: Vec<Sink>,
    /// The other phases, by first layer, with the sinks of each.
    pub other_phases: Vec<Phase>,
}

impl Detection {
    /// The sinks of the given phases, by position, then first layer.
    pub fn sinks_of(&self, phases: Phases) -> Vec<Sink> {
        match phases {
            Phases::Largest => self.sinks.clone(),
            Phases::All => merged(&self.sinks, &self.other_phases),
        }
    }

    /// Their positions, ascending, each once.
    pub fn sink_positions(&self, phases: Phases) -> Vec<usize> {
        let sinks = self.sinks_of(phases);
        let mut positions: Vec<usize> = sinks.iter().map(|sink| sink.position).collect();
        positions.dedup(); // they are ascending
        positions
    }
}

/// Detects and classifies the sinks of a trace.
pub fn detect(scalars: &TraceScalars, options: &DetectOptions) -> Detection {
    let states = States::new(scalars, options.preset);
    let reference = states.position();
    // Every candidate may be beyond the end of a short trace.
    let layers = if scalars.tokens() < 2.max(reference + 1) { 0 } else { scalars.layers() };
    let norms: Vec<f32> = (0..layers).map(|l| states.norm(l, reference)).collect();
    let clip = Clip::of(&norms);
    let mut detection = Detection {
        finding: Finding::TooShort,
        reference,
        clip,
        rise: 0.0,
        sinks: Vec::new(),
        other_phases: Vec::new(),
    };
    let Some(clip) = clip else { return detection };

    detection.rise = states.rise(clip.start, &norms, options);
    let has_primary = detection.rise >= options.rise_factor;
    detection.other_phases = states.other_phases(has_primary.then_some(clip), &norms, options);
    detection.finding = Finding::NoPrimarySink;
    if has_primary {
        detection.sinks = states.sinks(clip, options);
        detection.finding = Finding::of(&detection.sinks);
    }
    detection
}

/// Norms and cosines as a preset defines them, with the chosen reference.
struct States<'a> {
    scalars: &'a TraceScalars,
    preset: Preset,
    candidate: usize,
}

impl<'a> States<'a> {
    /// Chooses the candidate with the highest mean norm over layers as the reference; ties go to
    /// the first one.
    fn new(scalars: &'a TraceScalars, preset: Preset) -> States<'a> {
        let mut states = States { scalars, preset, candidate: 0 };
        let mean_norm = |candidate: &CandidateCosines| -> f64 {
            if candidate.position >= scalars.tokens() {
                return f64::NEG_INFINITY; // beyond the end of the trace
            }
            let norm = |l| f64::from(states.norm(l, candidate.position));
            (0..scalars.layers()).map(norm).sum()
        };
        let means: Vec<f64> = scalars.candidates.iter().map(mean_norm).collect();
        states.candidate = first_best(&means, |mean, best| mean > best).unwrap_or(0);
        states
    }

    fn position(&self) -> usize {
        self.scalars.candidates.get(self.candidate).map_or(0, |candidate| candidate.position)
    }

    fn after_final_norm(&self, l: usize) -> Option<&FinalState> {
        let last = l + 1 == self.scalars.layers();
        self.scalars.final_state.as_ref().filter(|_| last && self.preset == Preset::Upstream)
    }

    fn norm(&self, l: usize, t: usize) -> f32 {
        match self.after_final_norm(l) {
            Some(state) => state.norm[t],
            None => self.scalars.hidden_norm.at(l, t),
        }
    }

    fn cosine(&self, l: usize, t: usize) -> f32 {
        match self.after_final_norm(l) {
            Some(state) => state.cosine[self.candidate][t],
            None => self.scalars.candidates[self.candidate].cosine.at(l, t),
        }
    }

    /// Mean norm at layer `l` of the tokens not aligned with the reference there. If every token is
    /// aligned, `before`, the reference's own norm at the layer before.
    fn mean_other_norm(&self, l: usize, before: f32, options: &DetectOptions) -> f64 {
        let reference = self.position();
        let aligned = |t| self.preset.aligned(self.cosine(l, t), options.threshold);
        let others = (0..self.scalars.tokens()).filter(|t| *t != reference && !aligned(*t));
        let (sum, count) = others
            .fold((0.0f64, 0u32), |(sum, count), t| (sum + f64::from(self.norm(l, t)), count + 1));
        if count == 0 { f64::from(before) } else { sum / f64::from(count) }
    }

    /// See [`Detection::rise`].
    fn rise(&self, start: usize, reference_norm: &[f32], options: &DetectOptions) -> f32 {
        let before = reference_norm[start - 1];
        let base = self.mean_other_norm(start, before, options);
        let rise = f64::from(reference_norm[start]) - f64::from(before);
        ratio(rise, base)
    }

    /// All phases except `largest`, that of the largest rise, if it has a primary sink.
    fn other_phases(
        &self,
        largest: Option<Clip>,
        reference_norm: &[f32],
        options: &DetectOptions,
    ) -> Vec<Phase> {
        let ratio_at = |(l, norm): (usize, &f32)| {
            let before = l.checked_sub(1).map_or(0.0, |before| reference_norm[before]);
            ratio(f64::from(*norm), self.mean_other_norm(l, before, options))
        };
        let ratios: Vec<f32> = reference_norm.iter().enumerate().map(ratio_at).collect();
        let in_largest = |run: &Range<usize>| {
            largest
                .is_some_and(|clip| run.contains(&clip.start) || clip.layers().contains(&run.start))
        };
        let others = runs(&ratios, options.rise_factor).into_iter().filter(|run| !in_largest(run));
        others
            .map(|run| {
                let clip = Clip::within(run, reference_norm);
                Phase {
                    clip,
                    rise: match clip.start {
                        0 => ratios[0],
                        start => self.rise(start, reference_norm, options),
                    },
                    peak: ratios[clip.layers()].iter().copied().fold(0.0, f32::max),
                    sinks: self.sinks(clip, options),
                }
            })
            .collect()
    }

    fn sinks(&self, clip: Clip, options: &DetectOptions) -> Vec<Sink> {
        let reference = self.position();
        let first = match self.preset {
            Preset::Paper => 0,
            Preset::Upstream => reference,
        };
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // position → layers
        for l in clip.layers() {
            for t in first..self.scalars.tokens() {
                if t == reference || self.preset.aligned(self.cosine(l, t), options.threshold) {
                    found.entry(t).or_default().push(l);
                }
            }
        }
        found.into_iter().map(|(position, layers)| self.sink(position, layers, clip)).collect()
    }

    fn sink(&self, position: usize, layers: Vec<usize>, clip: Clip) -> Sink {
        let cosine = |l: &usize| match self.preset {
            Preset::Paper => self.cosine(*l, position),
            Preset::Upstream => self.cosine(*l, position).abs(),
        };
        let cosines: Vec<f32> = layers.iter().map(cosine).collect();
        Sink {
            position,
            token_id: self.scalars.token_ids[position],
            token_text: None,
            class: self.preset.classify(&layers, clip, self.scalars.layers()),
            measures: Some(Measures::new(self.scalars, position, layers[0], &cosines)),
            sink_score: None,
            layers,
        }
    }
}

/// amount / base, always finite.
pub(crate) fn ratio(amount: f64, base: f64) -> f32 {
    match base > 0.0 {
        true => (amount / base).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32,
        false if amount > 0.0 => f32::MAX, // all other tokens are zero vectors
        false => 0.0,
    }
}

/// Index of the best value by `beats`, the first of equals; `None` if there are none.
fn first_best<T: Copy>(values: &[T], beats: impl Fn(T, T) -> bool) -> Option<usize> {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if beats(*value, values[best]) {
            best = i;
        }
    }
    (!values.is_empty()).then_some(best)
}
