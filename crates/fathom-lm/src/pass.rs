//! One forward pass over a text: logits, activations and interventions.

mod array;
mod cache;
mod hooks;
mod one_pass;

use std::path::Path;

use fathom_model::{
    CaptureRequest, Edit, EditProbe, Edits, Error, ModelConfig, Probe, Result, Site, capture,
    capture_in_memory,
};

use crate::Model;
pub use array::Array;
pub use cache::Cache;
pub use one_pass::{Pass, PassOutput};

/// Parses the name of a site with its layer: `resid_post.3` or `blocks.3.hook_resid_post`. The
/// layer is `None` for all layers: `resid_post.*`, `blocks.*.hook_resid_post` or `resid_post`.
///
/// ```
/// use fathom_lm::{Site, parse_site};
///
/// assert_eq!(parse_site("blocks.3.hook_resid_post")?, (Site::ResidPost, Some(3)));
/// assert_eq!(parse_site("mlp_out.*")?, (Site::MlpOut, None));
/// let error = parse_site("mlp.3").unwrap_err().to_string();
/// assert!(error.contains("expected one of embed, resid_pre"), "{error}");
/// # Ok::<(), fathom_lm::Error>(())
/// ```
///
/// # Errors
/// An unknown name, listing the known ones; a layer on a site that has none.
pub fn parse_site(name: &str) -> Result<(Site, Option<usize>)> {
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

/// Parses edits for a text of `tokens` tokens, in the syntax of [`Model::run_with_edits`].
///
/// # Errors
/// An edit that cannot be parsed, does not fit the model or the text, or conflicts with another.
pub fn parse_edits(edits: &[&str], config: &ModelConfig, tokens: usize) -> Result<Edits> {
    let edits = edits.iter().map(|edit| Edit::parse(edit)).collect::<Result<_>>()?;
    Edits::new(edits, config, Some(tokens))
}

impl Model {
    /// Runs `ids` through the model, observed by `probe`. Returns logits `[T, vocab]`; row `t`
    /// predicts the token at `t + 1`. A probe that does not edit does not change a single bit.
    ///
    /// # Errors
    /// No ids, or one outside the vocabulary; not enough memory for the logits; an error of the
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
    /// // Zero the attention output of layer 3 and halve an MLP output of layer 4.
    /// let edits = ["attn_out.3@*=zero", "mlp_out.4@2..=scale(0.5)"];
    /// let changed = model.run_with_edits(&ids, &edits)?;
    /// assert_ne!(changed, logits);
    /// // Without edits the logits are the same.
    /// assert_eq!(model.run_with_edits(&ids, &[])?, logits);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn run(&self, ids: &[u32], probe: Option<&mut dyn Probe>) -> Result<Array> {
        self.pass(ids).run_watched(probe).map(|ran| ran.logits)
    }

    /// A pass over `ids` with options: captures, edits, hooks, and the layer to stop at.
    pub fn pass<'a>(&'a self, ids: &'a [u32]) -> Pass<'a> {
        Pass::new(self, ids)
    }

    /// Every place of this model that can be captured, as (site, layer) in the order of the forward
    /// pass. The layer is 0 for sites that have none.
    pub fn places(&self) -> impl Iterator<Item = (Site, usize)> {
        let layers = self.config().layers;
        Site::all().flat_map(move |site| {
            let layers = if site.per_layer() { layers } else { 1 };
            (0..layers).map(move |layer| (site, layer))
        })
    }

    /// Runs `ids` through the model and stores the activations at the named places, like
    /// TransformerLens' `run_with_cache`. Names are `resid_post.3`, `mlp_out.*` (every layer) or
    /// `mlp_out`, `logits`, and TransformerLens' names (`blocks.3.hook_resid_post`,
    /// `blocks.*.attn.hook_pattern`). [`Site`] lists them with their shapes.
    ///
    /// # Errors
    /// No names, or an unknown one; a layer the model does not have; no ids, or one outside the
    /// vocabulary; not enough memory.
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

    /// As [`Model::run_with_cache`], for a request that may select positions or make edits.
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
    /// // The capture holds the edited value.
    /// assert!(cache["resid_mid.4"].row(0).iter().all(|x| *x == 0.0));
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::run_with_cache`]; a position beyond the text.
    pub fn cache(&self, ids: &[u32], request: &CaptureRequest) -> Result<Cache> {
        one_pass::check_memory(request.bytes(self.config(), ids.len()))?;
        capture_in_memory(self.weights(), ids, request, &mut |_| {}).map(Cache::new)
    }

    /// Logits `[T, vocab]` of a pass with interventions, written as `SITE.LAYER@POSITIONS=CHANGE`:
    /// `mlp_out.22@1042=zero`, `resid_post.5@3..9=scale(0.5)`, `mlp_elementwise.3[17,40]@*=zero`
    /// for two neurons. A change is `zero`, `scale(X)`, `clamp(NORM)`, `copy(POSITION)`,
    /// `mean(POSITIONS)`, or `replace(FILE:TENSOR:ROW)` and `add(FILE:TENSOR:ROW)` with a row of a
    /// capture file.
    ///
    /// # Errors
    /// An edit that cannot be parsed, does not fit the model or the text, or conflicts with
    /// another; as [`Model::run`].
    pub fn run_with_edits(&self, ids: &[u32], edits: &[&str]) -> Result<Array> {
        let edits = parse_edits(edits, self.config(), ids.len())?;
        self.run(ids, Some(&mut EditProbe::new(&edits)))
    }

    /// A request to capture the named places; add edits with [`CaptureRequest::with_edits`] and
    /// select positions with [`CaptureRequest::at_positions`].
    ///
    /// # Errors
    /// No names, or an unknown one; a layer the model does not have.
    pub fn capture_request(&self, names: &[&str]) -> Result<CaptureRequest> {
        let places = names.iter().map(|name| parse_site(name)).collect::<Result<Vec<_>>>()?;
        CaptureRequest::new(&places, &[], None, self.config())
    }

    /// Writes activations to a new safetensors file while they are computed, so memory use does not
    /// grow with the size of the capture. `progress` is called with the number of tokens done.
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
            assert_eq!(parse_site(all).unwrap(), (Site::MlpOut, None), "{all}");
        }
        for third in ["mlp_out.3", "blocks.3.hook_mlp_out"] {
            assert_eq!(parse_site(third).unwrap(), (Site::MlpOut, Some(3)), "{third}");
        }
        assert_eq!(parse_site("blocks.*.attn.hook_q").unwrap(), (Site::QPreRope, None));
        assert_eq!(parse_site("logits.*").unwrap_err().to_string(), "site `logits` has no layers");
        for bad in ["", "*", "mlp_out.**", "blocks.*.hook_x", "resid.*"] {
            let error = parse_site(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown site `{bad}`")), "{error}");
        }
    }
}
