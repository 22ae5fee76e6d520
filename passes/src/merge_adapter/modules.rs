//! Puts an adapter's tensors together by module, checks them against the weights, and builds the merged expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::{Expr, WeightId, WeightTable};

use super::config::{Config, Kind};
use super::{Adapter, AdapterTensor};
use crate::error::PassError;

/// Problems that are printed; more are counted.
const SHOWN: usize = 6;

/// What PEFT puts before the names of the model's own modules.
const PREFIX: &str = "base_model.model.";

/// The change of one weight.
#[derive(Debug)]
pub(super) struct Merge {
    pub weight: WeightId,
    /// What is added to the weight.
    pub delta: Arc<Expr>,
    /// Dual LoRA: whether relu keeps entries of `delta` at 0.
    pub rests: bool,
    /// DoRA: the norms that the rows of the sum are brought to, and how long rows are.
    rows: Option<(Arc<Expr>, usize)>,
}

impl Merge {
    /// Whether the merged weight is just the sum of the weight and `delta`.
    pub fn is_sum(&self) -> bool {
        self.rows.is_none()
    }

    /// The merged weight.
    pub fn apply(&self, base: Expr) -> Expr {
        let sum = Expr::Add(Arc::new(base), Arc::clone(&self.delta));
        match &self.rows {
            None => sum,
            Some((magnitude, columns)) => Expr::ScaleRows { input: Arc::new(sum), magnitude: Arc::clone(magnitude), columns: *columns },
        }
    }
}

/// The changes of every weight that the adapter names, in the order of the names.
///
/// # Errors
/// [`PassError::Adapter`] with every tensor that is not understood, fits no weight, has the wrong shape or isn't finite.
pub(super) fn merges(adapter: &Adapter, config: &Config, strength: f64, weights: &WeightTable) -> Result<Vec<Merge>, PassError> {
    let mut problems = Vec::new();
    let mut modules: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
    for (name, tensor) in &adapter.tensors {
        match split(name, config.kind) {
            Some((module, part)) => {
                modules.entry(module).or_default().insert(part, tensor);
            }
            None => problems.push(format!("tensor {name} is no part of {} that dlc knows", config.kind.describe())),
        }
        if let Some(i) = tensor.data.first_non_finite() {
            problems.push(format!("tensor {name} is not finite at element {i}"));
        }
    }
    if modules.is_empty() && problems.is_empty() {
        problems.push("holds no tensors".into());
    }
    if matches!(config.kind, Kind::Dora { .. }) && (strength - 1.0).abs() > f64::EPSILON {
        problems.push("DoRA can't be merged with another strength than 1: its norms were trained for that".into());
    }
    let mut merges = Vec::new();
    for (module, parts) in &modules {
        match merge(module, parts, config, strength, weights) {
            Ok(merge) => merges.push(merge),
            Err(problem) => problems.push(format!("{module}: {problem}")),
        }
    }
    if problems.is_empty() {
        return Ok(merges);
    }
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Err(PassError::Adapter { adapter: adapter.name.clone(), unsupported: false, problems })
}

type Parts<'a> = BTreeMap<&'static str, &'a AdapterTensor>;

/// `base_model.model.<module>.<part>` -> module and part.
fn split(name: &str, kind: Kind) -> Option<(&str, &'static str)> {
    let parts: &[(&str, &'static str)] = match kind {
        Kind::Lora | Kind::RsLora => &[(".lora_A.weight", "A"), (".lora_B.weight", "B")],
        Kind::Dora { .. } => {
            &[(".lora_A.weight", "A"), (".lora_B.weight", "B"), (".lora_magnitude_vector", "m"), (".lora_magnitude_vector.weight", "m")]
        }
        Kind::Dual => &[
            (".lora_magnitude_A.weight", "A"),
            (".lora_magnitude_B.weight", "B"),
            (".lora_direction_A.weight", "C"),
            (".lora_direction_B.weight", "D"),
        ],
    };
    let name = name.strip_prefix(PREFIX)?;
    parts.iter().find_map(|(suffix, part)| name.strip_suffix(suffix).map(|module| (module, *part)))
}

fn merge(module: &str, parts: &Parts<'_>, config: &Config, strength: f64, weights: &WeightTable) -> Result<Merge, String> {
    let name = format!("{module}.weight");
    let weight = weights.find(&name).ok_or_else(|| format!("the model has no weight {name}"))?;
    let [out, inner] = weights[weight].shape[..] else { return Err(format!("weight {name} is no matrix")) };
    let (change, rank) = product(parts, ["B", "A"], [out, inner])?;
    if config.kind != Kind::Dual {
        check_rank(config.rank(module), rank)?;
        let delta = Arc::new(Expr::Scale(change, (config.scaling(module, &[rank]) * strength) as f32));
        let rows = if let Kind::Dora { .. } = config.kind { Some((norms(parts, out)?, inner)) } else { None };
        return Ok(Merge { weight, delta, rests: false, rows });
    }
    let (direction, direction_rank) = product(parts, ["D", "C"], [out, inner])?;
    let signed = Expr::Mul(Arc::new(Expr::Relu(change)), Arc::new(Expr::Sign(direction)));
    let factor = config.scaling(module, &[rank, direction_rank]) * strength;
    let delta = Arc::new(Expr::Scale(Arc::new(signed), factor as f32));
    Ok(Merge { weight, delta, rests: true, rows: None })
}

/// `left [out, r] x right [r, inner]`, and r.
fn product(parts: &Parts<'_>, [left, right]: [&str; 2], [out, inner]: [usize; 2]) -> Result<(Arc<Expr>, usize), String> {
    let (Some(b), Some(a)) = (parts.get(left), parts.get(right)) else { return Err(format!("its matrix {left} or {right} is missing")) };
    match (&b.shape[..], &a.shape[..]) {
        (&[rows, rank], &[same, columns]) if rows == out && columns == inner && rank == same && rank > 0 => {
            let product = Expr::MatMul { left: Arc::new(b.data.clone()), right: Arc::new(a.data.clone()), inner: rank, columns };
            Ok((Arc::new(product), rank))
        }
        (b, a) => Err(format!("{left} {b:?} and {right} {a:?} don't multiply to the weight's [{out}, {inner}]")),
    }
}

fn norms(parts: &Parts<'_>, out: usize) -> Result<Arc<Expr>, String> {
    let norms = parts.get("m").ok_or("its lora_magnitude_vector is missing")?;
    let elements: usize = norms.shape.iter().product();
    if elements == out { Ok(Arc::new(norms.data.clone())) } else { Err(format!("lora_magnitude_vector {:?} doesn't fit {out} rows", norms.shape)) }
}

fn check_rank(promised: usize, found: usize) -> Result<(), String> {
    if promised == found { Ok(()) } else { Err(format!("its rank is [{found}], the configuration says [{promised}]")) }
}
