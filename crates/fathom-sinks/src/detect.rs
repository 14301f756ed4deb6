//! Sink detection: which tokens are sinks, at which layers, and of which class. Reference sink and
//! span, Sink tokens and Classes (docs/definitions.md).

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{CandidateCosines, Class, FinalState, Measures, Preset, Sink, TraceScalars};

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
}

/// The outcome of detection for a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Fewer than two tokens or two layers: sinks cannot be detected.
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
}

/// Detects and classifies the sinks of a trace.
pub fn detect(scalars: &TraceScalars, options: &DetectOptions) -> Detection {
    let states = States::new(scalars, options.preset);
    let reference = states.position();
    let norms: Vec<f32> = (0..scalars.layers()).map(|l| states.norm(l, reference)).collect();
    let clip = if scalars.tokens() < 2 { None } else { Clip::of(&norms) };
    let Some(clip) = clip else {
        let finding = Finding::TooShort;
        return Detection { finding, reference, clip: None, rise: 0.0, sinks: Vec::new() };
    };

    let rise = states.rise(clip.start, &norms, options);
    if rise < options.rise_factor {
        let finding = Finding::NoPrimarySink;
        return Detection { finding, reference, clip: Some(clip), rise, sinks: Vec::new() };
    }

    let sinks = states.sinks(clip, options);
    let finding = Finding::of(&sinks);
    Detection { finding, reference, clip: Some(clip), rise, sinks }
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

    /// See [`Detection::rise`].
    fn rise(&self, start: usize, reference_norm: &[f32], options: &DetectOptions) -> f32 {
        let reference = self.position();
        let aligned = |t| self.preset.aligned(self.cosine(start, t), options.threshold);
        let others = (0..self.scalars.tokens()).filter(|t| *t != reference && !aligned(*t));
        let (sum, count) = others.fold((0.0f64, 0u32), |(sum, count), t| {
            (sum + f64::from(self.norm(start, t)), count + 1)
        });
        let base = match count {
            0 => f64::from(reference_norm[start - 1]),
            count => sum / f64::from(count),
        };
        let rise = f64::from(reference_norm[start]) - f64::from(reference_norm[start - 1]);
        match base > 0.0 {
            true => (rise / base).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32,
            false if rise > 0.0 => f32::MAX, // all other tokens are zero vectors
            false => 0.0,
        }
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
