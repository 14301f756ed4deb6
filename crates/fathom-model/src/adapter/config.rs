//! `adapter_config.json` as plain data.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::pattern::Pattern;
use crate::config::fields::{Fields, shown};
use crate::sanitize::sanitize;
use crate::{Error, Remark, Result};

/// Maximum rank. A low-rank change of higher rank would be larger than the weights of any model.
const MAX_RANK: usize = 1 << 16;
/// Maximum number of names in a field.
const MAX_NAMES: usize = 10_000;
/// Maximum number of patterns in a field.
const MAX_PATTERNS: usize = 1000;

/// Fields that make an adapter something other than W + scale · B·A, and what they ask for.
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

/// Fields that do not affect a merge. `fan_in_fan_out` does not affect linear layers.
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

/// A LoRA adapter's config.
#[derive(Debug)]
pub struct AdapterConfig {
    path: PathBuf,
    /// `base_model_name_or_path`.
    base: Option<String>,
    rank: usize,
    alpha: f64,
    /// `use_rslora`: the scale is alpha / √r, not alpha / r.
    rslora: bool,
    /// `rank_pattern`. The first match applies.
    ranks: Vec<(Pattern, usize)>,
    /// `alpha_pattern`. The first match applies.
    alphas: Vec<(Pattern, f64)>,
    targets: Targets,
    exclude: Option<ModuleNames>,
    pub(super) lora_bias: bool,
    saved: Vec<(String, Pattern)>,
    layers: Option<LayerFilter>,
    pub(super) remarks: Vec<Remark>,
}

/// Which modules a field names.
#[derive(Debug)]
enum ModuleNames {
    /// Modules whose names end with one of these.
    Suffixes(Vec<String>),
    /// Modules whose whole name matches.
    Whole(Pattern),
}

/// `target_modules`.
#[derive(Debug)]
enum Targets {
    /// Every linear layer except the output head.
    AllLinear,
    Named(ModuleNames),
}

/// `layers_to_transform`, with the patterns that find a module's layer number.
#[derive(Debug)]
struct LayerFilter {
    numbers: Vec<usize>,
    patterns: Vec<Pattern>,
}

impl AdapterConfig {
    /// Parses the text of an `adapter_config.json`; `path` is used in messages only.
    ///
    /// # Errors
    /// The adapter is not LoRA, or an unsupported variant of it; a field has the wrong type or is
    /// out of range; a pattern is invalid.
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
            let name = format!("rank_pattern.{}", sanitize(key));
            ranks.push((pattern(&name, Pattern::ending(key))?, self::rank(&fields, &name, value)?));
        }
        let mut alphas = Vec::new();
        for (key, value) in entries(&fields, "alpha_pattern")? {
            let name = format!("alpha_pattern.{}", sanitize(key));
            let alpha = self::alpha(&fields, &name, value)?;
            alphas.push((pattern(&name, Pattern::ending(key))?, alpha));
        }
        let mut saved = Vec::new();
        for name in bounded(&fields, "modules_to_save", fields.texts("modules_to_save")?)? {
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
        let layers = LayerFilter::read(&fields)?;
        if layers.is_some() && !matches!(targets, Targets::Named(ModuleNames::Suffixes(_))) {
            let problem = "needs `target_modules` to be a list, as in PEFT";
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

    /// The name of the model it was trained on.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Whether the config targets the module `module`, which is a linear layer if `linear`,
    /// otherwise an embedding. `all-linear` targets linear layers only.
    ///
    /// # Errors
    /// Matching a pattern fails, for example by too much backtracking.
    pub fn targets(&self, module: &str, linear: bool) -> Result<bool> {
        let wrong =
            |field: &'static str| move |problem: String| Error::field(&self.path, field, problem);
        if let Some(exclude) = &self.exclude
            && exclude.contain(module).map_err(wrong("exclude_modules"))?
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
            Targets::Named(names) => names.contain(module).map_err(wrong("target_modules"))?,
        };
        match &self.layers {
            // A full name in the list overrides `layers_to_transform`.
            Some(layers) if named && !self.targets.names_in_full(module) => {
                layers.contain(module).map_err(wrong("layers_pattern"))
            }
            _ => Ok(named),
        }
    }

    /// Whether `modules_to_save` names the module or one that contains it.
    pub(super) fn saves(&self, module: &str) -> bool {
        let dots = module.match_indices('.').map(|(at, _)| &module[..at]);
        let mut parts = dots.chain([module]);
        parts.any(|part| self.saved.iter().any(|(name, _)| part.ends_with(name.as_str())))
    }

    /// Rank of a module's low-rank change.
    pub(super) fn rank(&self, module: &str) -> Result<usize> {
        let found = first(&self.ranks, module);
        let wrong = |problem| Error::field(&self.path, "rank_pattern", problem);
        Ok(found.map_err(wrong)?.unwrap_or(self.rank))
    }

    /// Scale of a module's low-rank change of this rank.
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

impl ModuleNames {
    fn contain(&self, module: &str) -> Result<bool, String> {
        match self {
            ModuleNames::Whole(pattern) => pattern.is_match(module),
            ModuleNames::Suffixes(names) => Ok(names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            })),
        }
    }
}

impl Targets {
    fn names_in_full(&self, module: &str) -> bool {
        match self {
            Targets::Named(ModuleNames::Suffixes(names)) => names.iter().any(|name| name == module),
            _ => false,
        }
    }
}

impl LayerFilter {
    fn read(fields: &Fields<'_>) -> Result<Option<LayerFilter>> {
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
        Ok(Some(LayerFilter { numbers, patterns: patterns.map_err(wrong)? }))
    }

    fn contain(&self, module: &str) -> Result<bool, String> {
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
            let problem = format!("is {}, and only LORA adapters can be merged", sanitize(kind));
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
                "is {}, which may change the base's weights as well; save the adapter relative to \
                 the unchanged base (`path_initial_model_for_weight_conversion`)",
                shown(other)
            );
            Err(fields.error("init_lora_weights", problem))
        }
    }
}

/// A remark about fields that are set but not known to this parser.
fn unread(fields: &Fields<'_>) -> Option<Remark> {
    for name in NEUTRAL {
        fields.get(name); // marks it as read
    }
    let given = |name: &&&str| fields.get(name).is_some_and(is_set);
    let unread = fields.unread();
    let unread: Vec<String> = unread.iter().filter(given).map(|name| sanitize(name)).collect();
    let first = unread.first()?;
    let others = match unread.len() {
        1 => String::new(),
        count => format!(" and {} more fields", count - 1),
    };
    let text = format!("has an unknown field `{first}`{others}: ignored");
    Some(fields.remark("unread-adapter-fields", text))
}

/// Whether a value differs from "none", "off" and "empty".
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

/// The patterns of a field with their values.
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

fn names(fields: &Fields<'_>, name: &str) -> Result<ModuleNames> {
    if let Some(Value::String(pattern)) = fields.get(name) {
        let pattern = Pattern::whole(pattern).map_err(|problem| fields.error(name, problem))?;
        return Ok(ModuleNames::Whole(pattern));
    }
    let list = bounded(fields, name, fields.texts(name)?)?;
    Ok(ModuleNames::Suffixes(list.into_iter().map(str::to_owned).collect()))
}

/// The names of a field, at most `MAX_NAMES`.
fn bounded<'a>(
    fields: &Fields<'_>,
    name: &str,
    list: Option<Vec<&'a str>>,
) -> Result<Vec<&'a str>> {
    let list = list.unwrap_or_default();
    match list.len() <= MAX_NAMES {
        true => Ok(list),
        false => {
            let problem = format!("lists {} names, expected at most {MAX_NAMES}", list.len());
            Err(fields.error(name, problem))
        }
    }
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.is_match(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}
