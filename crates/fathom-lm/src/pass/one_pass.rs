//! A pass with captures, edits, hooks and an early stop.

use fathom_model::{
    At, CaptureRequest, EditProbe, Edits, Error, LogitRows, PREFILL_CHUNK, Probe, Recorder, Result,
    Sequence, SequenceOptions, Site, Step,
};

use super::hooks::{Hook, HookProbe, Readers};
use super::{Array, Cache, parse_edits, parse_site};
use crate::{Model, Weights};

/// Tokens per step when logits are wanted. A row of logits is as wide as the vocabulary, so fewer
/// are computed at once than in a prefill.
const LOGIT_CHUNK: usize = PREFILL_CHUNK / 8;

/// One pass over a text: created by [`Model::pass`], run by [`Pass::run`]. By default it returns
/// the logits of every position and captures and changes nothing.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// # let model = fathom_lm::Model::load(dir.path().display().to_string())?;
/// use fathom_lm::{At, LogitRows};
///
/// let ids = model.encode("hello there")?.ids;
///
/// // Logits and activations of one pass, with a hook that changes an activation.
/// let halved = |_: &At, values: &mut [f32]| {
///     values.iter_mut().for_each(|value| *value /= 2.0);
///     Ok(())
/// };
/// let pass = model.pass(&ids).hook("mlp_out.4", halved)?.capture(&["mlp_out.4"]);
/// let ran = pass.logits(LogitRows::Last).run()?;
/// assert_eq!(ran.logits.shape, [1, model.config().vocab]);
/// let plain = model.run_with_cache(&ids, &["mlp_out.4"])?;
/// assert_eq!(ran.cache["mlp_out.4"].row(1)[0], plain["mlp_out.4"].row(1)[0] / 2.0);
///
/// // Like TransformerLens' `stop_at_layer`: returns the input of layer 5 and computes nothing
/// // further. Negative layers count from the end.
/// let ran = model.pass(&ids).capture(&["mlp_out"]).stop_at_layer(5).run()?;
/// assert_eq!(ran.cache.len(), 5);
/// assert_eq!(ran.residual.unwrap(), model.run_with_cache(&ids, &["resid_pre.5"])?["resid_pre.5"]);
/// # Ok::<(), fathom_lm::Error>(())
/// ```
pub struct Pass<'a> {
    model: &'a Model,
    ids: &'a [u32],
    names: Vec<String>,
    positions: Option<Vec<usize>>,
    edits: Vec<String>,
    hooks: Vec<Hook<'a>>,
    stop_at_layer: Option<i64>,
    logits: LogitRows,
    check: Option<Box<dyn FnMut() -> Result<()> + 'a>>,
}

/// The result of a [`Pass`].
#[derive(Clone, Debug)]
pub struct PassOutput {
    /// Logits `[T, vocab]`; row `t` predicts the token at `t + 1`. `[1, vocab]` for
    /// [`LogitRows::Last`]; `[0, vocab]` for [`LogitRows::None`] or a pass that stopped early.
    pub logits: Array,
    /// The residual stream `[T, hidden]` at the end of a pass that stopped early.
    pub residual: Option<Array>,
    /// The captured activations.
    pub cache: Cache,
}

impl<'a> Pass<'a> {
    pub(super) fn new(model: &'a Model, ids: &'a [u32]) -> Pass<'a> {
        Pass {
            model,
            ids,
            names: Vec::new(),
            positions: None,
            edits: Vec::new(),
            hooks: Vec::new(),
            stop_at_layer: None,
            logits: LogitRows::All,
            check: None,
        }
    }

    /// Captures these places, named in the syntax of [`Model::run_with_cache`].
    pub fn capture<S: AsRef<str>>(mut self, names: &[S]) -> Pass<'a> {
        self.names.extend(names.iter().map(|name| name.as_ref().to_owned()));
        self
    }

    /// Captures these positions only.
    pub fn at_positions(self, positions: Vec<usize>) -> Pass<'a> {
        Pass { positions: Some(positions), ..self }
    }

    /// Adds edits, in the syntax of [`Model::run_with_edits`].
    pub fn edit<S: AsRef<str>>(mut self, edits: &[S]) -> Pass<'a> {
        self.edits.extend(edits.iter().map(|edit| edit.as_ref().to_owned()));
        self
    }

    /// Calls `hook` at a place with the values of all positions, rows `[T, width]` as a [`Probe`]
    /// sees them. The pass continues with the values that the hook leaves. Hooks at one place are
    /// called in the order they were added, before edits. A pass with hooks runs the whole text in
    /// one step and needs memory for all of its activations.
    ///
    /// # Errors
    /// An unknown name; a layer the model does not have; `sink_score`, which is known only at the
    /// end of the pass.
    pub fn hook(
        mut self,
        name: &str,
        hook: impl FnMut(&At, &mut [f32]) -> Result<()> + 'a,
    ) -> Result<Pass<'a>> {
        let (site, layer) = parse_site(name)?;
        let config = self.model.config();
        let refuse = |problem: String| Err(Error::Request(problem));
        if site == Site::SinkScore {
            return refuse(format!(
                "`{site}` is known only when the pass is over: capture it instead of hooking it"
            ));
        }
        let layer = match layer {
            None if site.per_layer() => {
                return refuse(format!("hook `{name}`: `{site}` needs its layer, as in {site}.3"));
            }
            layer => layer.unwrap_or(0),
        };
        if site.per_layer() && layer >= config.layers {
            return refuse(format!(
                "hook `{name}`: there is no such layer, the model's are 0..={}",
                config.layers - 1
            ));
        }
        self.hooks.push(Hook { site, layer, call: Box::new(hook) });
        Ok(self)
    }

    /// Stops before this layer, like TransformerLens: 0 computes only the embedding, -1 stops
    /// before the last layer. The pass then returns the residual stream and no logits.
    pub fn stop_at_layer(self, layer: i64) -> Pass<'a> {
        Pass { stop_at_layer: Some(layer), ..self }
    }

    /// Which positions to compute logits for. With [`LogitRows::None`], layers that no capture and
    /// no hook needs are not computed either.
    pub fn logits(self, logits: LogitRows) -> Pass<'a> {
        Pass { logits, ..self }
    }

    /// Calls `check` before each layer; an error ends the pass.
    pub fn checked(self, check: impl FnMut() -> Result<()> + 'a) -> Pass<'a> {
        Pass { check: Some(Box::new(check)), ..self }
    }

    /// Runs the pass.
    ///
    /// # Errors
    /// No ids, or one outside the vocabulary; a name, position, layer or edit that does not fit the
    /// model, the text or the layer the pass stops at; not enough memory; an error of a hook.
    pub fn run(self) -> Result<PassOutput> {
        self.run_watched(None)
    }

    /// Runs the pass. `watcher`, which may edit, replaces the probes of captures and edits.
    pub(super) fn run_watched(mut self, mut watcher: Option<&mut dyn Probe>) -> Result<PassOutput> {
        let (weights, config, ids) = (self.model.weights(), self.model.config(), self.ids);
        if ids.is_empty() {
            return Err(Error::Request("there are no tokens to run".to_owned()));
        }
        let stop = self.stop_at_layer.map(|layer| stop(layer, config.layers)).transpose()?;
        let request = self.request(stop)?;
        let edits: Vec<&str> = self.edits.iter().map(String::as_str).collect();
        let edits = match edits.is_empty() {
            true => Edits::default(),
            false => parse_edits(&edits, config, ids.len())?,
        };
        for edit in edits.iter() {
            within(stop, &edit.site.name_at(edit.layer), edit.site, edit.layer)?;
        }
        let rows = if stop.is_some() { LogitRows::None } else { self.logits };
        let last_residual = match stop {
            None => CaptureRequest::default(),
            Some(0) => CaptureRequest::new(&[(Site::Embed, None)], &[], None, config)?,
            Some(n) => CaptureRequest::new(&[(Site::ResidPost, Some(n - 1))], &[], None, config)?,
        };

        let logit_bytes = LogitsBuffer::bytes(rows, ids.len(), config.vocab);
        check_memory(logit_bytes.saturating_add(request.bytes(config, ids.len())))?;
        let mut logits = LogitsBuffer::new(rows, ids.len(), config.vocab)?;
        let mut recorder = Recorder::new(&request, config, ids)?;
        let mut last = Recorder::new(&last_residual, config, ids)?;
        let whole = rows != LogitRows::None || watcher.is_some();
        let needed = request.layers(config).max(self.hooked_layers());
        let layers = if whole { config.layers } else { stop.unwrap_or(needed) };
        let options = request.sequence_options(config, ids.len());
        let mut sequence =
            weights.new_sequence(SequenceOptions { layers: Some(layers), ..options });

        let chunk = match (self.hooks.is_empty(), rows) {
            (false, _) => ids.len(),
            (true, LogitRows::All) => LOGIT_CHUNK,
            (true, _) if request.has(Site::Logits) => LOGIT_CHUNK,
            (true, _) => PREFILL_CHUNK,
        };
        let mut readers = Readers(vec![&mut recorder, &mut last]);
        let mut edited = EditProbe::new(&edits).observed_by(&mut readers);
        let then: &mut dyn Probe = match &mut watcher {
            Some(watcher) => *watcher,
            None => &mut edited,
        };
        let check = self.check.as_deref_mut();
        let mut probe = HookProbe { hooks: &mut self.hooks, then, check };
        for tokens in ids.chunks(chunk) {
            logits.step(weights, &mut sequence, tokens, &mut probe)?;
        }
        let residual = last.finish(weights, &sequence)?.pop();
        Ok(PassOutput {
            logits: logits.array,
            residual: residual.map(|last| Array { shape: last.shape, values: last.values }),
            cache: Cache::new(recorder.finish(weights, &sequence)?),
        })
    }

    /// The number of layers that must run for every hook to be called.
    fn hooked_layers(&self) -> usize {
        let layers = self.model.config().layers;
        let needed = |hook: &Hook<'_>| match hook.site {
            Site::Embed => 0,
            Site::FinalNorm | Site::Logits => layers,
            _ => hook.layer + 1,
        };
        self.hooks.iter().map(needed).max().unwrap_or(0)
    }

    /// The captures of a pass that stops before layer `stop`.
    fn request(&self, stop: Option<usize>) -> Result<CaptureRequest> {
        let config = self.model.config();
        let end = stop.unwrap_or(config.layers);
        let mut places = Vec::new();
        for name in &self.names {
            match parse_site(name)? {
                (site, None) if site.per_layer() => {
                    places.extend((0..end).map(|layer| (site, Some(layer))));
                }
                (site, layer) => {
                    within(stop, name, site, layer.unwrap_or(0))?;
                    places.push((site, layer));
                }
            }
        }
        for hook in &self.hooks {
            within(stop, &hook.site.name_at(hook.layer), hook.site, hook.layer)?;
        }
        let request = match places.is_empty() {
            true => CaptureRequest::default(),
            false => CaptureRequest::new(&places, &[], None, config)?,
        };
        Ok(match &self.positions {
            Some(positions) => request.at_positions(positions.clone()),
            None => request,
        })
    }
}

/// The number of layers computed by a pass that stops before `layer`.
fn stop(layer: i64, layers: usize) -> Result<usize> {
    let count = layers as i64;
    let from_start = if layer < 0 { count.saturating_add(layer) } else { layer };
    usize::try_from(from_start).ok().filter(|stop| *stop <= layers).ok_or_else(|| {
        Error::Request(format!(
            "the pass was to stop at layer {layer}, but the model has {layers}: expected \
             {}..={layers}",
            -count
        ))
    })
}

/// Returns an error if `bytes` do not fit in free memory. An operating system that overcommits
/// would grant the allocation and kill the process when it is used.
pub(super) fn check_memory(bytes: u64) -> Result<()> {
    const ALWAYS_ALLOWED: u64 = 1 << 30;
    if bytes < ALWAYS_ALLOWED {
        return Ok(());
    }
    match fathom_measure::Machine::detect().available {
        Some(available) if bytes > available => {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            Err(Error::Request(format!(
                "the pass would keep {:.1} GiB, but {:.1} GiB of memory are free: keep fewer \
                 places or positions, or write them to a file with `capture`",
                gib(bytes),
                gib(available)
            )))
        }
        _ => Ok(()),
    }
}

/// Returns an error if a pass that stops before layer `stop` does not compute this place.
fn within(stop: Option<usize>, name: &str, site: Site, layer: usize) -> Result<()> {
    let reached = |stop| match site {
        Site::Embed => true,
        Site::FinalNorm | Site::Logits => false,
        _ => layer < stop,
    };
    match stop.filter(|stop| !reached(*stop)) {
        None => Ok(()),
        Some(stop) => Err(Error::Request(format!(
            "`{name}` is not computed: the pass stops before layer {stop}"
        ))),
    }
}

/// Collects the logits of a pass, step by step.
struct LogitsBuffer {
    wanted: LogitRows,
    /// Tokens that have not run yet.
    left: usize,
    array: Array,
}

impl LogitsBuffer {
    fn bytes(wanted: LogitRows, tokens: usize, vocab: usize) -> u64 {
        let rows = match wanted {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => tokens as u64,
        };
        rows.saturating_mul(4 * vocab as u64)
    }

    fn new(wanted: LogitRows, tokens: usize, vocab: usize) -> Result<LogitsBuffer> {
        let full = || {
            let problem = format!("there is no memory for the logits of {tokens} tokens");
            Error::Request(problem)
        };
        let rows = match wanted {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => tokens,
        };
        let mut values: Vec<f32> = Vec::new();
        let len = rows.checked_mul(vocab).ok_or_else(full)?;
        values.try_reserve_exact(len).map_err(|_| full())?;
        let array = Array { shape: vec![rows, vocab], values };
        Ok(LogitsBuffer { wanted, left: tokens, array })
    }

    /// Runs the next tokens of the text and appends their logits.
    fn step(
        &mut self,
        weights: &Weights,
        sequence: &mut Sequence<fathom_kernels::Cpu>,
        tokens: &[u32],
        probe: &mut dyn Probe,
    ) -> Result<()> {
        self.left -= tokens.len();
        let logits = match self.wanted {
            LogitRows::Last if self.left > 0 => LogitRows::None,
            wanted => wanted,
        };
        let mut step = [Step { sequence, tokens, logits }];
        let logits = weights.forward(&mut step, Some(probe))?;
        self.array.values.extend(logits.step(weights.backend(), 0)?);
        Ok(())
    }
}
