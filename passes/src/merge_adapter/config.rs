//! What an adapter's configuration says: its kind, its scaling and what it trained. What would change the result and isn't known is refused,
//! all at once.

use regex::Regex;
use serde_json::{Map, Value};

use super::Adapter;
use super::targets::Targets;
use crate::error::PassError;

/// How an adapter changes a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// W + s B A, s = alpha / r.
    Lora,
    /// W + s B A, s = alpha / sqrt(r).
    RsLora,
    /// The sum of LoRA with every row brought to a trained norm.
    Dora {
        /// Whether s is that of rsLoRA.
        rank_stabilized: bool,
    },
    /// W + s relu(B A) o sign(D C), s = alpha / sqrt(r1 r2).
    Dual,
}

impl Kind {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::RsLora => "rsLoRA",
            Self::Dora { .. } => "DoRA",
            Self::Dual => "Dual LoRA",
        }
    }
}

/// An adapter's configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub kind: Kind,
    alpha: f64,
    alpha_pattern: Vec<(Regex, f64)>,
    /// The rank that the configuration promises. Unused for Dual LoRA, whose tensors may differ in rank by group and module.
    rank: usize,
    rank_pattern: Vec<(Regex, usize)>,
    /// Dual LoRA: overrides s.
    scaling: Option<f64>,
    /// The modules that it says to change; none where it says nothing.
    pub targets: Option<Targets>,
    /// Modules that were trained as a whole.
    modules_to_save: Vec<String>,
    /// Whether biases were trained.
    biases: bool,
}

/// Keys that say nothing about the merged weights: how the adapter was trained or named, or what its tensors say themselves.
///
/// `fan_in_fan_out` says how the model stores a weight, which the model itself knows; PEFT corrects it too.
const HARMLESS: [&str; 15] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_bias",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "loftq_config",
];
/// Keys that every kind has.
const COMMON_KEYS: [&str; 10] = [
    "peft_type",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "modules_to_save",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
];
const LORA_KEYS: [&str; 3] = ["r", "use_rslora", "use_dora"];
const DUAL_KEYS: [&str; 3] = ["r_magnitude", "r_direction", "scaling"];

/// Reads an adapter's configuration.
///
/// # Errors
/// [`PassError::Adapter`] with everything that isn't known or doesn't fit.
pub(super) fn read(adapter: &Adapter) -> Result<Config, PassError> {
    let mut reader = Reader { config: &adapter.config, problems: Vec::new(), unsupported: true };
    let config = reader.read();
    if reader.problems.is_empty() {
        return Ok(config);
    }
    Err(PassError::Adapter { adapter: adapter.name.clone(), unsupported: reader.unsupported, problems: reader.problems })
}

struct Reader<'a> {
    config: &'a Map<String, Value>,
    problems: Vec<String>,
    /// Whether all problems are things that dlc lacks.
    unsupported: bool,
}

impl Reader<'_> {
    fn read(&mut self) -> Config {
        let kind = match self.config.get("peft_type").and_then(Value::as_str) {
            Some("DUAL_LORA") => Kind::Dual,
            Some("LORA") => match (self.flag("use_dora"), self.flag("use_rslora")) {
                (true, rank_stabilized) => Kind::Dora { rank_stabilized },
                (false, true) => Kind::RsLora,
                (false, false) => Kind::Lora,
            },
            other => {
                self.problems.push(format!("peft_type {} is not known; there are LORA and DUAL_LORA", other.unwrap_or("(none)")));
                Kind::Lora
            }
        };
        let (known, rank_keys): (&[&str], &[&str]) =
            if kind == Kind::Dual { (&DUAL_KEYS, &["r_magnitude", "r_direction"]) } else { (&LORA_KEYS, &["r"]) };
        self.refuse_unknown(known);
        let biases = match self.config.get("bias").map_or(Some("none"), Value::as_str) {
            Some("none") => false,
            Some("all" | "lora_only") => true,
            _ => {
                self.problems.push("bias must be none, all or lora_only".into());
                false
            }
        };
        let targets = Targets::read(self.config).unwrap_or_else(|problem| {
            self.unsupported = false;
            self.problems.push(problem);
            None
        });
        let ranks: Vec<f64> = rank_keys.iter().filter_map(|key| self.number(key)).collect();
        Config {
            kind,
            alpha: self.number("lora_alpha").unwrap_or(1.0),
            alpha_pattern: self.pattern("alpha_pattern", Value::as_f64),
            rank: ranks.first().map_or(0, |r| *r as usize),
            rank_pattern: self.pattern("rank_pattern", |v| v.as_u64().map(|r| r as usize)),
            scaling: self.config.get("scaling").filter(|v| !v.is_null()).and_then(Value::as_f64),
            targets,
            modules_to_save: self.config.get("modules_to_save").and_then(Value::as_array).map_or(vec![], |list| strings(list)),
            biases,
        }
    }

    /// Keys outside of the lists may only say that something isn't used.
    fn refuse_unknown(&mut self, known: &[&str]) {
        for (key, value) in self.config {
            let unused = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Object(entries) => entries.is_empty(),
                Value::Array(entries) => entries.is_empty(),
                _ => false,
            };
            if !unused && ![known, &COMMON_KEYS, &HARMLESS].iter().any(|keys| keys.contains(&key.as_str())) {
                let shown: String = value.to_string().chars().take(60).collect();
                self.problems.push(format!("{key} = {shown} may change the result, and dlc doesn't know how"));
            }
        }
    }

    fn flag(&self, key: &str) -> bool {
        self.config.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        let number = self.config.get(key).and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0);
        if number.is_none() {
            self.unsupported = false;
            self.problems.push(format!("{key} must be a number above 0"));
        }
        number
    }

    /// `{module pattern: value}`; patterns are matched as PEFT does, against the end of a module's name.
    fn pattern<T>(&mut self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Vec<(Regex, T)> {
        let mut list = Vec::new();
        for (pattern, value) in self.config.get(key).and_then(Value::as_object).into_iter().flatten() {
            if let (Ok(regex), Some(value)) = (Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")), read(value)) {
                list.push((regex, value));
            } else {
                self.unsupported = false;
                self.problems.push(format!("{key}: {pattern} = {value} is not a pattern with a number"));
            }
        }
        list
    }
}

/// Whether the parameter `name` is part of a module whose name is `entry` or ends so.
fn is_inside(name: &str, entry: &str) -> bool {
    let modules = name.match_indices('.').map(|(at, _)| &name[..at]);
    modules.into_iter().any(|module| module == entry || module.ends_with(&format!(".{entry}")))
}

/// The strings of a list.
pub(super) fn strings(list: &[Value]) -> Vec<String> {
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Config {
    /// Whether the parameter `name` was trained as a whole: a bias, or part of a module that the configuration names.
    pub fn announces(&self, name: &str) -> bool {
        self.biases && name.ends_with("bias") || self.modules_to_save.iter().any(|entry| is_inside(name, entry))
    }

    /// Modules that were trained as a whole, that `model` has parameters of and `held` has none of.
    pub fn lost<'a>(&'a self, model: &[&str], held: &[&str]) -> Vec<&'a str> {
        let has = |names: &[&str], entry: &str| names.iter().any(|name| is_inside(name, entry));
        self.modules_to_save.iter().map(String::as_str).filter(|entry| has(model, entry) && !has(held, entry)).collect()
    }

    /// The factor of the change of `module`, whose adapter has these ranks.
    pub fn scaling(&self, module: &str, ranks: &[usize]) -> f64 {
        let alpha = self.alpha_pattern.iter().find(|(p, _)| p.is_match(module)).map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = ranks.iter().map(|&r| r as f64).product::<f64>();
        match self.kind {
            Kind::Dual => self.scaling.unwrap_or(alpha / rank.sqrt()),
            Kind::RsLora | Kind::Dora { rank_stabilized: true } => alpha / rank.sqrt(),
            Kind::Lora | Kind::Dora { rank_stabilized: false } => alpha / rank,
        }
    }

    /// The rank that the configuration promises for `module`; not for Dual LoRA.
    pub fn rank(&self, module: &str) -> usize {
        self.rank_pattern.iter().find(|(p, _)| p.is_match(module)).map_or(self.rank, |(_, rank)| *rank)
    }
}
