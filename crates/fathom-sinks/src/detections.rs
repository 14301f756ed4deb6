//! Detections as JSON lines: the format of the published notebooks, plus Fathom's own fields.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::phases::merged;
use crate::{Class, Clip, Detection, Finding, Measures, Phase, Phases, Preset, Sink};

mod read;

pub use read::read_detections;

/// The sinks of one trace: a line of a detections file.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceDetection {
    /// Index of the trace in its data set.
    pub sample_index: u64,
    /// Number of prompt tokens; 0 if unknown.
    pub prompt_len: usize,
    /// Number of response tokens.
    pub response_len: usize,
    /// Number of tokens of prompt and response.
    pub full_text_len: usize,
    /// The sinks by position, including the reference.
    pub sinks: Vec<Sink>,
    /// The other phases with their sinks; empty once [`TraceDetection::with_phases`] has moved them
    /// into `sinks`.
    pub other_phases: Vec<Phase>,
    /// How they were found; absent in published files.
    pub scan: Option<ScanNote>,
}

/// What Fathom records about a scanned trace in addition to its sinks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScanNote {
    /// The outcome of detection.
    pub finding: Finding,
    /// Position of the reference.
    pub reference: usize,
    /// The layers at which the reference is a sink; absent if the trace was too short.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clip: Option<Clip>,
    /// Rise of the reference's norm: [`Detection::rise`].
    pub rise: f32,
    /// Number of layers of the model.
    pub layers: usize,
    /// Number of scanned tokens: less than `full_text_len` if the scan had a token limit.
    pub tokens: usize,
    /// The preset that determined the classes.
    pub preset: Preset,
}

impl ScanNote {
    /// Describes `detection` of a trace of `tokens` scanned tokens and a model of `layers` layers.
    pub fn new(detection: &Detection, layers: usize, tokens: usize, preset: Preset) -> ScanNote {
        let Detection { finding, reference, clip, rise, .. } = *detection;
        ScanNote { finding, reference, clip, rise, layers, tokens, preset }
    }
}

impl TraceDetection {
    /// The sinks of a trace of `len` tokens, of which `prompt_len` are the prompt's.
    pub fn new(
        detection: Detection,
        note: ScanNote,
        sample_index: u64,
        (prompt_len, len): (usize, usize),
    ) -> TraceDetection {
        TraceDetection {
            sample_index,
            prompt_len,
            response_len: len.saturating_sub(prompt_len),
            full_text_len: len,
            sinks: detection.sinks,
            other_phases: detection.other_phases,
            scan: Some(note),
        }
    }

    /// The sinks of all phases.
    pub fn all_sinks_mut(&mut self) -> impl Iterator<Item = &mut Sink> {
        let others = self.other_phases.iter_mut().flat_map(|phase| &mut phase.sinks);
        self.sinks.iter_mut().chain(others)
    }

    /// The line of a detections file, without the line break.
    pub fn to_json(&self) -> String {
        let sinks = self.sinks.iter().map(|sink| (sink.position, SinkFields::of(sink))).collect();
        let line = LineFields {
            candidate_sinks: sinks,
            sample_index: self.sample_index,
            prompt_len: self.prompt_len,
            response_len: self.response_len,
            full_text_len: self.full_text_len,
            fathom: self.scan,
            phases: self.other_phases.iter().map(PhaseFields::of).collect(),
        };
        // Serialization cannot fail: keys are integers and numbers are finite.
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// With `Phases::All`, moves the sinks of all phases into `sinks`, ordered by position, then
    /// first layer. A position occurs once per phase.
    pub fn with_phases(mut self, phases: Phases) -> TraceDetection {
        if phases == Phases::All && !self.other_phases.is_empty() {
            self.sinks = merged(&self.sinks, &self.other_phases);
            self.other_phases.clear();
            if let Some(note) = &mut self.scan {
                note.finding = Finding::of(&self.sinks);
            }
        }
        self
    }

    /// The sinks of one class.
    pub fn of_class(&self, class: Class) -> impl Iterator<Item = &Sink> {
        self.sinks.iter().filter(move |sink| sink.class == class)
    }

    /// Number of scanned tokens.
    pub fn scanned_tokens(&self) -> usize {
        self.scan.map_or(self.full_text_len, |note| note.tokens)
    }

    /// Mask `[T]` of the scanned tokens that are sinks of `classes`, at `layer` or at any layer.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let file = dir.path().join("detections.jsonl");
    /// # let line = r#"{"candidate_sinks":
    /// #   {"2": {"layer": [3, 4, 5], "token_id": 7, "sink_type": "secondary"}},
    /// #   "sample_index": 0, "prompt_len": 1, "response_len": 3, "full_text_len": 4}"#;
    /// # std::fs::write(&file, line.replace('\n', " ")).unwrap();
    /// use fathom_sinks::{Class, read_detections};
    ///
    /// let trace = &read_detections(&file)?[0]; // a sink at position 2, layers 3 to 5
    /// assert_eq!(trace.mask(None, &[Class::Secondary]), [false, false, true, false]);
    /// assert_eq!(trace.mask(Some(6), &Class::ALL), [false; 4]);
    /// # Ok::<(), fathom_model::Error>(())
    /// ```
    pub fn mask(&self, layer: Option<usize>, classes: &[Class]) -> Vec<bool> {
        let mut mask = vec![false; self.scanned_tokens()];
        let there = |sink: &&Sink| layer.is_none_or(|layer| sink.layers.contains(&layer));
        let wanted = self.sinks.iter().filter(|sink| classes.contains(&sink.class)).filter(there);
        for sink in wanted {
            if let Some(token) = mask.get_mut(sink.position) {
                *token = true;
            }
        }
        mask
    }

    /// Reclassifies the sinks by `preset`'s rules for a model of `layers` layers.
    ///
    /// The reference of a published line is its first sink, because the published scripts search
    /// only after the reference.
    pub fn reclassify(&mut self, preset: Preset, layers: usize) {
        let reference = match &self.scan {
            Some(note) => self.sinks.iter().find(|sink| sink.position == note.reference),
            None => self.sinks.first(),
        };
        let Some((start, last)) =
            reference.and_then(|sink| Some((*sink.layers.first()?, *sink.layers.last()?)))
        else {
            return; // without a reference there are no sinks
        };
        let clip = Clip { start, end: last + 1 };
        for sink in &mut self.sinks {
            sink.class = preset.classify(&sink.layers, clip, layers);
        }
        for phase in &mut self.other_phases {
            for sink in &mut phase.sinks {
                sink.class = preset.classify(&sink.layers, phase.clip, layers);
            }
        }
        let finding = Finding::of(&self.sinks);
        if let Some(note) = &mut self.scan {
            (note.preset, note.finding) = (preset, finding);
        }
    }

    /// Number of layers of the model, if the line records it.
    pub fn layers(&self) -> Option<usize> {
        self.scan.map(|note| note.layers)
    }
}

/// Reclassifies traces by `preset`'s rules. `layers` is the model's number of layers, required if
/// the lines do not record it.
///
/// # Errors
/// The number of layers is missing, contradicts a line, or is not above every layer of a sink.
pub fn reclassify(
    path: &Path,
    traces: &mut [TraceDetection],
    preset: Preset,
    layers: Option<usize>,
) -> fathom_model::Result<()> {
    use fathom_model::Error;
    for trace in traces {
        let index = trace.sample_index;
        let layers = match (layers, trace.layers()) {
            (Some(given), Some(recorded)) if given != recorded => {
                let problem = format!(
                    "trace {index} was scanned with {recorded} layers, but {given} were given"
                );
                return Err(Error::file(path, problem));
            }
            (Some(layers), _) | (None, Some(layers)) => layers,
            (None, None) => {
                let problem = "does not say how many layers the model has: give `--layers`";
                return Err(Error::file(path, problem));
            }
        };
        let named = trace.all_sinks_mut().filter_map(|sink| sink.layers.last()).max().copied();
        if let Some(named) = named.filter(|named| *named >= layers) {
            let problem = format!(
                "trace {index} has a sink at layer {named}, but the model has {layers} layers \
                 (0 to {})",
                layers.saturating_sub(1)
            );
            return Err(Error::file(path, problem));
        }
        trace.reclassify(preset, layers);
    }
    Ok(())
}

/// The fields of a line, in output order.
#[derive(Serialize)]
struct LineFields<'a> {
    candidate_sinks: BTreeMap<usize, SinkFields<'a>>,
    sample_index: u64,
    prompt_len: usize,
    response_len: usize,
    full_text_len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fathom: Option<ScanNote>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    phases: Vec<PhaseFields<'a>>,
}

/// A phase other than that of the largest rise.
#[derive(Serialize)]
struct PhaseFields<'a> {
    start: usize,
    end: usize,
    rise: f32,
    peak: f32,
    sinks: BTreeMap<usize, SinkFields<'a>>,
}

impl PhaseFields<'_> {
    fn of(phase: &Phase) -> PhaseFields<'_> {
        let Phase { clip: Clip { start, end }, rise, peak, sinks } = phase;
        let sinks = sinks.iter().map(|sink| (sink.position, SinkFields::of(sink))).collect();
        PhaseFields { start: *start, end: *end, rise: *rise, peak: *peak, sinks }
    }
}

/// The fields of a sink, the published ones first.
#[derive(Serialize)]
struct SinkFields<'a> {
    layer: &'a [usize],
    token_id: u32,
    sink_type: &'static str,
    class: Class,
    l_start: usize,
    lifetime: usize,
    gaps: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_text: Option<&'a str>,
    #[serde(flatten)]
    measures: Option<Measures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sink_score: Option<&'a [f32]>,
}

impl SinkFields<'_> {
    fn of(sink: &Sink) -> SinkFields<'_> {
        SinkFields {
            layer: &sink.layers,
            token_id: sink.token_id,
            sink_type: sink.class.sink_type(),
            class: sink.class,
            l_start: sink.l_start(),
            lifetime: sink.lifetime(),
            gaps: sink.gaps(),
            token_text: sink.token_text.as_deref(),
            measures: sink.measures,
            sink_score: sink.sink_score.as_deref(),
        }
    }
}
