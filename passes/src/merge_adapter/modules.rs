//! Puts an adapter's tensors together by module, checks them against the weights, and builds the merged expressions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_ir::{Expr, Module, Weight, WeightId, WeightTable};

use super::config::{Config, Kind};
use super::targets::Modules;
use super::{Adapter, AdapterTensor};
use crate::error::PassError;

/// Problems that are printed; more are counted.
const SHOWN: usize = 24;

/// What PEFT puts before the names of the model's own modules.
const PREFIX: &str = "base_model.model.";

/// The change of one weight: other values, something added, or both in this order.
#[derive(Debug)]
pub(super) struct Merge {
    pub weight: WeightId,
    /// What takes the weight's place.
    replacement: Option<Arc<Expr>>,
    /// How much of the replacement is taken, the rest being the weight as it was.
    strength: f32,
    /// What is added to the weight.
    pub delta: Option<Arc<Expr>>,
    /// Dual LoRA: whether relu keeps entries of `delta` at 0.
    pub rests: bool,
    /// DoRA: the norms that the rows of the sum are brought to, and how long rows are.
    rows: Option<(Arc<Expr>, usize)>,
}

impl Merge {
    fn of(weight: WeightId) -> Self {
        Self { weight, replacement: None, strength: 1.0, delta: None, rests: false, rows: None }
    }

    /// Whether the merged weight is just the sum of the weight and `delta`.
    pub fn is_sum(&self) -> bool {
        self.rows.is_none() && self.replacement.is_none()
    }

    /// The merged weight.
    pub fn apply(&self, base: Expr) -> Expr {
        let scaled = |e: Arc<Expr>, factor: f32| Arc::new(Expr::Scale(e, factor));
        let mut merged = match &self.replacement {
            None => base,
            Some(new) if (self.strength - 1.0).abs() < f32::EPSILON => (**new).clone(),
            Some(new) => Expr::Add(scaled(Arc::new(base), 1.0 - self.strength), scaled(Arc::clone(new), self.strength)),
        };
        if let Some(delta) = &self.delta {
            merged = Expr::Add(Arc::new(merged), Arc::clone(delta));
        }
        match &self.rows {
            None => merged,
            Some((magnitude, columns)) => Expr::ScaleRows { input: Arc::new(merged), magnitude: Arc::clone(magnitude), columns: *columns },
        }
    }
}

/// The changes of every weight that the adapter names, in the order of the weights' names.
///
/// # Errors
/// [`PassError::Adapter`] with everything that is not understood, fits no weight, has the wrong shape, isn't finite, or contradicts the
/// configuration.
pub(super) fn merges(adapter: &Adapter, config: &Config, strength: f64, module: &Module) -> Result<Vec<Merge>, PassError> {
    let mut builder = Builder { config, strength, weights: &module.weights, merges: BTreeMap::new(), problems: Vec::new() };
    let parts = builder.sort(adapter);
    if adapter.tensors.is_empty() {
        builder.problems.push("holds no tensors".into());
    }
    if matches!(config.kind, Kind::Dora { .. }) && (strength - 1.0).abs() > f64::EPSILON {
        builder.problems.push("DoRA can't be merged with another strength than 1: its norms were trained for that".into());
    }
    for (module, parts) in &parts {
        if let Err(problem) = builder.merge(module, parts) {
            builder.problems.push(format!("{module}: {problem}"));
        }
    }
    if let (Some(targets), Some(graph)) = (&config.targets, module.graphs.first()) {
        let held: BTreeSet<&str> = parts.keys().copied().collect();
        builder.problems.extend(targets.problems(&held, &Modules::of(graph, &module.weights)));
    }
    let model: Vec<&str> = module.weights.entries().map(|(_, w)| w.name.as_str()).collect();
    let replaced: Vec<&str> = builder.merges.iter().filter(|(_, m)| m.replacement.is_some()).map(|(name, _)| name.as_str()).collect();
    let lost = config.lost(&model, &replaced);
    builder.problems.extend(lost.iter().map(|entry| format!("modules_to_save names {entry}, and it holds no tensors for it")));
    let Builder { merges, mut problems, .. } = builder;
    if problems.is_empty() {
        return Ok(merges.into_values().collect());
    }
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Err(PassError::Adapter { adapter: adapter.name.clone(), unsupported: false, problems })
}

type Parts<'a> = BTreeMap<&'static str, &'a AdapterTensor>;

struct Builder<'a> {
    config: &'a Config,
    strength: f64,
    weights: &'a WeightTable,
    merges: BTreeMap<String, Merge>,
    problems: Vec<String>,
}

impl Builder<'_> {
    /// The matrices of each module; tensors that take a weight's place are noted as such.
    fn sort<'t>(&mut self, adapter: &'t Adapter) -> BTreeMap<&'t str, Parts<'t>> {
        let mut modules: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
        for (name, tensor) in &adapter.tensors {
            if let Some(i) = tensor.data.first_non_finite() {
                self.problems.push(format!("tensor {name} is not finite at element {i}"));
            }
            if let Some((module, part)) = split(name, self.config.kind) {
                modules.entry(module).or_default().insert(part, tensor);
            } else if is_copy_of_base(name, adapter) {
                // PEFT never reads it again.
            } else if let Err(problem) = self.replace(name, tensor) {
                self.problems.push(format!("tensor {name} {problem}"));
            }
        }
        modules
    }

    /// The weight called `name` and its entry among the changes.
    fn entry(&mut self, name: &str) -> Result<(&Weight, &mut Merge), String> {
        let id = self.weights.find(name).ok_or_else(|| format!("the model has no weight {name}"))?;
        Ok((&self.weights[id], self.merges.entry(name.to_owned()).or_insert_with(|| Merge::of(id))))
    }

    /// A parameter that was trained as a whole: a bias, a module to save, or the base of a layer that was changed along with it.
    fn replace(&mut self, name: &str, tensor: &AdapterTensor) -> Result<(), String> {
        let unknown = || Err(format!("is no part of {} that dlc knows", self.config.kind.describe()));
        let Some(bare) = name.strip_prefix(PREFIX) else { return unknown() };
        let weight_name = bare.replace(".base_layer.", ".").replace(".modules_to_save.", ".");
        if self.weights.find(&weight_name).is_none() {
            let missing =
                "was trained as a whole, and the model has no such weight; if it ties it to another, untie them in the base checkpoint first";
            return if self.config.announces(&weight_name) { Err(missing.into()) } else { unknown() };
        }
        if !bare.contains(".base_layer.") && !self.config.announces(&weight_name) {
            return Err("takes a weight's place, which neither bias nor modules_to_save announces".into());
        }
        let strength = self.strength as f32;
        let (weight, merge) = self.entry(&weight_name)?;
        let stored = weight.storage.shape(&weight.shape);
        if tensor.shape != stored {
            return Err(format!("{:?} doesn't fit the weight's {stored:?}", tensor.shape));
        }
        merge.replacement = Some(Arc::new(weight.storage.load(tensor.data.clone(), &weight.shape)));
        merge.strength = strength;
        Ok(())
    }

    fn merge(&mut self, module: &str, parts: &Parts<'_>) -> Result<(), String> {
        let (config, strength) = (self.config, self.strength);
        let embedding = parts.contains_key("EA") || parts.contains_key("EB");
        let (weight, merge) = self.entry(&format!("{module}.weight"))?;
        let [out, inner] = weight.shape[..] else { return Err(format!("its weight {:?} is no matrix", weight.shape)) };
        if merge.delta.is_some() {
            return Err("its weight is changed twice".into());
        }
        if embedding && config.kind != Kind::Lora && config.kind != Kind::RsLora {
            return Err(format!("dlc knows no {} of embeddings", config.kind.describe()));
        }
        let (change, rank) = if embedding { looked_up(parts, [out, inner])? } else { product(parts, ["B", "A"], [out, inner])? };
        if config.kind == Kind::Dual {
            let (direction, direction_rank) = product(parts, ["D", "C"], [out, inner])?;
            let signed = Expr::Mul(Arc::new(Expr::Relu(change)), Arc::new(Expr::Sign(direction)));
            let factor = config.scaling(module, &[rank, direction_rank]) * strength;
            (merge.delta, merge.rests) = (Some(Arc::new(Expr::Scale(Arc::new(signed), factor as f32))), true);
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
            return Err(format!("the bias of lora_B {:?} doesn't fit its own {:?}", bias.shape, weight.shape));
        }
        merge.delta = Some(Arc::new(Expr::Scale(Arc::new(bias.data.clone()), factor)));
        Ok(())
    }
}

/// Whether the tensor is what a module that was trained as a whole was before; PEFT keeps it where biases are saved.
fn is_copy_of_base(name: &str, adapter: &Adapter) -> bool {
    let copies = [".modules_to_save.", "."].map(|part| name.replace(".original_module.", part));
    name.contains(".original_module.") && copies.iter().any(|copy| adapter.tensors.contains_key(copy))
}

/// `base_model.model.<module>.<part>` -> module and part. PEFT leaves the adapter's name out; files saved by hand may have it.
fn split(name: &str, kind: Kind) -> Option<(&str, &'static str)> {
    let parts: &[(&str, &'static str)] = match kind {
        Kind::Dual => {
            &[("lora_magnitude_A.weight", "A"), ("lora_magnitude_B.weight", "B"), ("lora_direction_A.weight", "C"), ("lora_direction_B.weight", "D")]
        }
        Kind::Dora { .. } => &[
            ("lora_A.weight", "A"),
            ("lora_B.weight", "B"),
            ("lora_B.bias", "bias"),
            ("lora_magnitude_vector", "m"),
            ("lora_magnitude_vector.weight", "m"),
        ],
        Kind::Lora | Kind::RsLora => {
            &[("lora_A.weight", "A"), ("lora_B.weight", "B"), ("lora_B.bias", "bias"), ("lora_embedding_A", "EA"), ("lora_embedding_B", "EB")]
        }
    };
    let (module, part) = name.strip_prefix(PREFIX)?.split_once(".lora_")?;
    let part = format!("lora_{}", part.replacen(".default", "", 1));
    parts.iter().find(|(known, _)| *known == part).map(|(_, part)| (module, *part))
}

/// `left [out, r] x right [r, inner]`, and r.
fn product(parts: &Parts<'_>, [left, right]: [&str; 2], [out, inner]: [usize; 2]) -> Result<(Arc<Expr>, usize), String> {
    let (Some(b), Some(a)) = (parts.get(left), parts.get(right)) else { return Err(format!("its matrix {left} or {right} is missing")) };
    match (&b.shape[..], &a.shape[..]) {
        (&[rows, rank], &[same, columns]) if rows == out && columns == inner && rank == same && rank > 0 => {
            Ok((matmul(b.data.clone(), a.data.clone(), rank, columns), rank))
        }
        (b, a) => Err(format!("{left} {b:?} and {right} {a:?} don't multiply to the weight's [{out}, {inner}]")),
    }
}

/// An embedding's change `A' B'` of `A [r, rows]` and `B [width, r]`, and r.
fn looked_up(parts: &Parts<'_>, [rows, width]: [usize; 2]) -> Result<(Arc<Expr>, usize), String> {
    let (Some(a), Some(b)) = (parts.get("EA"), parts.get("EB")) else { return Err("its lora_embedding_A or lora_embedding_B is missing".into()) };
    match (&a.shape[..], &b.shape[..]) {
        (&[rank, n], &[m, same]) if n == rows && m == width && rank == same && rank > 0 => {
            Ok((matmul(a.data.clone().transposed(n), b.data.clone().transposed(rank), rank, width), rank))
        }
        (a, b) => Err(format!("lora_embedding_A {a:?} and lora_embedding_B {b:?} don't fit the table's [{rows}, {width}]")),
    }
}

fn matmul(left: Expr, right: Expr, inner: usize, columns: usize) -> Arc<Expr> {
    Arc::new(Expr::MatMul { left: Arc::new(left), right: Arc::new(right), inner, columns })
}

fn norms(parts: &Parts<'_>, out: usize) -> Result<Arc<Expr>, String> {
    let norms = parts.get("m").ok_or("its lora_magnitude_vector is missing")?;
    let elements: usize = norms.shape.iter().product();
    if elements == out { Ok(Arc::new(norms.data.clone())) } else { Err(format!("lora_magnitude_vector {:?} doesn't fit {out} rows", norms.shape)) }
}

fn check_rank(promised: usize, found: usize) -> Result<(), String> {
    if promised == found { Ok(()) } else { Err(format!("its rank is [{found}], the configuration says [{promised}]")) }
}
