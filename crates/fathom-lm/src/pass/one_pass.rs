//! A pass, said piece by piece.

use fathom_model::{
    At, CaptureRequest, EditProbe, Edits, Error, LogitRows, PREFILL_CHUNK, Probe, Recorder, Result,
    Sequence, SequenceOptions, Site, Step,
};

use super::hooks::{Hook, Hooked, Readers};
use super::{Array, Cache, parse_edits, parse_place};
use crate::{Model, Weights};

/// Rows of logits computed at a time: they are as wide as the vocabulary.
const LOGIT_CHUNK: usize = PREFILL_CHUNK / 8;

/// One pass over a text: made by [`Model::pass`], carried out by [`Pass::run`]. Unless said
/// otherwise it gives the logits of every position, and neither captures nor changes anything.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// # let model = fathom_lm::Model::load(dir.path().display().to_string())?;
/// use fathom_lm::{At, LogitRows};
///
/// let ids = model.encode("hello there")?.ids;
///
/// // Logits and activations of one pass, in which a function changes what it is called for.
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
/// // As TransformerLens' `stop_at_layer`: the residual stream that layer 5 would read, and nothing
/// // computed from there on. Layers count from the end where negative.
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

/// What a [`Pass`] gave.
#[derive(Clone, Debug)]
pub struct Ran {
    /// `[T, vocab]`, row `t` those of the token after position `t`; `[1, vocab]` where only the
    /// last was asked for; `[0, vocab]` where none was, or the pass was stopped.
    pub logits: Array,
    /// Of a pass that was stopped: the residual stream it ends with, `[T, hidden]`.
    pub residual: Option<Array>,
    /// What was captured.
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

    /// Keeps what happens at these places, named as [`Model::run_with_cache`] takes them.
    pub fn capture<S: AsRef<str>>(mut self, names: &[S]) -> Pass<'a> {
        self.names.extend(names.iter().map(|name| name.as_ref().to_owned()));
        self
    }

    /// Keeps these positions only.
    pub fn at_positions(self, positions: Vec<usize>) -> Pass<'a> {
        Pass { positions: Some(positions), ..self }
    }

    /// Makes edits, written as [`Model::run_with_edits`] takes them.
    pub fn edit<S: AsRef<str>>(mut self, edits: &[S]) -> Pass<'a> {
        self.edits.extend(edits.iter().map(|edit| edit.as_ref().to_owned()));
        self
    }

    /// Calls `hook` at a place, with the values of all positions at once as a [`Probe`] sees them:
    /// rows `[T, width]`. The pass goes on with what it leaves there; hooks of one place are
    /// called in their order, before edits. A pass with hooks runs its text in one step, so its
    /// activations take memory for all of it.
    ///
    /// # Errors
    /// An unknown name; a layer the model does not have; `sink_score`, which is known only when
    /// the pass is over.
    pub fn hook(
        mut self,
        name: &str,
        hook: impl FnMut(&At, &mut [f32]) -> Result<()> + 'a,
    ) -> Result<Pass<'a>> {
        let (site, layer) = parse_place(name)?;
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

    /// Ends before this layer, as TransformerLens does: 0 computes the embedding only; -1 is the
    /// last layer. There are no logits then, but a residual stream.
    pub fn stop_at_layer(self, layer: i64) -> Pass<'a> {
        Pass { stop_at_layer: Some(layer), ..self }
    }

    /// Which positions' logits are wanted. With [`LogitRows::None`] nothing is computed that no
    /// capture and no hook needs.
    pub fn logits(self, logits: LogitRows) -> Pass<'a> {
        Pass { logits, ..self }
    }

    /// Asks before each layer whether to go on: an error ends the pass.
    pub fn checked(self, check: impl FnMut() -> Result<()> + 'a) -> Pass<'a> {
        Pass { check: Some(Box::new(check)), ..self }
    }

    /// Runs it.
    ///
    /// # Errors
    /// No ids, or one outside the vocabulary; a name, position, layer or edit that does not fit the
    /// model, the text, or where the pass ends; more than there is memory for; an error of a hook.
    pub fn run(self) -> Result<Ran> {
        self.watched(None)
    }

    /// Runs it, shown to a probe of the caller's own, which may edit, instead of to what captures.
    pub(super) fn watched(mut self, mut watcher: Option<&mut dyn Probe>) -> Result<Ran> {
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

        let kept = Rows::bytes(rows, ids.len(), config.vocab);
        check_memory(kept.saturating_add(request.bytes(config, ids.len())))?;
        let mut logits = Rows::new(rows, ids.len(), config.vocab)?;
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
        let mut edited = EditProbe::new(&edits).watched_by(&mut readers);
        let then: &mut dyn Probe = match &mut watcher {
            Some(watcher) => *watcher,
            None => &mut edited,
        };
        let check = self.check.as_deref_mut();
        let mut probe = Hooked { hooks: &mut self.hooks, then, check };
        for tokens in ids.chunks(chunk) {
            logits.step(weights, &mut sequence, tokens, &mut probe)?;
        }
        let residual = last.finish(weights, &sequence)?.pop();
        Ok(Ran {
            logits: logits.array,
            residual: residual.map(|kept| Array { shape: kept.shape, values: kept.values }),
            cache: Cache::new(recorder.finish(weights, &sequence)?),
        })
    }

    /// The layers that hooks are called in.
    fn hooked_layers(&self) -> usize {
        let layers = self.model.config().layers;
        let of = |hook: &Hook<'_>| match hook.site {
            Site::Embed => 0,
            Site::FinalNorm | Site::Logits => layers,
            _ => hook.layer + 1,
        };
        self.hooks.iter().map(of).max().unwrap_or(0)
    }

    /// What is captured of a pass that ends before layer `stop`.
    fn request(&self, stop: Option<usize>) -> Result<CaptureRequest> {
        let config = self.model.config();
        let end = stop.unwrap_or(config.layers);
        let mut places = Vec::new();
        for name in &self.names {
            match parse_place(name)? {
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

/// How many layers a pass computes that ends before `layer`.
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

/// Refuses to keep more than there is memory for: an operating system may promise memory that it
/// does not have, and end the process that uses it.
pub(super) fn check_memory(bytes: u64) -> Result<()> {
    const UNDOUBTED: u64 = 1 << 30; // not worth asking
    if bytes < UNDOUBTED {
        return Ok(());
    }
    match fathom_measure::Machine::detect().available {
        Some(available) if bytes > available => {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            Err(Error::Request(format!(
                "the pass would keep {:.1} GiB, but {:.1} GiB of memory are free: keep fewer places or \
                 positions, or write them to a file with `capture`",
                gib(bytes),
                gib(available)
            )))
        }
        _ => Ok(()),
    }
}

/// Refuses a place that a pass which ends before layer `stop` does not come to.
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

/// Logits as they come.
struct Rows {
    wanted: LogitRows,
    left: usize,
    array: Array,
}

impl Rows {
    fn bytes(wanted: LogitRows, tokens: usize, vocab: usize) -> u64 {
        let rows = match wanted {
            LogitRows::None => 0,
            LogitRows::Last => 1,
            LogitRows::All => tokens as u64,
        };
        rows.saturating_mul(4 * vocab as u64)
    }

    fn new(wanted: LogitRows, tokens: usize, vocab: usize) -> Result<Rows> {
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
        Ok(Rows { wanted, left: tokens, array: Array { shape: vec![rows, vocab], values } })
    }

    /// Runs the next tokens of the text.
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
