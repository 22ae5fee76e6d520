//! Puts an adapter's tensors together by module, checks them against the weights, and says how each
//! weight changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_ir::{Expr, Module, Storage, Weight, WeightId, WeightTable};

use super::config::{Config, Kind};
use super::merge::Merge;
use super::parts::{PREFIX, Parts, check_rank, looked_up, norms, product, split};
use super::refuse;
use super::targets::Modules;
use crate::error::PassError;
use crate::sources::{Adapter, AdapterTensor};

/// The changes of every weight that the adapter names, in the order of the weights' names.
///
/// # Errors
/// [`PassError::Adapter`] with everything that is not understood, fits no weight, has the wrong
/// shape, isn't finite, or contradicts the configuration.
pub(super) fn merges(
    adapter: &Adapter,
    config: &Config,
    strength: f64,
    module: &Module,
) -> Result<Vec<Merge>, PassError> {
    let part = adapter.part.as_ref();
    let prefix = part.map_or("", |part| &part.prefix);
    let graph = match part {
        Some(part) => module.graph(&part.graph),
        None => module.graphs.first(),
    };
    let model = graph
        .map(|graph| Modules::of(module, graph, prefix))
        .unwrap_or_default();
    let mut builder = Builder {
        config,
        strength,
        weights: &module.weights,
        prefix,
        model: &model,
        merges: BTreeMap::new(),
        problems: vec![],
        lacks: 0,
    };
    let (parts, wholes) = builder.sort(adapter);
    if adapter.tensors.is_empty() {
        builder.problems.push("holds no tensors".into());
    }
    if matches!(config.kind, Kind::Dora { .. }) && (strength - 1.0).abs() > f64::EPSILON {
        builder.problems.push(
            "DoRA can't be merged with another strength than 1: its norms were trained for that"
                .into(),
        );
    }
    for (module, parts) in &parts {
        if let Err(problem) = builder.merge(module, parts) {
            builder
                .problems
                .push(format!("{prefix}{module}: {problem}"));
        }
    }
    if let Some(targets) = &config.targets {
        let held: BTreeSet<&str> = parts.keys().copied().collect();
        builder.problems.extend(targets.problems(&held, &model));
    }
    builder.find_lost(&parts, &wholes);
    builder.problems.extend(config.overran());
    let Builder {
        merges,
        problems,
        lacks,
        ..
    } = builder;
    let unsupported = lacks == problems.len();
    refuse(&adapter.tensors_file, problems, unsupported).map(|()| merges.into_values().collect())
}

struct Builder<'a> {
    config: &'a Config,
    strength: f64,
    weights: &'a WeightTable,
    /// What stands before the names of modules in those of weights.
    prefix: &'a str,
    model: &'a Modules,
    merges: BTreeMap<String, Merge>,
    problems: Vec<String>,
    /// How many of the problems are things that dlc lacks.
    lacks: usize,
}

impl Builder<'_> {
    /// The matrices of each module, and the names of the weights whose place tensors would take;
    /// those that may are noted as such.
    fn sort<'t>(
        &mut self,
        adapter: &'t Adapter,
    ) -> (
        BTreeMap<&'t str, Parts<'t>>,
        BTreeMap<String, &'t AdapterTensor>,
    ) {
        let mut modules: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
        let mut others = Vec::new();
        for (name, tensor) in &adapter.tensors {
            if let Some(i) = tensor.data.first_non_finite() {
                self.problems
                    .push(format!("tensor {name} is not finite at element {i}"));
            }
            if let Some(module) = trained_tokens(name) {
                if let Err(problem) = self.replace_rows(module, tensor) {
                    self.problems.push(format!("tensor {name} {problem}"));
                }
            } else if let Some((module, part)) = split(name, self.config.kind) {
                if modules
                    .entry(module)
                    .or_default()
                    .insert(part, tensor)
                    .is_some()
                {
                    self.problems
                        .push(format!("tensor {name} stands there twice, under two names"));
                }
            } else if !is_copy_of_base(name, adapter) {
                // PEFT never reads such copies again.
                others.push((name, tensor));
            }
        }
        let mut wholes: BTreeMap<String, &AdapterTensor> = BTreeMap::new();
        for (name, tensor) in others {
            let weight = name
                .strip_prefix(PREFIX)
                .unwrap_or(name)
                .replace(".base_layer.", ".")
                .replace(".modules_to_save.", ".");
            let done = self.check_whole(name, &weight, &modules).and_then(|()| {
                match wholes.get(&weight) {
                    Some(other) if !same(other, tensor) => {
                        Err(format!("takes the place of {weight}, and so does another"))
                    }
                    _ => self.replace(&weight, tensor),
                }
            });
            wholes.insert(weight, tensor);
            if let Err(problem) = done {
                self.problems.push(format!("tensor {name} {problem}"));
            }
        }
        (modules, wholes)
    }

    /// The weight that the adapter calls `name`.
    fn find(&self, name: &str) -> Option<WeightId> {
        self.weights.find(&format!("{}{name}", self.prefix))
    }

    /// The weight called `name` and its entry among the changes.
    fn entry(&mut self, name: &str) -> Result<(&Weight, &mut Merge), String> {
        let id = self
            .find(name)
            .ok_or_else(|| format!("the model has no weight {}{name}", self.prefix))?;
        Ok((
            &self.weights[id],
            self.merges
                .entry(name.to_owned())
                .or_insert_with(|| Merge::of(id)),
        ))
    }

    /// Whether the tensor `name` may take the place of `weight`: a bias, a module to save, or the
    /// base of a layer that was changed along with it.
    fn check_whole(
        &self,
        name: &str,
        weight: &str,
        modules: &BTreeMap<&str, Parts<'_>>,
    ) -> Result<(), String> {
        let config = self.config;
        let unknown = || {
            Err(format!(
                "is no part of {} that dlc knows",
                config.kind.describe()
            ))
        };
        let Some(bare) = name.strip_prefix(PREFIX) else {
            return unknown();
        };
        let Some(id) = self.find(weight) else {
            if !config.saves(weight) && !config.announces_bias(weight) {
                return unknown();
            }
            if ["score.", "classifier."]
                .iter()
                .any(|head| weight.starts_with(head))
            {
                return Err(
                    "is a head for classes, which dlc doesn't read on this architecture".into(),
                );
            }
            let tied = "; if the model ties it to another, untie them in the base checkpoint first";
            return Err(format!(
                "was trained as a whole, and the model has no such weight{}",
                if self.model.has_tied() { tied } else { "" }
            ));
        };
        if let Some((module, _)) = bare.split_once(".base_layer.") {
            let adapted = modules.contains_key(module);
            return if adapted {
                Ok(())
            } else {
                Err(format!(
                    "is the base of {module}, which it doesn't adapt (PEFT would leave it out)"
                ))
            };
        }
        if config.saves(weight) && self.model.is_tied(id) {
            let untie = "untie them in the base checkpoint first";
            return Err(format!(
                "takes the place of the embedding, which is the head too, and PEFT would leave the head as it was; {untie}"
            ));
        }
        if !config.saves(weight) && !config.announces_bias(weight) {
            return Err(
                "takes a weight's place, which neither bias nor modules_to_save announces".into(),
            );
        }
        Ok(())
    }

    fn replace(&mut self, weight: &str, tensor: &AdapterTensor) -> Result<(), String> {
        let strength = self.strength as f32;
        let (weight, merge) = self.entry(weight)?;
        let stored = weight.storage.shape(&weight.shape);
        if let ([rows, width], [more, same]) = (&stored[..], &tensor.shape[..])
            && width == same
            && more > rows
        {
            return Err(format!(
                "has {} rows more than the model's {rows}: {}",
                more - rows,
                resize_first(more - rows)
            ));
        }
        if tensor.shape != stored {
            return Err(format!(
                "{:?} doesn't fit the weight's {stored:?}",
                tensor.shape
            ));
        }
        merge.replacement = Some(Arc::new(
            weight.storage.load(tensor.data.clone(), &weight.shape),
        ));
        merge.strength = strength;
        Ok(())
    }

    /// Puts trained rows of a table in the place of its own. A table that is the head too changes
    /// as both.
    fn replace_rows(&mut self, module: &str, tensor: &AdapterTensor) -> Result<(), String> {
        let tokens = self
            .config
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.of(module));
        let tokens = tokens
            .ok_or("holds rows of tokens that trainable_token_indices doesn't name")?
            .to_vec();
        let strength = self.strength as f32;
        let (weight, merge) = self.entry(&format!("{module}.weight"))?;
        let [rows, width] = weight.shape[..] else {
            return Err(format!(
                "replaces rows of {:?}, which is no table",
                weight.shape
            ));
        };
        if weight.storage != Storage::Plain || tensor.shape != [tokens.len(), width] {
            return Err(format!(
                "{:?} doesn't fit {} tokens of the table's {:?}",
                tensor.shape,
                tokens.len(),
                weight.shape
            ));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= rows) {
            return Err(format!(
                "is of token {token}, of a vocabulary of {rows}: {}",
                resize_first(*token as usize + 1 - rows)
            ));
        }
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        order.sort_by_key(|at| tokens[*at as usize]);
        let sorted: Arc<[u32]> = order.iter().map(|at| tokens[*at as usize]).collect();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("is of one token twice".into());
        }
        let values = Expr::Rows {
            input: Arc::new(tensor.data.clone()),
            columns: width,
            rows: order.into(),
        };
        merge.rows_replaced = Some((sorted, Arc::new(values), width));
        merge.strength = strength;
        Ok(())
    }

    /// Notes what the configuration says was trained and the adapter has no tensors of: `wholes`
    /// are the weights that it has some of.
    fn find_lost(
        &mut self,
        parts: &BTreeMap<&str, Parts<'_>>,
        wholes: &BTreeMap<String, &AdapterTensor>,
    ) {
        let model: Vec<&str> = self
            .weights
            .entries()
            .filter_map(|(_, w)| w.name.strip_prefix(self.prefix))
            .collect();
        let held: Vec<&str> = wholes.keys().map(String::as_str).collect();
        let lost = self.config.lost(&model, &held);
        if self.config.tokens.is_some()
            && !self
                .merges
                .values()
                .any(|merge| merge.rows_replaced.is_some())
        {
            self.problems
                .push("trainable_token_indices names tokens, and it holds no rows for them".into());
        }
        self.problems.extend(
            lost.iter().map(|entry| {
                format!("modules_to_save names {entry}, and it holds no tensors for it")
            }),
        );
        let bias = parts
            .keys()
            .map(|module| format!("{module}.bias"))
            .find(|bias| self.config.announces_bias(bias) && self.find(bias).is_some());
        if let Some(bias) = bias.filter(|_| !held.iter().any(|name| name.ends_with("bias"))) {
            self.problems.push(format!(
                "biases were trained, and it holds none, not even {bias}"
            ));
        }
    }

    fn merge(&mut self, module: &str, parts: &Parts<'_>) -> Result<(), String> {
        let (config, strength) = (self.config, self.strength);
        let embedding = parts.contains_key("EA") || parts.contains_key("EB");
        let (weight, merge) = self.entry(&format!("{module}.weight"))?;
        let [out, inner] = match weight.shape[..] {
            [out, inner] => [out, inner],
            [out, channels, height, width] => [out, channels * height * width],
            _ => return Err(format!("its weight {:?} is no matrix", weight.shape)),
        };
        if merge.delta.is_some() {
            return Err("its weight is changed twice".into());
        }
        if embedding && config.kind != Kind::Lora && config.kind != Kind::RsLora {
            self.lacks += 1;
            return Err(format!(
                "dlc knows no {} of embeddings",
                config.kind.describe()
            ));
        }
        let (change, rank) = if embedding {
            looked_up(parts, [out, inner])?
        } else {
            product(parts, ["B", "A"], [out, inner])?
        };
        if config.kind == Kind::Dual {
            let (direction, direction_rank) = product(parts, ["D", "C"], [out, inner])?;
            let signed = Expr::Mul(
                Arc::new(Expr::Relu(change)),
                Arc::new(Expr::Sign(direction)),
            );
            let factor = config.scaling(module, &[rank, direction_rank]) * strength;
            (merge.delta, merge.rests) = (
                Some(Arc::new(Expr::Scale(Arc::new(signed), factor as f32))),
                true,
            );
            return Ok(());
        }
        check_rank(config.rank(module), rank)?;
        let factor = (config.scaling(module, &[rank]) * strength) as f32;
        merge.delta = Some(Arc::new(Expr::Scale(change, factor)));
        if let Kind::Dora { .. } = config.kind {
            merge.rows = Some((norms(parts, out)?, inner));
        }
        match parts.get("bias") {
            Some(bias) => self.add_bias(module, bias, factor),
            None => Ok(()),
        }
    }

    /// `lora_bias`: the second factor's bias goes to the module's own.
    fn add_bias(&mut self, module: &str, bias: &AdapterTensor, factor: f32) -> Result<(), String> {
        let (weight, merge) = self.entry(&format!("{module}.bias"))?;
        if bias.shape != weight.shape {
            return Err(format!(
                "the bias of lora_B {:?} doesn't fit its own {:?}",
                bias.shape, weight.shape
            ));
        }
        merge.delta = Some(Arc::new(Expr::Scale(Arc::new(bias.data.clone()), factor)));
        Ok(())
    }
}

/// What to do where an adapter was trained with more tokens than the model has.
fn resize_first(tokens: usize) -> String {
    format!(
        "the adapter was trained with {tokens} more; resize the base first, in Python: `model.resize_token_embeddings(N)`, then `save_pretrained`, \
         or save the adapter with its embedding and its head whole"
    )
}

/// The table of which the tensor `name` holds trained rows.
fn trained_tokens(name: &str) -> Option<&str> {
    let (module, part) = name.strip_prefix(PREFIX)?.split_once(".token_adapter.")?;
    matches!(
        part,
        "trainable_tokens_delta" | "trainable_tokens_delta.default"
    )
    .then_some(module)
}

/// Whether the tensor is what a module that was trained as a whole was before; PEFT keeps it where
/// biases are saved.
fn is_copy_of_base(name: &str, adapter: &Adapter) -> bool {
    let copies = [".modules_to_save.", "."].map(|part| name.replace(".original_module.", part));
    name.contains(".original_module.")
        && copies.iter().any(|copy| adapter.tensors.contains_key(copy))
}

/// Whether two tensors hold the same numbers.
fn same(a: &AdapterTensor, b: &AdapterTensor) -> bool {
    let [mut x, mut y] = [[0f32; 1024]; 2];
    a.shape == b.shape
        && (0..a.data.elements()).step_by(x.len()).all(|from| {
            let n = x.len().min(a.data.elements() - from);
            a.data.read_f32(from, &mut x[..n]);
            b.data.read_f32(from, &mut y[..n]);
            x[..n] == y[..n]
        })
}
