//! Which modules an adapter's configuration says that it changes, as PEFT matches them.

use std::collections::BTreeSet;

use dlc_ir::{Experts, Graph, Module, Op, Operand, Weight, WeightId};
use serde_json::{Map, Value};

use super::entries::{MOST_ENTRIES, names};
use super::pattern::Pattern;

/// PEFT's word for every linear layer but the head.
const ALL_LINEAR: &str = "all-linear";
/// Modules that `all-linear` leaves out: heads over the vocabulary, and classifiers.
const HEADS: [&str; 6] = [
    "lm_head",
    "embed_out",
    "cls",
    "lm_predictions",
    "classifier",
    "score",
];

/// Most entries of `layers_pattern`.
const MOST_LAYER_PATTERNS: usize = 16;

/// `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`.
#[derive(Debug)]
pub(super) struct Targets {
    names: Names,
    excluded: Option<Names>,
    /// Modules that were trained as a whole; nothing in them is changed otherwise.
    saved: Vec<String>,
    layers: Vec<u64>,
    layer_patterns: Vec<Pattern>,
}

/// Names of modules.
#[derive(Debug)]
enum Names {
    /// Whole names, or their ends after a dot.
    Ends(Vec<String>),
    /// A pattern of whole names.
    Pattern(Pattern),
    /// Every linear layer but heads.
    AllLinear,
}

impl Names {
    fn read(value: &Value, key: &str) -> Result<Self, String> {
        match value {
            Value::String(text) if text == ALL_LINEAR => Ok(Self::AllLinear),
            Value::String(text) => {
                let shown = || text.chars().take(60).collect::<String>();
                Pattern::framed(["^(?:", ")$"], text)
                    .map(Self::Pattern)
                    .ok_or_else(|| {
                        format!("{key} = {} is not a pattern that dlc can read", shown())
                    })
            }
            other => names(other)
                .map(Self::Ends)
                .ok_or_else(|| format!("{key} must be a list of names, a pattern or {ALL_LINEAR}")),
        }
    }

    fn has(&self, module: &str) -> bool {
        match self {
            Self::Ends(ends) => ends.iter().any(|end| is_end(module, end)),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::AllLinear => !module.split('.').any(|part| HEADS.contains(&part)),
        }
    }
}

/// Whether `end` is `module`, or what it ends with after a dot.
pub(super) fn is_end(module: &str, end: &str) -> bool {
    module
        .strip_suffix(end)
        .is_some_and(|start| start.is_empty() || start.ends_with('.'))
}

impl Targets {
    /// Reads a configuration that trains the modules `saved` as a whole; none if it names no
    /// targets.
    pub fn read(config: &Map<String, Value>, saved: &[String]) -> Result<Option<Self>, String> {
        let get = |key: &str| config.get(key).filter(|v| !v.is_null());
        let Some(names) = get("target_modules") else {
            return Ok(None);
        };
        let names = Names::read(names, "target_modules")?;
        let excluded = get("exclude_modules")
            .map(|v| Names::read(v, "exclude_modules"))
            .transpose()?;
        let several = |key: &str, most: usize| match get(key) {
            Some(Value::Array(list)) if list.len() > most => Err(format!(
                "{key} has {} entries, and dlc reads {most}",
                list.len()
            )),
            Some(Value::Array(list)) => Ok(list.clone()),
            Some(Value::String(text)) if text.is_empty() => Ok(vec![]),
            Some(one) => Ok(vec![one.clone()]),
            None => Ok(vec![]),
        };
        let number = |v: &Value| {
            v.as_u64()
                .ok_or_else(|| format!("layers_to_transform = {v} is not a layer's number"))
        };
        let layers = several("layers_to_transform", MOST_ENTRIES)?
            .iter()
            .map(number)
            .collect::<Result<_, _>>()?;
        let pattern = |v: &Value| {
            let pattern = v.as_str().and_then(|text| {
                Pattern::framed([r"^(?:|.*?\.)(?:", r")\.(?P<layer>\d+)\."], text)
            });
            pattern
                .ok_or_else(|| format!("layers_pattern = {v} is not a pattern that dlc can read"))
        };
        let mut layer_patterns = several("layers_pattern", MOST_LAYER_PATTERNS)?
            .iter()
            .map(pattern)
            .collect::<Result<Vec<_>, _>>()?;
        if layer_patterns.is_empty() {
            layer_patterns.extend(Pattern::framed(["", ""], r"^.*?\.[^.]*\.(?P<layer>\d+)\."));
        }
        Ok(Some(Self {
            names,
            excluded,
            saved: saved.to_vec(),
            layers,
            layer_patterns,
        }))
    }

    /// Whether `module` is one of them. Patterns and whole names decide by themselves, in PEFT too.
    fn has(&self, module: &str) -> bool {
        if self
            .excluded
            .as_ref()
            .is_some_and(|names| names.has(module))
            || self.is_saved(module)
            || !self.names.has(module)
        {
            return false;
        }
        let decides = match &self.names {
            Names::Ends(ends) => ends.iter().any(|end| end == module),
            Names::Pattern(_) => true,
            Names::AllLinear => false,
        };
        decides
            || self.layers.is_empty()
            || self
                .layer(module)
                .is_some_and(|layer| self.layers.contains(&layer))
    }

    /// Whether `module` is one that was trained as a whole, or in one.
    fn is_saved(&self, module: &str) -> bool {
        let module = format!(".{module}.");
        self.saved
            .iter()
            .any(|saved| module.contains(&format!(".{saved}.")))
    }

    /// The number of the layer that `module` is in.
    fn layer(&self, module: &str) -> Option<u64> {
        self.layer_patterns
            .iter()
            .find_map(|pattern| pattern.group(module, "layer")?.parse().ok())
    }

    /// The patterns of modules and layers.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        let names = [Some(&self.names), self.excluded.as_ref()]
            .into_iter()
            .flatten();
        let patterns = names.filter_map(|names| {
            if let Names::Pattern(pattern) = names {
                Some(pattern)
            } else {
                None
            }
        });
        patterns.chain(&self.layer_patterns)
    }

    /// What doesn't fit between the targets, the modules that the adapter holds tensors for, and
    /// those of the model.
    pub fn problems(&self, held: &BTreeSet<&str>, model: &Modules) -> Vec<String> {
        let mut problems = Vec::new();
        if let Names::Ends(ends) = &self.names {
            let lost = ends.iter().filter(|end| {
                !model
                    .all
                    .iter()
                    .chain(&model.unread)
                    .any(|module| is_end(module, end))
            });
            problems.extend(
                lost.map(|end| format!("target_modules: {end} matches no module of the model")),
            );
        }
        let known = |module: &str| model.all.contains(module) || model.unread.contains(module);
        let strange = held
            .iter()
            .filter(|module| known(module) && !self.has(module));
        problems.extend(strange.map(|module| {
            format!(
                "it holds tensors for {module}, which it doesn't target (PEFT would leave them out)"
            )
        }));
        let candidates = if matches!(self.names, Names::AllLinear) {
            &model.linear
        } else {
            &model.all
        };
        let empty = candidates
            .iter()
            .filter(|module| self.has(module) && !held.contains(module.as_str()));
        problems.extend(
            empty.map(|module| format!("it targets {module}, and holds no tensors for it")),
        );
        problems
    }
}

/// What adapters may change of a model: modules by name, and which weights stand in two places.
#[derive(Debug, Default)]
pub(super) struct Modules {
    linear: BTreeSet<String>,
    all: BTreeSet<String>,
    /// Those that the graph doesn't use; an adapter may have been trained without them.
    unread: BTreeSet<String>,
    /// Tables that are looked up in and multiplied with: an embedding that is the head too.
    tied: BTreeSet<WeightId>,
}

impl Modules {
    /// Those of `graph`, of the weights whose names have `prefix` before the modules'.
    pub fn of(module: &Module, graph: &Graph, prefix: &str) -> Self {
        let mut modules = Self::default();
        let name_of = |weight: &Weight| {
            let name = weight.name.strip_prefix(prefix)?.strip_suffix(".weight")?;
            Some(name.to_owned())
        };
        let [mut tables, mut matrices] = [BTreeSet::new(), BTreeSet::new()];
        for (_, node) in graph.nodes() {
            let (at, linear) = match node.op {
                Op::Linear => (1..2, true),
                Op::Experts(_) => (Experts::LEADING..node.inputs.len(), true),
                // Convolutions are modules like others, but not of those that `all-linear` means.
                Op::Conv2d { .. } => (1..2, false),
                Op::Gather => (0..1, false),
                _ => continue,
            };
            let looked_up = matches!(node.op, Op::Gather);
            for operand in node.inputs.get(at).into_iter().flatten() {
                let Operand::Weight(weight) = operand else {
                    continue;
                };
                if looked_up {
                    &mut tables
                } else {
                    &mut matrices
                }
                .insert(*weight);
                let Some(name) = name_of(&module.weights[*weight]) else {
                    continue;
                };
                if linear {
                    modules.linear.insert(name.clone());
                }
                modules.all.insert(name);
            }
        }
        let others = module
            .graphs
            .iter()
            .filter(|other| other.name != graph.name);
        let elsewhere: BTreeSet<WeightId> = others.flat_map(Graph::weights).collect();
        let matrices_by_name = module
            .weights
            .entries()
            .filter(|(id, w)| w.shape.len() == 2 && !elsewhere.contains(id))
            .filter_map(|(_, w)| name_of(w));
        modules.unread = matrices_by_name
            .filter(|name| !modules.all.contains(name))
            .collect();
        modules.tied = tables.intersection(&matrices).copied().collect();
        modules
    }

    /// Whether the weight is an embedding and the head at once.
    pub fn is_tied(&self, weight: WeightId) -> bool {
        self.tied.contains(&weight)
    }

    /// Whether there is such a weight.
    pub fn has_tied(&self) -> bool {
        !self.tied.is_empty()
    }
}
