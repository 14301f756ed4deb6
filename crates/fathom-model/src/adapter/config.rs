//! `adapter_config.json` as plain data.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::pattern::Pattern;
use crate::brief::brief;
use crate::config::fields::{Fields, shown};
use crate::{Error, Remark, Result};

/// Largest rank; beyond it a change is no smaller than the weights of any model.
const MAX_RANK: usize = 1 << 16;
/// Most names and patterns that a field may list.
const MAX_NAMES: usize = 10_000;
/// Most patterns of a field.
const MAX_PATTERNS: usize = 1000;

/// Fields whose adapters are not W + scale · B·A, with what they are.
const REFUSED: [(&str, &str); 10] = [
    ("use_dora", "DoRA (weight-decomposed adapters)"),
    ("use_qalora", "QALoRA (quantisation-aware adapters)"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("alora_invocation_tokens", "activated LoRA, which depends on the tokens before"),
    ("arrow_config", "Arrow, which chooses among adapters token by token"),
    ("layer_replication", "a model with repeated layers"),
    ("megatron_config", "Megatron's layers"),
    ("trainable_token_indices", "training of single tokens"),
    ("target_parameters", "adapters of parameters that are no module's weight"),
    ("ensure_weight_tying", "an adapter shared by embedding and output head"),
];

/// Fields that make no difference to a merge; `fan_in_fan_out` makes none for the layers of these
/// models.
const NEUTRAL: [&str; 17] = [
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "lora_dropout",
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "_custom_modules",
];

/// What a LoRA adapter's config says.
#[derive(Debug)]
pub struct AdapterConfig {
    path: PathBuf,
    /// `base_model_name_or_path`.
    base: Option<String>,
    rank: usize,
    alpha: f64,
    /// `use_rslora`: the scale is alpha / √r, not alpha / r.
    rslora: bool,
    /// The first that matches counts.
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    targets: Targets,
    exclude: Option<Names>,
    pub(super) lora_bias: bool,
    saved: Vec<(String, Pattern)>,
    layers: Option<Layers>,
    pub(super) remarks: Vec<Remark>,
}

/// Names of modules: ends of them, or one pattern for the whole.
#[derive(Debug)]
enum Names {
    List(Vec<String>),
    Whole(Pattern),
}

/// `target_modules`.
#[derive(Debug)]
enum Targets {
    /// Every linear layer but the output head.
    AllLinear,
    Named(Names),
}

/// `layers_to_transform`, and how the number of a layer is found.
#[derive(Debug)]
struct Layers {
    numbers: Vec<usize>,
    patterns: Vec<Pattern>,
}

impl AdapterConfig {
    /// Parses the text of an `adapter_config.json`; `path` is only for messages.
    ///
    /// # Errors
    /// An adapter of another kind than LoRA, or a variant of LoRA that is not supported; a field of
    /// the wrong kind or out of range; a pattern that is none.
    pub fn parse(path: &Path, text: &str) -> Result<AdapterConfig> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| Error::file(path, format!("is not JSON: {error}")))?;
        let fields = Fields::root(path, &value)?;
        refuse_unsupported(&fields)?;
        let pattern = |name: &str, pattern: Result<Pattern, String>| {
            pattern.map_err(|problem| fields.error(name, problem))
        };

        let rank = rank(&fields, "r", fields.get("r").unwrap_or(&Value::from(8)))?;
        let alpha = alpha(&fields, "lora_alpha", fields.get("lora_alpha").unwrap_or(&8.into()))?;
        let mut ranks = Vec::new();
        for (key, value) in entries(&fields, "rank_pattern")? {
            let name = format!("rank_pattern.{}", brief(key));
            ranks.push((pattern(&name, Pattern::ending(key))?, self::rank(&fields, &name, value)?));
        }
        let mut alphas = Vec::new();
        for (key, value) in entries(&fields, "alpha_pattern")? {
            let name = format!("alpha_pattern.{}", brief(key));
            let alpha = self::alpha(&fields, &name, value)?;
            alphas.push((pattern(&name, Pattern::ending(key))?, alpha));
        }
        let mut saved = Vec::new();
        for name in few(&fields, "modules_to_save", fields.texts("modules_to_save")?)? {
            let module = pattern("modules_to_save", Pattern::module(name))?;
            saved.push((name.to_owned(), module));
        }
        let targets = match fields.get("target_modules") {
            None => {
                let problem = "is missing, expected a list of modules, a pattern or \"all-linear\"";
                return Err(fields.error("target_modules", problem));
            }
            Some(Value::String(text)) if text.to_lowercase() == "all-linear" => Targets::AllLinear,
            Some(_) => Targets::Named(names(&fields, "target_modules")?),
        };
        let exclude = match fields.get("exclude_modules") {
            None => None,
            Some(_) => Some(names(&fields, "exclude_modules")?),
        };
        let layers = Layers::read(&fields)?;
        if layers.is_some() && !matches!(targets, Targets::Named(Names::List(_))) {
            let problem = "cannot be used where `target_modules` is no list, in PEFT neither";
            return Err(fields.error("layers_to_transform", problem));
        }
        let bias = fields.text("bias")?.unwrap_or("none");
        if !["none", "all", "lora_only"].contains(&bias) {
            let problem = format!("is {}, expected none, all or lora_only", shown(&bias.into()));
            return Err(fields.error("bias", problem));
        }
        let base = fields.text("base_model_name_or_path")?.filter(|base| !base.is_empty());
        let (rslora, lora_bias) = (fields.flag("use_rslora")?, fields.flag("lora_bias")?);
        Ok(AdapterConfig {
            path: path.to_owned(),
            base: base.map(str::to_owned),
            rank,
            alpha,
            rslora: rslora.unwrap_or(false),
            ranks,
            alphas,
            targets,
            exclude,
            lora_bias: lora_bias.unwrap_or(false),
            saved,
            layers,
            remarks: unread(&fields).into_iter().collect(),
        })
    }

    /// The model it was trained on, as it was called there.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Whether a linear layer (`all-linear` means those) or embedding of this name is to be
    /// adapted.
    ///
    /// # Errors
    /// A pattern that cannot be compared with it.
    pub fn targets(&self, module: &str, linear: bool) -> Result<bool> {
        let wrong =
            |field: &'static str| move |problem: String| Error::field(&self.path, field, problem);
        if let Some(exclude) = &self.exclude
            && exclude.name(module).map_err(wrong("exclude_modules"))?
        {
            return Ok(false);
        }
        for (_, saved) in &self.saved {
            if saved.is_match(module).map_err(wrong("modules_to_save"))? {
                return Ok(false);
            }
        }
        let named = match &self.targets {
            Targets::AllLinear => linear && module != "lm_head",
            Targets::Named(names) => names.name(module).map_err(wrong("target_modules"))?,
        };
        match &self.layers {
            // A module that the list names in full is meant in any case.
            Some(layers) if named && !self.targets.names_in_full(module) => {
                layers.have(module).map_err(wrong("layers_pattern"))
            }
            _ => Ok(named),
        }
    }

    /// Whether a module, or one it is part of, is saved as a whole.
    pub(super) fn saves(&self, module: &str) -> bool {
        let dots = module.match_indices('.').map(|(at, _)| &module[..at]);
        let mut parts = dots.chain([module]);
        parts.any(|part| self.saved.iter().any(|(name, _)| part.ends_with(name.as_str())))
    }

    /// Rank of a module's change.
    pub(super) fn rank(&self, module: &str) -> Result<usize> {
        let found = first(&self.ranks, module);
        let wrong = |problem| Error::field(&self.path, "rank_pattern", problem);
        Ok(found.map_err(wrong)?.unwrap_or(self.rank))
    }

    /// Factor on a module's change of this rank.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<f32> {
        let wrong = |problem| Error::field(&self.path, "alpha_pattern", problem);
        let alpha = first(&self.alphas, module).map_err(wrong)?.unwrap_or(self.alpha);
        let rank = rank as f64;
        Ok((if self.rslora { alpha / rank.sqrt() } else { alpha / rank }) as f32)
    }

    /// An error about a field.
    pub(super) fn error(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::field(&self.path, field, problem)
    }

    /// A remark about the file.
    pub(super) fn remark(&self, kind: &'static str, text: impl Into<String>) -> Remark {
        Remark::file(kind, &self.path, text)
    }
}

impl Names {
    fn name(&self, module: &str) -> Result<bool, String> {
        match self {
            Names::Whole(pattern) => pattern.is_match(module),
            Names::List(names) => Ok(names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            })),
        }
    }
}

impl Targets {
    fn names_in_full(&self, module: &str) -> bool {
        match self {
            Targets::Named(Names::List(names)) => names.iter().any(|name| name == module),
            _ => false,
        }
    }
}

impl Layers {
    fn read(fields: &Fields<'_>) -> Result<Option<Layers>> {
        const FIELD: &str = "layers_to_transform";
        let number = |value: &Value| value.as_u64().and_then(|number| number.try_into().ok());
        let numbers: Option<Vec<usize>> = match fields.get(FIELD) {
            None => Some(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(number).collect(),
            Some(one) => number(one).map(|number| vec![number]),
        };
        let Some(numbers) = numbers else {
            return Err(fields.error(FIELD, "is not a list of layers, counted from 0"));
        };
        let patterns = match fields.get("layers_pattern") {
            Some(Value::String(text)) if !text.is_empty() => vec![text.as_str()],
            None | Some(Value::String(_)) => Vec::new(),
            Some(_) => fields.texts("layers_pattern")?.unwrap_or_default(),
        };
        if numbers.is_empty() {
            return match patterns.is_empty() {
                true => Ok(None),
                false => Err(fields.error("layers_pattern", "needs `layers_to_transform`")),
            };
        }
        if patterns.len() > MAX_PATTERNS || numbers.len() > MAX_NAMES {
            return Err(fields.error(FIELD, "names more layers than any model has"));
        }
        let any = ["[^.]*"];
        let patterns = if patterns.is_empty() { &any[..] } else { &patterns };
        let patterns = patterns.iter().map(|pattern| Pattern::layer(pattern));
        let patterns = patterns.collect::<Result<_, _>>();
        let wrong = |problem: String| fields.error("layers_pattern", problem);
        Ok(Some(Layers { numbers, patterns: patterns.map_err(wrong)? }))
    }

    fn have(&self, module: &str) -> Result<bool, String> {
        for pattern in &self.patterns {
            if let Some(layer) = pattern.number(module)? {
                return Ok(self.numbers.contains(&layer));
            }
        }
        Ok(false)
    }
}

fn refuse_unsupported(fields: &Fields<'_>) -> Result<()> {
    match fields.text("peft_type")? {
        Some("LORA") => {}
        Some(kind) => {
            let problem = format!("is {}, and only LORA adapters can be merged", brief(kind));
            return Err(fields.error("peft_type", problem));
        }
        None => return Err(fields.error("peft_type", "is missing, expected LORA")),
    }
    for (name, what) in REFUSED {
        if let Some(value) = fields.get(name).filter(|value| is_set(value)) {
            let problem = format!("is {}: {what} cannot be merged here", shown(value));
            return Err(fields.error(name, problem));
        }
    }
    match fields.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(text)) if ["gaussian", "eva", "orthogonal"].contains(&&**text) => Ok(()),
        Some(other) => {
            let problem = format!(
                "is {}, which may change the base's weights as well; save the adapter as one of the \
                 unchanged base (`path_initial_model_for_weight_conversion`)",
                shown(other)
            );
            Err(fields.error("init_lora_weights", problem))
        }
    }
}

/// Fields that this version does not know, and that say something.
fn unread(fields: &Fields<'_>) -> Option<Remark> {
    for name in NEUTRAL {
        fields.get(name); // has been seen
    }
    let given = |name: &&&str| fields.get(name).is_some_and(is_set);
    let unread = fields.unread();
    let unread: Vec<String> = unread.iter().filter(given).map(|name| brief(name)).collect();
    let first = unread.first()?;
    let others = match unread.len() {
        1 => String::new(),
        count => format!(" and {} more fields", count - 1),
    };
    let text = format!("has a field `{first}`{others}, of which nothing is known here: not read");
    Some(fields.remark("unread-adapter-fields", text))
}

/// Whether a value says more than "none".
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn rank(fields: &Fields<'_>, name: &str, value: &Value) -> Result<usize> {
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok());
    rank.filter(|rank| (1..=MAX_RANK).contains(rank)).ok_or_else(|| {
        let problem = format!("is {}, expected a whole number from 1 to {MAX_RANK}", shown(value));
        fields.error(name, problem)
    })
}

fn alpha(fields: &Fields<'_>, name: &str, value: &Value) -> Result<f64> {
    let alpha = value.as_f64().filter(|alpha| alpha.abs() <= 1e12);
    let problem = || format!("is {}, expected a number", shown(value));
    alpha.ok_or_else(|| fields.error(name, problem()))
}

/// Patterns and what they stand for.
fn entries<'a>(fields: &Fields<'a>, name: &str) -> Result<Vec<(&'a String, &'a Value)>> {
    match fields.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_PATTERNS => Ok(map.iter().collect()),
        Some(Value::Object(map)) => {
            let problem = format!("has {} patterns, expected at most {MAX_PATTERNS}", map.len());
            Err(fields.error(name, problem))
        }
        Some(other) => {
            let problem = format!("is {}, expected an object of patterns", shown(other));
            Err(fields.error(name, problem))
        }
    }
}

fn names(fields: &Fields<'_>, name: &str) -> Result<Names> {
    if let Some(Value::String(pattern)) = fields.get(name) {
        let pattern = Pattern::whole(pattern).map_err(|problem| fields.error(name, problem))?;
        return Ok(Names::Whole(pattern));
    }
    let list = few(fields, name, fields.texts(name)?)?;
    Ok(Names::List(list.into_iter().map(str::to_owned).collect()))
}

fn few<'a>(fields: &Fields<'_>, name: &str, list: Option<Vec<&'a str>>) -> Result<Vec<&'a str>> {
    let list = list.unwrap_or_default();
    match list.len() <= MAX_NAMES {
        true => Ok(list),
        false => {
            let problem = format!("lists {} names, expected at most {MAX_NAMES}", list.len());
            Err(fields.error(name, problem))
        }
    }
}

/// What stands beside the first pattern that matches.
fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.is_match(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}
