//! One pass over a text: its logits, what happens inside, and what becomes of them when something
//! is changed.

use std::fmt;
use std::path::Path;

use fathom_model::{
    CaptureRequest, Captured, Edit, EditProbe, Edits, Error, LogitRows, ModelConfig, PREFILL_CHUNK,
    Probe, Result, SequenceOptions, Site, Step, capture, capture_in_memory,
};

use crate::Model;

/// Rows of logits computed at a time: they are as wide as the vocabulary.
const LOGIT_CHUNK: usize = PREFILL_CHUNK / 8;

/// Numbers with a shape, row-major.
///
/// ```
/// let logits = fathom_lm::Array { shape: vec![2, 3], values: vec![0.0, 2.0, 1.0, 5.0, 4.0, 3.0] };
/// assert_eq!(logits.row(1), [5.0, 4.0, 3.0]);
/// assert_eq!(logits.argmax(), [1, 0]);
/// ```
#[derive(Clone, PartialEq)]
pub struct Array {
    /// Sizes, the slowest first.
    pub shape: Vec<usize>,
    /// Their product of values.
    pub values: Vec<f32>,
}

impl Array {
    /// Row `index` along all axes but the last: of `[T, hidden]` the vector of position `index`, of
    /// `[heads, T, head_dim]` that of head `index / T` at position `index % T`.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        let width = self.shape.last().copied().unwrap_or(1);
        &self.values[index * width..(index + 1) * width]
    }

    /// The column of the largest value of each row, the first of equals: of logits `[T, vocab]` the
    /// most likely next token at each position.
    pub fn argmax(&self) -> Vec<usize> {
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        let best = |row: &[f32]| {
            let larger = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
            (0..row.len()).fold(0, larger)
        };
        self.values.chunks_exact(width).map(best).collect()
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array {{ shape: {:?} }}", self.shape)
    }
}

/// What a pass showed at the places that were named, in the order of the forward pass.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    places: Vec<(Site, usize)>,
    arrays: Vec<Array>,
}

impl Cache {
    fn new(captured: Vec<Captured>) -> Cache {
        let mut cache = Cache::default();
        for Captured { site, layer, shape, values } in captured {
            cache.places.push((site, layer));
            cache.arrays.push(Array { shape, values });
        }
        cache
    }

    /// What was captured under a name, as [`Model::run_with_cache`] takes them, with a layer where
    /// the site has them: `resid_post.3` and `blocks.3.hook_resid_post` are the same. `None` where
    /// it was not asked for, or is no name.
    pub fn get(&self, name: &str) -> Option<&Array> {
        let (site, layer) = parse_place(name).ok()?;
        if site.per_layer() && layer.is_none() {
            return None;
        }
        let place = (site, layer.unwrap_or(0));
        let index = self.places.iter().position(|other| *other == place)?;
        self.arrays.get(index)
    }

    /// Names and arrays.
    pub fn iter(&self) -> impl Iterator<Item = (String, &Array)> {
        self.names().zip(&self.arrays)
    }

    /// The names: `resid_post.3`, `embed`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.places.iter().map(|(site, layer)| site.name_at(*layer))
    }

    /// How many arrays there are.
    pub fn len(&self) -> usize {
        self.arrays.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.arrays.is_empty()
    }
}

impl std::ops::Index<&str> for Cache {
    type Output = Array;

    /// # Panics
    /// [`Cache::get`] has nothing under this name.
    fn index(&self, name: &str) -> &Array {
        match self.get(name) {
            Some(array) => array,
            None => panic!("`{name}` was not captured"),
        }
    }
}

/// A site and, where one is named, its layer: `resid_post.3`, `blocks.3.hook_resid_post`; with `*`
/// for all layers: `resid_post.*`, `blocks.*.hook_resid_post`, or just `resid_post`.
///
/// ```
/// use fathom_lm::{Site, parse_place};
///
/// assert_eq!(parse_place("blocks.3.hook_resid_post")?, (Site::ResidPost, Some(3)));
/// assert_eq!(parse_place("mlp_out.*")?, (Site::MlpOut, None));
/// let error = parse_place("mlp.3").unwrap_err().to_string();
/// assert!(error.contains("expected one of embed, resid_pre"), "{error}");
/// # Ok::<(), fathom_lm::Error>(())
/// ```
///
/// # Errors
/// An unknown name, listing the known ones; a layer on a site that has none.
pub fn parse_place(name: &str) -> Result<(Site, Option<usize>)> {
    let name = name.trim();
    let all_layers = match (name.strip_suffix(".*"), name.strip_prefix("blocks.*.")) {
        (Some(site), _) => Some(Site::parse(site)),
        (_, Some(hook)) => Some(Site::parse(&format!("blocks.0.{hook}"))),
        _ => None,
    };
    match all_layers {
        None => Site::parse(name),
        Some(Ok((site, _))) if site.per_layer() => Ok((site, None)),
        Some(Ok((site, _))) => Err(Error::Request(format!("site `{site}` has no layers"))),
        Some(Err(_)) => Err(Site::parse(name).err().unwrap_or_else(|| unknown(name))),
    }
}

fn unknown(name: &str) -> Error {
    Error::Request(format!("unknown site `{name}`"))
}

/// The edits of a text of `tokens` tokens, as [`Model::run_with_edits`] takes them.
///
/// # Errors
/// What cannot be read as an edit, does not fit the model or the text, or conflicts with another.
pub fn parse_edits(edits: &[&str], config: &ModelConfig, tokens: usize) -> Result<Edits> {
    let edits = edits.iter().map(|edit| Edit::parse(edit)).collect::<Result<_>>()?;
    Edits::new(edits, config, Some(tokens))
}

impl Model {
    /// Runs `ids` through the model, watched by `probe`: logits `[T, vocab]`, row `t` those of the
    /// token after position `t`. The bits are the same with a probe and without, unless it edits.
    ///
    /// # Errors
    /// No ids, or one outside the vocabulary; more logits than there is memory for; an error of the
    /// probe.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
    /// # let model = fathom_lm::Model::load(dir.path().display().to_string())?;
    /// let ids = model.encode("hello there")?.ids;
    /// let logits = model.run(&ids, None)?;
    /// assert_eq!(logits.shape, [ids.len(), model.config().vocab]);
    ///
    /// // Without attention's output at a layer, the next token is another one, or less sure.
    /// let edits = ["attn_out.3@*=zero", "mlp_out.4@2..=scale(0.5)"];
    /// let changed = model.run_with_edits(&ids, &edits)?;
    /// assert_ne!(changed, logits);
    /// // No edits are no change.
    /// assert_eq!(model.run_with_edits(&ids, &[])?, logits);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn run(&self, ids: &[u32], mut probe: Option<&mut dyn Probe>) -> Result<Array> {
        if ids.is_empty() {
            return Err(Error::Request("there are no tokens to run".to_owned()));
        }
        let weights = self.weights();
        let vocab = self.config().vocab;
        let full = || {
            let problem = format!("there is no memory for the logits of {} tokens", ids.len());
            Error::Request(problem)
        };
        let mut values: Vec<f32> = Vec::new();
        let len = ids.len().checked_mul(vocab).ok_or_else(full)?;
        values.try_reserve_exact(len).map_err(|_| full())?;
        let planned_len = Some(ids.len());
        let mut sequence =
            weights.new_sequence(SequenceOptions { planned_len, ..SequenceOptions::default() });
        for tokens in ids.chunks(LOGIT_CHUNK) {
            let mut step = [Step { sequence: &mut sequence, tokens, logits: LogitRows::All }];
            // A plain `as_deref_mut` would borrow the probe for the whole function.
            let probe: Option<&mut dyn Probe> = match &mut probe {
                Some(probe) => Some(&mut **probe),
                None => None,
            };
            let logits = weights.forward(&mut step, probe)?;
            values.extend(logits.step(weights.backend(), 0)?);
        }
        Ok(Array { shape: vec![ids.len(), vocab], values })
    }

    /// Runs `ids` through the model and keeps what happens at the places that `names` names, as
    /// TransformerLens' `run_with_cache`: `resid_post.3`, `mlp_out.*` (every layer) or `mlp_out`,
    /// `logits`, and TransformerLens' own names (`blocks.3.hook_resid_post`,
    /// `blocks.*.attn.hook_pattern`). [`Site`] lists them with their shapes.
    ///
    /// # Errors
    /// No names, or an unknown one; a layer the model does not have; no ids, or one outside the
    /// vocabulary; more than there is memory for.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
    /// # let model = fathom_lm::Model::load(dir.path().display().to_string())?;
    /// let ids = model.encode("hello there")?.ids;
    /// let names = ["blocks.3.hook_resid_post", "sink_score.*", "logits"];
    /// let cache = model.run_with_cache(&ids, &names)?;
    /// assert_eq!(cache["resid_post.3"].shape, [ids.len(), model.config().hidden]);
    /// assert_eq!(cache["blocks.3.hook_resid_post"], cache["resid_post.3"]);
    /// assert_eq!(cache.names().filter(|name| name.starts_with("sink_score")).count(), 20);
    /// assert_eq!(cache["logits"], model.run(&ids, None)?);
    ///
    /// // The planted model's BOS is a sink: its norm rises far above that of the others.
    /// let post = &model.run_with_cache(&ids, &["resid_post.10"])?["resid_post.10"];
    /// let norm = |t: usize| post.row(t).iter().map(|x| x * x).sum::<f32>().sqrt();
    /// assert!(norm(0) > 5.0 * norm(ids.len() - 1));
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn run_with_cache(&self, ids: &[u32], names: &[&str]) -> Result<Cache> {
        self.cache(ids, &self.capture_request(names)?)
    }

    /// As [`Model::run_with_cache`], for a request with positions or edits.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
    /// # let model = fathom_lm::Model::load(dir.path().display().to_string())?;
    /// use fathom_lm::parse_edits;
    ///
    /// let ids = model.encode("hello there")?.ids;
    /// let edits = parse_edits(&["resid_mid.4@1=zero"], model.config(), ids.len())?;
    /// let request = model.capture_request(&["resid_mid.4"])?;
    /// let request = request.with_edits(edits).at_positions(vec![1]);
    /// let cache = model.cache(&ids, &request)?;
    /// // What the pass went on with.
    /// assert!(cache["resid_mid.4"].row(0).iter().all(|x| *x == 0.0));
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::run_with_cache`]; a position beyond the text.
    pub fn cache(&self, ids: &[u32], request: &CaptureRequest) -> Result<Cache> {
        capture_in_memory(self.weights(), ids, request, &mut |_| {}).map(Cache::new)
    }

    /// Logits `[T, vocab]` of a pass in which something is changed, each change written as
    /// `SITE.LAYER@POSITIONS=CHANGE`: `mlp_out.22@1042=zero`, `resid_post.5@3..9=scale(0.5)`,
    /// `mlp_elementwise.3[17,40]@*=zero` for two neurons. The change is `zero`, `scale(X)`,
    /// `clamp(NORM)`, `copy(POSITION)`, `mean(POSITIONS)`, or `replace(FILE:TENSOR:ROW)` and
    /// `add(FILE:TENSOR:ROW)` from a capture.
    ///
    /// # Errors
    /// What cannot be read as an edit, does not fit the model or the text, or conflicts with
    /// another; as [`Model::run`].
    pub fn run_with_edits(&self, ids: &[u32], edits: &[&str]) -> Result<Array> {
        let edits = parse_edits(edits, self.config(), ids.len())?;
        self.run(ids, Some(&mut EditProbe::new(&edits)))
    }

    /// What names name, to be captured from this model; [`CaptureRequest::with_edits`] and
    /// [`CaptureRequest::at_positions`] say more.
    ///
    /// # Errors
    /// No names, or an unknown one; a layer the model does not have.
    pub fn capture_request(&self, names: &[&str]) -> Result<CaptureRequest> {
        let places = names.iter().map(|name| parse_place(name)).collect::<Result<Vec<_>>>()?;
        CaptureRequest::new(&places, &[], None, self.config())
    }

    /// Writes what a pass shows to a new safetensors file, as it is computed: memory does not grow
    /// with what is captured. `progress` is called with the tokens done.
    ///
    /// # Errors
    /// A file that exists already or cannot be written; as [`Model::cache`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let planted = dir.path().join("planted");
    /// # fathom_lm::demo::plant(&planted, &Default::default())?;
    /// # let model = fathom_lm::Model::load(planted.display().to_string())?;
    /// let ids = model.encode("hello there")?.ids;
    /// let request = model.capture_request(&["mlp_out"])?.at_positions(vec![0, 2]);
    /// assert_eq!(model.cache(&ids, &request)?["mlp_out.0"].shape[0], 2);
    ///
    /// let file = dir.path().join("captured.safetensors");
    /// model.capture(&ids, &request, &file, &mut |_| {})?;
    /// let bytes = std::fs::metadata(&file).unwrap().len();
    /// assert!(bytes > request.bytes(model.config(), ids.len()));
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn capture(
        &self,
        ids: &[u32],
        request: &CaptureRequest,
        out: &Path,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        capture(self.weights(), ids, request, out, progress)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_with_a_layer_or_for_all_layers() {
        for all in ["mlp_out", "mlp_out.*", "blocks.*.hook_mlp_out", " mlp_out "] {
            assert_eq!(parse_place(all).unwrap(), (Site::MlpOut, None), "{all}");
        }
        for third in ["mlp_out.3", "blocks.3.hook_mlp_out"] {
            assert_eq!(parse_place(third).unwrap(), (Site::MlpOut, Some(3)), "{third}");
        }
        assert_eq!(parse_place("blocks.*.attn.hook_q").unwrap(), (Site::QPreRope, None));
        assert_eq!(parse_place("logits.*").unwrap_err().to_string(), "site `logits` has no layers");
        for bad in ["", "*", "mlp_out.**", "blocks.*.hook_x", "resid.*"] {
            let error = parse_place(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown site `{bad}`")), "{error}");
        }
    }

    #[test]
    fn the_most_likely_is_the_first_of_equals() {
        let array = Array { shape: vec![2, 3], values: vec![1.0, 2.0, 2.0, f32::NAN, -1.0, -2.0] };
        assert_eq!(array.argmax(), [1, 0]);
        assert_eq!(array.row(1)[1], -1.0);
    }
}
