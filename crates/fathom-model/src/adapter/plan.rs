//! What an adapter does to which tensor of a checkpoint, known before any of them is read.

use std::collections::{BTreeMap, HashMap};

use fathom_backend::WeightView;
use fathom_vector::first_non_finite;

use super::AdapterConfig;
use super::names::{self, Part};
use crate::brief::brief;
use crate::weights::{ModelTensors, Shard};
use crate::{Checkpoint, Error, ModelConfig, Remark, Result, TensorInfo};

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// What an adapter does.
#[derive(Debug)]
pub(super) struct Plan {
    /// By HuggingFace tensor name.
    pub merges: HashMap<String, Merge>,
    /// Whether an output head that was the embedding becomes a matrix of its own.
    pub unties: bool,
    pub remarks: Vec<Remark>,
}

/// How a tensor of the model is made: what it is at first, and what is added. Numbers are places in
/// the adapter's file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merge {
    /// The checkpoint's tensor it starts as; the one of the same name but for a tied output head.
    pub base: String,
    /// What takes the place of the checkpoint's.
    pub replaced: Option<usize>,
    /// What is added to a matrix, in this order.
    pub changes: Vec<Change>,
    /// What is added to a bias, and its factor.
    pub added: Option<(usize, f32)>,
}

/// A low-rank change of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Change {
    pub a: usize,
    pub b: usize,
    pub rank: usize,
    pub scale: f32,
    /// Of an embedding: A and B are stored the other way round, and PEFT rounds the change before
    /// it adds.
    pub embedding: bool,
}

/// A module that an adapter may change.
struct Module {
    /// Of its weight.
    shape: Vec<usize>,
    bias: bool,
}

impl Module {
    fn is_linear(&self, name: &str) -> bool {
        self.shape.len() == 2 && name != EMBEDDING
    }
}

/// The tensors of a file by module and part.
type Parts = HashMap<String, BTreeMap<Part, usize>>;

impl Plan {
    /// Reads what a file holds, and checks it against config and model.
    ///
    /// # Errors
    /// Tensors of another kind of adapter or of another model, of other shapes, or with values that
    /// are not finite; a file of which nothing would be merged.
    pub(super) fn new(
        config: &AdapterConfig,
        file: &Shard,
        base: &Checkpoint,
        model: &ModelConfig,
    ) -> Result<Plan> {
        let modules = modules(model);
        let parts = parts(file, &modules, model)?;
        let mut planner = Planner { config, file, unread: Vec::new(), untouched: Vec::new() };
        let mut merges = HashMap::new();
        let none = BTreeMap::new();
        for (name, module) in &modules {
            let parts = parts.get(name).unwrap_or(&none);
            let (weight, bias) = planner.module(name, module, parts)?;
            merges.extend([(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]);
        }
        let mut remarks = config.remarks.clone();
        remarks.extend(planner.remarks());
        let mut unties = false;
        if base.ties_word_embeddings(model)? {
            let (text, split) = tie(config, &mut merges);
            remarks.extend(text.map(|text| config.remark("tied-adapter", text)));
            unties = split;
        }
        merges.retain(|name, merge| !merge.is_nothing(name));
        if merges.is_empty() {
            let problem = "names no module of this model that the file holds tensors for";
            return Err(config.error("target_modules", problem));
        }
        let plan = Plan { merges, unties, remarks };
        plan.check_values(file)?;
        Ok(plan)
    }

    /// Refuses values that are not finite, of the tensors that are used.
    fn check_values(&self, file: &Shard) -> Result<()> {
        let mut used: Vec<usize> = self.merges.values().flat_map(Merge::places).collect();
        used.sort_unstable();
        used.dedup();
        for tensor in used.into_iter().map(|place| &file.tensors[place]) {
            let Some(dtype) = tensor.weight_dtype() else {
                let problem = format!("is of dtype {}, expected BF16, F16 or F32", tensor.dtype);
                return Err(wrong(file, tensor, problem));
            };
            let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
            let rows = tensor.shape.iter().product::<usize>() / columns;
            let view = WeightView { bytes: &file.map[tensor.range.clone()], dtype, rows, columns };
            if let Some((row, column)) = first_non_finite(view) {
                let problem =
                    format!("is NaN or infinite at [{row}, {column}], expected finite numbers");
                return Err(wrong(file, tensor, problem));
            }
            file.release();
        }
        Ok(())
    }
}

impl Merge {
    fn of(name: &str) -> Merge {
        Merge { base: name.to_owned(), replaced: None, changes: Vec::new(), added: None }
    }

    /// Whether the tensor `name` is the checkpoint's.
    fn is_nothing(&self, name: &str) -> bool {
        *self == Merge::of(name)
    }

    fn places(&self) -> impl Iterator<Item = usize> {
        let changes = self.changes.iter().flat_map(|change| [change.a, change.b]);
        self.replaced.into_iter().chain(changes).chain(self.added.map(|(place, _)| place))
    }
}

/// The model's modules with weights, in its order.
fn modules(model: &ModelConfig) -> Vec<(String, Module)> {
    let mut modules: Vec<(String, Module)> = Vec::new();
    for (tensor, shape) in ModelTensors::of(model).list(true) {
        if let Some(name) = tensor.strip_suffix(".weight") {
            modules.push((name.to_owned(), Module { shape, bias: false }));
        } else if let Some((_, module)) = modules.last_mut() {
            module.bias = true; // listed after the weight
        }
    }
    modules
}

/// Takes the names in a file apart.
fn parts(file: &Shard, modules: &[(String, Module)], model: &ModelConfig) -> Result<Parts> {
    let known: HashMap<&str, &Module> =
        modules.iter().map(|(name, module)| (name.as_str(), module)).collect();
    let mut parts = Parts::new();
    let mut adapter: Option<&str> = None;
    for (place, tensor) in file.tensors.iter().enumerate() {
        let name = names::parse(&tensor.name).map_err(|problem| wrong(file, tensor, problem))?;
        if name.part == Part::Original {
            continue;
        }
        if !known.contains_key(name.module) {
            let problem = format!(
                "belongs to a module that this model does not have ({}, {} layers): it is an adapter of \
                 another model",
                model.architecture, model.layers
            );
            return Err(wrong(file, tensor, problem));
        }
        if let (Some(one), Some(other)) = (adapter, name.adapter)
            && one != other
        {
            let problem = format!(
                "is of an adapter `{}`, and others are of `{}`: expected one adapter in a file",
                brief(other),
                brief(one)
            );
            return Err(wrong(file, tensor, problem));
        }
        adapter = adapter.or(name.adapter);
        let of_module = parts.entry(name.module.to_owned()).or_default();
        if let Some(first) = of_module.insert(name.part, place) {
            let first = brief(&file.tensors[first].name);
            return Err(wrong(file, tensor, format!("says again what `{first}` says")));
        }
    }
    Ok(parts)
}

fn wrong(file: &Shard, tensor: &TensorInfo, problem: impl Into<String>) -> Error {
    Error::tensor(&file.path, brief(&tensor.name), problem)
}

/// Goes through the modules.
struct Planner<'a> {
    config: &'a AdapterConfig,
    file: &'a Shard,
    /// Tensors that PEFT does not load, and that are not merged here either.
    unread: Vec<usize>,
    /// Modules that are to be adapted, without tensors.
    untouched: Vec<String>,
}

impl Planner<'_> {
    /// What becomes of a module's weight and bias.
    fn module(
        &mut self,
        name: &str,
        module: &Module,
        parts: &BTreeMap<Part, usize>,
    ) -> Result<(Merge, Merge)> {
        let linear = module.is_linear(name);
        let adapted = module.shape.len() == 2 && self.config.targets(name, linear)?;
        let saved = self.config.saves(name);
        let mut weight = Merge::of(&format!("{name}.weight"));
        let mut bias = Merge::of(&format!("{name}.bias"));

        // A layer with a change keeps its own tensors one level deeper.
        let (own, own_bias) = match adapted {
            true => (Part::BaseWeight, Part::BaseBias),
            false => (Part::Weight, Part::Bias),
        };
        for (part, merge, shape) in
            [(own, &mut weight, &module.shape[..]), (own_bias, &mut bias, &module.shape[..1])]
        {
            let Some(place) = parts.get(&part) else { continue };
            if part == own_bias && !module.bias {
                return Err(self.no_bias(*place, name));
            }
            self.check_shape(*place, shape)?;
            merge.replaced = Some(*place);
        }
        let mut lora: Vec<Part> = Vec::new();
        for (part, place) in parts {
            match part {
                Part::A | Part::B | Part::BBias | Part::EmbeddingA | Part::EmbeddingB
                    if adapted =>
                {
                    lora.push(*part);
                }
                part if [own, own_bias].contains(part) => {}
                _ => self.unread.push(*place),
            }
        }
        if saved && !adapted {
            self.check_saved(name, module, parts)?;
        }
        if adapted && lora.is_empty() {
            self.untouched.push(name.to_owned());
        } else if adapted {
            weight.changes.push(self.change(name, module, parts)?);
            bias.added = self.added(name, module, parts)?;
        }
        Ok((weight, bias))
    }

    /// The change of a module's weight.
    fn change(&self, name: &str, module: &Module, parts: &BTreeMap<Part, usize>) -> Result<Change> {
        let embedding = !module.is_linear(name);
        let ([a_part, b_part], others) = match embedding {
            true => ([Part::EmbeddingA, Part::EmbeddingB], [Part::A, Part::B]),
            false => ([Part::A, Part::B], [Part::EmbeddingA, Part::EmbeddingB]),
        };
        if let Some(place) = others.iter().find_map(|part| parts.get(part)) {
            let kind = if embedding { "an embedding" } else { "a linear layer" };
            return Err(self.wrong(*place, format!("does not fit `{name}`, which is {kind}")));
        }
        let (a, b) = match (parts.get(&a_part), parts.get(&b_part)) {
            (Some(a), Some(b)) => (*a, *b),
            (Some(one), None) | (None, Some(one)) => {
                return Err(self.wrong(*one, "has no counterpart: A and B belong together"));
            }
            (None, None) => {
                let problem = format!("has tensors for `{name}`, but neither A nor B");
                return Err(Error::file(&self.file.path, problem));
            }
        };
        let (out, inputs) = (module.shape[0], module.shape[1]);
        let rank = self.config.rank(name)?;
        let (a_columns, b_rows) = if embedding { (out, inputs) } else { (inputs, out) };
        self.check_shape(a, &[rank, a_columns])?;
        self.check_shape(b, &[b_rows, rank])?;
        let scale = self.config.scale(name, rank)?;
        Ok(Change { a, b, rank, scale, embedding })
    }

    /// What is added to a module's bias.
    fn added(
        &self,
        name: &str,
        module: &Module,
        parts: &BTreeMap<Part, usize>,
    ) -> Result<Option<(usize, f32)>> {
        let place = match (parts.get(&Part::BBias), self.config.lora_bias) {
            (None, false) => return Ok(None),
            (Some(place), true) => *place,
            (Some(place), false) => {
                return Err(self.wrong(*place, "is a bias, but `lora_bias` is not true"));
            }
            (None, true) => {
                let problem = format!("is true, but the file has no bias for `{name}`");
                return Err(self.config.error("lora_bias", problem));
            }
        };
        if !module.bias {
            return Err(self.no_bias(place, name));
        }
        self.check_shape(place, &module.shape[..1])?;
        Ok(Some((place, self.config.scale(name, self.config.rank(name)?)?)))
    }

    /// A module that is saved as a whole is in the file as a whole.
    fn check_saved(
        &self,
        name: &str,
        module: &Module,
        parts: &BTreeMap<Part, usize>,
    ) -> Result<()> {
        let lacks = match parts {
            parts if !parts.contains_key(&Part::Weight) => "weight",
            parts if module.bias && !parts.contains_key(&Part::Bias) => "bias",
            _ => return Ok(()),
        };
        let problem = format!("names `{name}`, but the file does not hold its {lacks}");
        Err(self.config.error("modules_to_save", problem))
    }

    fn check_shape(&self, place: usize, expected: &[usize]) -> Result<()> {
        let found = &self.file.tensors[place].shape;
        if found == expected {
            return Ok(());
        }
        let found = brief(&format!("{found:?}"));
        let problem =
            format!("has shape {found}, but this model and the config ask for {expected:?}");
        Err(self.wrong(place, problem))
    }

    fn no_bias(&self, place: usize, module: &str) -> Error {
        self.wrong(place, format!("is a bias, but `{module}` of this model has none"))
    }

    fn wrong(&self, place: usize, problem: impl Into<String>) -> Error {
        wrong(self.file, &self.file.tensors[place], problem)
    }

    fn remarks(&self) -> impl Iterator<Item = Remark> {
        let more = |count: usize| match count {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let unread = self.unread.first().map(|&first| {
            let first = brief(&self.file.tensors[first].name);
            let text = format!(
                "holds `{first}`{}, which PEFT does not load with this config (`target_modules`, \
                 `modules_to_save`): not merged",
                more(self.unread.len())
            );
            Remark::file("unused-adapter-tensors", &self.file.path, text)
        });
        let untouched = self.untouched.first().map(|first| {
            let text = format!(
                "names `{first}`{} as to be adapted, and the file holds no tensors for that: not changed",
                more(self.untouched.len())
            );
            self.config.remark("adapter-without-tensors", text)
        });
        unread.into_iter().chain(untouched)
    }
}

/// The merges of a model whose output head is its embedding: what changes one in place changes
/// both, and what is replaced as a module of its own is no longer the other. Returns what to say
/// about it, and whether the two are different matrices now.
fn tie(config: &AdapterConfig, merges: &mut HashMap<String, Merge>) -> (Option<String>, bool) {
    let (embedding, head) = (format!("{EMBEDDING}.weight"), format!("{HEAD}.weight"));
    let mut take = |name: &str| merges.remove(name).unwrap_or_else(|| Merge::of(&embedding));
    let (of_embedding, of_head) = (take(&embedding), take(&head));
    let (embedding_saved, head_saved) = (config.saves(EMBEDDING), config.saves(HEAD));
    let changed = !of_embedding.changes.is_empty() || !of_head.changes.is_empty();
    let in_place = |saved: bool, merge: &Merge| merge.replaced.filter(|_| !saved);
    let shared = Merge {
        base: embedding.clone(),
        // PEFT's loader copies into the embedding first.
        replaced: in_place(head_saved, &of_head).or(in_place(embedding_saved, &of_embedding)),
        changes: of_embedding.changes.iter().chain(&of_head.changes).copied().collect(),
        added: None,
    };
    let unties = embedding_saved || head_saved;
    let own = |saved: bool, merge: &Merge| match saved {
        true => Merge { base: embedding.clone(), ..merge.clone() },
        false => shared.clone(),
    };
    merges.insert(embedding.clone(), own(embedding_saved, &of_embedding));
    if unties {
        merges.insert(head, own(head_saved, &of_head));
    }
    let text = match (unties, changed) {
        (true, _) => {
            "`modules_to_save` replaces the embedding or the output head of a model that has one matrix for \
             both: they are two from here on, as in PEFT's merge"
        }
        (false, true) => {
            "adapts the embedding or the output head of a model that has one matrix for both: both change, \
             as in PEFT's merge (without merging, PEFT changes the named one only)"
        }
        (false, false) => return (None, false),
    };
    (Some(text.to_owned()), unties)
}
