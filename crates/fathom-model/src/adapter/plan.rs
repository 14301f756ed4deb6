//! The plan of a merge: how an adapter changes each tensor of a checkpoint, determined before any
//! weight is read.

use std::collections::{BTreeMap, HashMap};

use fathom_backend::WeightView;
use fathom_vector::first_non_finite;

use super::AdapterConfig;
use super::names::{self, TensorRole};
use crate::config::architecture::TensorNames;
use crate::sanitize::sanitize;
use crate::weights::{ModelTensors, Shard};
use crate::{Checkpoint, Error, ModelConfig, Remark, Result, TensorInfo};

/// How an adapter changes a checkpoint.
#[derive(Debug)]
pub(super) struct MergePlan {
    /// By HuggingFace tensor name.
    pub merges: HashMap<String, TensorMerge>,
    /// Whether an output head that was tied to the embedding becomes its own matrix.
    pub unties: bool,
    pub remarks: Vec<Remark>,
}

/// How a tensor of the merged model is computed. The adapter's tensors are given by their index in
/// its file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorMerge {
    /// The checkpoint's tensor to start from: the tensor of the same name, or the embedding for a
    /// tied output head.
    pub base: String,
    /// The adapter's tensor that replaces the checkpoint's.
    pub replaced: Option<usize>,
    /// The low-rank changes to add to a matrix, in this order.
    pub changes: Vec<LowRankChange>,
    /// The vector to add to a bias, and its scale.
    pub added: Option<(usize, f32)>,
}

/// A low-rank change of a matrix: scale · B·A. `a` and `b` are indices of tensors in the adapter's
/// file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LowRankChange {
    pub a: usize,
    pub b: usize,
    pub rank: usize,
    pub scale: f32,
    /// Whether the module is an embedding: A and B are stored transposed, and PEFT rounds the
    /// change before adding it.
    pub embedding: bool,
}

/// A module that an adapter may change.
struct Module {
    /// Shape of its weight.
    shape: Vec<usize>,
    bias: bool,
    embedding: bool,
}

impl Module {
    fn is_linear(&self) -> bool {
        self.shape.len() == 2 && !self.embedding
    }
}

/// Indices of the tensors in an adapter's file, by module and role.
type TensorsByModule = HashMap<String, BTreeMap<TensorRole, usize>>;

impl MergePlan {
    /// Plans the merge of the adapter in `file`, checked against config and model.
    ///
    /// # Errors
    /// A tensor of an unsupported kind of adapter or of another model, of the wrong shape, or with
    /// a value that is not finite; a file with nothing to merge.
    pub(super) fn new(
        config: &AdapterConfig,
        file: &Shard,
        base: &Checkpoint,
        model: &ModelConfig,
    ) -> Result<MergePlan> {
        let modules = modules(model);
        let by_module = tensors_by_module(file, &modules, model)?;
        let mut planner = Planner { config, file, unread: Vec::new(), untouched: Vec::new() };
        let mut merges = HashMap::new();
        let none = BTreeMap::new();
        for (name, module) in &modules {
            let tensors = by_module.get(name).unwrap_or(&none);
            let (weight, bias) = planner.module(name, module, tensors)?;
            merges.extend([(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]);
        }
        let mut remarks = config.remarks.clone();
        remarks.extend(planner.remarks());
        let mut unties = false;
        if base.ties_word_embeddings(model)? {
            let names = &model.architecture.facts().tensors;
            let (text, split) = tie(config, names, &mut merges);
            remarks.extend(text.map(|text| config.remark("tied-adapter", text)));
            unties = split;
        }
        merges.retain(|name, merge| !merge.is_unchanged(name));
        if merges.is_empty() {
            let problem = "names no module of this model that the file holds tensors for";
            return Err(config.error("target_modules", problem));
        }
        let plan = MergePlan { merges, unties, remarks };
        plan.check_values(file)?;
        Ok(plan)
    }

    /// Checks that every value of the tensors to merge is finite.
    fn check_values(&self, file: &Shard) -> Result<()> {
        let mut used: Vec<usize> = self.merges.values().flat_map(TensorMerge::indices).collect();
        used.sort_unstable();
        used.dedup();
        for tensor in used.into_iter().map(|index| &file.tensors[index]) {
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

impl TensorMerge {
    fn of(name: &str) -> TensorMerge {
        TensorMerge { base: name.to_owned(), replaced: None, changes: Vec::new(), added: None }
    }

    /// Whether the tensor `name` is the checkpoint's, unchanged.
    fn is_unchanged(&self, name: &str) -> bool {
        *self == TensorMerge::of(name)
    }

    fn indices(&self) -> impl Iterator<Item = usize> {
        let changes = self.changes.iter().flat_map(|change| [change.a, change.b]);
        self.replaced.into_iter().chain(changes).chain(self.added.map(|(index, _)| index))
    }
}

/// The model's modules with weights, in its order.
fn modules(model: &ModelConfig) -> Vec<(String, Module)> {
    let embed = model.architecture.facts().tensors.embed;
    let mut modules: Vec<(String, Module)> = Vec::new();
    for (tensor, shape) in ModelTensors::of(model).list(true) {
        if let Some(name) = tensor.strip_suffix(".weight") {
            let embedding = name == embed;
            modules.push((name.to_owned(), Module { shape, bias: false, embedding }));
        } else if let Some((_, module)) = modules.last_mut() {
            module.bias = true; // listed after the weight
        }
    }
    modules
}

/// Groups the tensors in a file by module and role.
fn tensors_by_module(
    file: &Shard,
    modules: &[(String, Module)],
    model: &ModelConfig,
) -> Result<TensorsByModule> {
    let known: HashMap<&str, &Module> =
        modules.iter().map(|(name, module)| (name.as_str(), module)).collect();
    let mut by_module = TensorsByModule::new();
    let mut adapter: Option<&str> = None;
    for (index, tensor) in file.tensors.iter().enumerate() {
        let name = names::parse(&tensor.name).map_err(|problem| wrong(file, tensor, problem))?;
        if name.role == TensorRole::Original {
            continue;
        }
        if !known.contains_key(name.module) {
            let problem = format!(
                "belongs to a module that this model does not have ({}, {} layers): it is an \
                 adapter of another model",
                model.architecture, model.layers
            );
            return Err(wrong(file, tensor, problem));
        }
        if let (Some(one), Some(other)) = (adapter, name.adapter)
            && one != other
        {
            let problem = format!(
                "is of an adapter `{}`, and others are of `{}`: expected one adapter in a file",
                sanitize(other),
                sanitize(one)
            );
            return Err(wrong(file, tensor, problem));
        }
        adapter = adapter.or(name.adapter);
        let of_module = by_module.entry(name.module.to_owned()).or_default();
        if let Some(first) = of_module.insert(name.role, index) {
            let first = sanitize(&file.tensors[first].name);
            return Err(wrong(file, tensor, format!("duplicates `{first}`")));
        }
    }
    Ok(by_module)
}

fn wrong(file: &Shard, tensor: &TensorInfo, problem: impl Into<String>) -> Error {
    Error::tensor(&file.path, sanitize(&tensor.name), problem)
}

/// Plans the merges module by module.
struct Planner<'a> {
    config: &'a AdapterConfig,
    file: &'a Shard,
    /// Tensors that PEFT does not load and that are not merged here either.
    unread: Vec<usize>,
    /// Modules that the config targets and the file has no tensors for.
    untouched: Vec<String>,
}

impl Planner<'_> {
    /// The merges of a module's weight and bias.
    fn module(
        &mut self,
        name: &str,
        module: &Module,
        tensors: &BTreeMap<TensorRole, usize>,
    ) -> Result<(TensorMerge, TensorMerge)> {
        let linear = module.is_linear();
        let adapted = module.shape.len() == 2 && self.config.targets(name, linear)?;
        let saved = self.config.saves(name);
        let mut weight = TensorMerge::of(&format!("{name}.weight"));
        let mut bias = TensorMerge::of(&format!("{name}.bias"));

        // PEFT stores the original weight and bias of an adapted module under `base_layer`.
        let (own, own_bias) = match adapted {
            true => (TensorRole::BaseWeight, TensorRole::BaseBias),
            false => (TensorRole::Weight, TensorRole::Bias),
        };
        for (role, merge, shape) in
            [(own, &mut weight, &module.shape[..]), (own_bias, &mut bias, &module.shape[..1])]
        {
            let Some(index) = tensors.get(&role) else { continue };
            if role == own_bias && !module.bias {
                return Err(self.no_bias(*index, name));
            }
            self.check_shape(*index, shape)?;
            merge.replaced = Some(*index);
        }
        let mut lora: Vec<TensorRole> = Vec::new();
        for (role, index) in tensors {
            match role {
                TensorRole::A
                | TensorRole::B
                | TensorRole::BBias
                | TensorRole::EmbeddingA
                | TensorRole::EmbeddingB
                    if adapted =>
                {
                    lora.push(*role);
                }
                role if [own, own_bias].contains(role) => {}
                _ => self.unread.push(*index),
            }
        }
        if saved && !adapted {
            self.check_saved(name, module, tensors)?;
        }
        if adapted && lora.is_empty() {
            self.untouched.push(name.to_owned());
        } else if adapted {
            weight.changes.push(self.change(name, module, tensors)?);
            bias.added = self.added(name, module, tensors)?;
        }
        Ok((weight, bias))
    }

    /// The low-rank change of a module's weight.
    fn change(
        &self,
        name: &str,
        module: &Module,
        tensors: &BTreeMap<TensorRole, usize>,
    ) -> Result<LowRankChange> {
        let embedding = !module.is_linear();
        let ([a_role, b_role], others) = match embedding {
            true => {
                ([TensorRole::EmbeddingA, TensorRole::EmbeddingB], [TensorRole::A, TensorRole::B])
            }
            false => {
                ([TensorRole::A, TensorRole::B], [TensorRole::EmbeddingA, TensorRole::EmbeddingB])
            }
        };
        if let Some(index) = others.iter().find_map(|role| tensors.get(role)) {
            let kind = if embedding { "an embedding" } else { "a linear layer" };
            return Err(self.wrong(*index, format!("does not fit `{name}`, which is {kind}")));
        }
        let (a, b) = match (tensors.get(&a_role), tensors.get(&b_role)) {
            (Some(a), Some(b)) => (*a, *b),
            (Some(one), None) | (None, Some(one)) => {
                return Err(self.wrong(*one, "has no counterpart: expected both A and B"));
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
        Ok(LowRankChange { a, b, rank, scale, embedding })
    }

    /// The vector to add to a module's bias, with its scale.
    fn added(
        &self,
        name: &str,
        module: &Module,
        tensors: &BTreeMap<TensorRole, usize>,
    ) -> Result<Option<(usize, f32)>> {
        let index = match (tensors.get(&TensorRole::BBias), self.config.lora_bias) {
            (None, false) => return Ok(None),
            (Some(index), true) => *index,
            (Some(index), false) => {
                return Err(self.wrong(*index, "is a bias, but `lora_bias` is not true"));
            }
            (None, true) => {
                let problem = format!("is true, but the file has no bias for `{name}`");
                return Err(self.config.error("lora_bias", problem));
            }
        };
        if !module.bias {
            return Err(self.no_bias(index, name));
        }
        self.check_shape(index, &module.shape[..1])?;
        Ok(Some((index, self.config.scale(name, self.config.rank(name)?)?)))
    }

    /// Checks that the file has all tensors of a module in `modules_to_save`.
    fn check_saved(
        &self,
        name: &str,
        module: &Module,
        tensors: &BTreeMap<TensorRole, usize>,
    ) -> Result<()> {
        let lacks = match tensors {
            tensors if !tensors.contains_key(&TensorRole::Weight) => "weight",
            tensors if module.bias && !tensors.contains_key(&TensorRole::Bias) => "bias",
            _ => return Ok(()),
        };
        let problem = format!("names `{name}`, but the file does not hold its {lacks}");
        Err(self.config.error("modules_to_save", problem))
    }

    fn check_shape(&self, index: usize, expected: &[usize]) -> Result<()> {
        let found = &self.file.tensors[index].shape;
        if found == expected {
            return Ok(());
        }
        let found = sanitize(&format!("{found:?}"));
        let problem =
            format!("has shape {found}, but this model and the config ask for {expected:?}");
        Err(self.wrong(index, problem))
    }

    fn no_bias(&self, index: usize, module: &str) -> Error {
        self.wrong(index, format!("is a bias, but `{module}` of this model has none"))
    }

    fn wrong(&self, index: usize, problem: impl Into<String>) -> Error {
        wrong(self.file, &self.file.tensors[index], problem)
    }

    fn remarks(&self) -> impl Iterator<Item = Remark> {
        let more = |count: usize| match count {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let unread = self.unread.first().map(|&first| {
            let first = sanitize(&self.file.tensors[first].name);
            let text = format!(
                "holds `{first}`{}, which PEFT does not load with this config (`target_modules`, \
                 `modules_to_save`): not merged",
                more(self.unread.len())
            );
            Remark::file("unused-adapter-tensors", &self.file.path, text)
        });
        let untouched = self.untouched.first().map(|first| {
            let text = format!(
                "targets `{first}`{}, but the file holds no tensors for it: not changed",
                more(self.untouched.len())
            );
            self.config.remark("adapter-without-tensors", text)
        });
        unread.into_iter().chain(untouched)
    }
}

/// Adjusts the merges of a model whose output head is tied to its embedding. A low-rank change of
/// one applies to both; `modules_to_save` unties them. Returns the text of a remark, and whether
/// the two become different matrices.
fn tie(
    config: &AdapterConfig,
    names: &TensorNames,
    merges: &mut HashMap<String, TensorMerge>,
) -> (Option<String>, bool) {
    let (embedding, head) =
        (format!("{}.weight", names.embed), format!("{}.weight", names.lm_head));
    let mut take = |name: &str| merges.remove(name).unwrap_or_else(|| TensorMerge::of(&embedding));
    let (of_embedding, of_head) = (take(&embedding), take(&head));
    let (embedding_saved, head_saved) = (config.saves(names.embed), config.saves(names.lm_head));
    let changed = !of_embedding.changes.is_empty() || !of_head.changes.is_empty();
    let in_place = |saved: bool, merge: &TensorMerge| merge.replaced.filter(|_| !saved);
    let shared = TensorMerge {
        base: embedding.clone(),
        // PEFT's loader copies into the embedding before the head, so the head's tensor wins.
        replaced: in_place(head_saved, &of_head).or(in_place(embedding_saved, &of_embedding)),
        changes: of_embedding.changes.iter().chain(&of_head.changes).copied().collect(),
        added: None,
    };
    let unties = embedding_saved || head_saved;
    let own = |saved: bool, merge: &TensorMerge| match saved {
        true => TensorMerge { base: embedding.clone(), ..merge.clone() },
        false => shared.clone(),
    };
    merges.insert(embedding.clone(), own(embedding_saved, &of_embedding));
    if unties {
        merges.insert(head, own(head_saved, &of_head));
    }
    let text = match (unties, changed) {
        (true, _) => {
            "`modules_to_save` replaces the embedding or the output head of a model that ties \
             them: they become two matrices, as in PEFT's merge"
        }
        (false, true) => {
            "adapts the embedding or the output head of a model that ties them: both change, as in \
             PEFT's merge (without merging, PEFT changes the named one only)"
        }
        (false, false) => return (None, false),
    };
    (Some(text.to_owned()), unties)
}
