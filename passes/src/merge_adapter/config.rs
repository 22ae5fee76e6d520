//! What an adapter's configuration says: its kind, its scaling and what it trained. What would
//! change the result and isn't known is refused, all at once.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::entries::{MOST_ENTRIES, names};
use super::pattern::{Pattern, too_many};
use super::refuse;
use super::targets::{Targets, is_end};
use crate::error::PassError;
use crate::sources::Adapter;

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
    alpha_pattern: Vec<(Pattern, f64)>,
    /// The rank that the configuration promises. Unused for Dual LoRA, whose tensors may differ in
    /// rank by group and module.
    rank: usize,
    rank_pattern: Vec<(Pattern, usize)>,
    /// Dual LoRA: overrides s.
    scaling: Option<f64>,
    /// The modules that it says to change; none where it says nothing.
    pub targets: Option<Targets>,
    /// Modules that were trained as a whole.
    modules_to_save: Vec<String>,
    /// Whether biases were trained.
    biases: bool,
    /// Where the adapter's tensors say it: alpha by module.
    alphas: Option<BTreeMap<String, f64>>,
    /// Tokens of which the rows of a table were trained, in the order of the rows.
    pub tokens: Option<TrainedTokens>,
}

/// `trainable_token_indices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TrainedTokens {
    /// Of the embedding.
    Embedding(Vec<u32>),
    /// By the ends of the tables' names.
    ByName(BTreeMap<String, Vec<u32>>),
}

impl TrainedTokens {
    fn read(value: &Value) -> Option<Self> {
        let list = |value: &Value| -> Option<Vec<u32>> {
            value
                .as_array()?
                .iter()
                .map(|token| token.as_u64().and_then(|token| u32::try_from(token).ok()))
                .collect()
        };
        match value {
            Value::Array(_) => list(value).map(Self::Embedding),
            Value::Object(map) => map
                .iter()
                .map(|(name, tokens)| Some((name.clone(), list(tokens)?)))
                .collect::<Option<_>>()
                .map(Self::ByName),
            _ => None,
        }
    }

    /// The tokens of the table `module`.
    pub fn of(&self, module: &str) -> Option<&[u32]> {
        match self {
            Self::Embedding(tokens) => Some(tokens),
            Self::ByName(map) => map
                .iter()
                .find(|(name, _)| is_end(module, name))
                .map(|(_, tokens)| tokens.as_slice()),
        }
    }
}

/// Keys that say nothing about the merged weights: how the adapter was trained or named, or what
/// its tensors say themselves.
///
/// `fan_in_fan_out` says how the model stores a weight, which the model itself knows; PEFT corrects
/// it too.
///
/// The configurations of ways to begin say something only where `init_lora_weights` names that way;
/// `velora_config` is of the backward pass.
const HARMLESS: [&str; 18] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "velora_config",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
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
const COMMON_KEYS: [&str; 12] = [
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
    "init_lora_weights",
    "trainable_token_indices",
];
/// How an adapter may have begun, for the base to be the checkpoint's own. Other ways take a part
/// out of the base, which PEFT does again whenever it loads the adapter.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];
const LORA_KEYS: [&str; 3] = ["r", "use_rslora", "use_dora"];
const DUAL_KEYS: [&str; 3] = ["r_magnitude", "r_direction", "scaling"];

/// Reads an adapter's configuration.
///
/// # Errors
/// [`PassError::Adapter`] with everything that isn't known or doesn't fit.
pub(super) fn read(adapter: &Adapter) -> Result<Config, PassError> {
    let mut reader = Reader {
        adapter,
        config: &adapter.config,
        problems: Vec::new(),
        unsupported: true,
    };
    let config = reader.read();
    refuse(&adapter.config_file, reader.problems, reader.unsupported).map(|()| config)
}

struct Reader<'a> {
    adapter: &'a Adapter,
    config: &'a Map<String, Value>,
    problems: Vec<String>,
    /// Whether all problems are things that dlc lacks.
    unsupported: bool,
}

impl<'a> Reader<'a> {
    fn read(&mut self) -> Config {
        let kind = match self.config.get("peft_type").and_then(Value::as_str) {
            Some("DUAL_LORA") => Kind::Dual,
            Some("LORA") => match (self.flag("use_dora"), self.flag("use_rslora")) {
                (true, rank_stabilized) => Kind::Dora { rank_stabilized },
                (false, true) => Kind::RsLora,
                (false, false) => Kind::Lora,
            },
            other => {
                self.problems.push(format!(
                    "peft_type {} is not known; there are LORA and DUAL_LORA",
                    other.unwrap_or("(none)")
                ));
                Kind::Lora
            }
        };
        let (known, rank_keys): (&[&str], &[&str]) = if kind == Kind::Dual {
            (&DUAL_KEYS, &["r_magnitude", "r_direction"])
        } else {
            (&LORA_KEYS, &["r"])
        };
        self.refuse_unknown(known);
        self.check_start();
        let biases = match self.typed("bias", "none, all or lora_only", |v| {
            v.as_str()
                .filter(|b| ["none", "all", "lora_only"].contains(b))
        }) {
            None | Some("none") => false,
            Some(_) => true,
        };
        let modules_to_save = self
            .typed("modules_to_save", "a list of names", names)
            .unwrap_or_default();
        let targets = Targets::read(self.config, &modules_to_save).unwrap_or_else(|problem| {
            self.wrong(problem);
            None
        });
        let tokens = self.typed(
            "trainable_token_indices",
            "a list of tokens, or an object of such lists",
            TrainedTokens::read,
        );
        let alphas = self.adapter.alphas.clone();
        let ranks: Vec<usize> = match &alphas {
            Some(_) => Vec::new(),
            None => rank_keys
                .iter()
                .filter_map(|key| self.required(key, "a whole number above 0", count))
                .collect(),
        };
        Config {
            kind,
            alpha: if alphas.is_some() {
                None
            } else {
                self.required("lora_alpha", "a number", number)
            }
            .unwrap_or(1.0),
            alpha_pattern: self.pattern("alpha_pattern", number),
            rank: ranks.first().copied().unwrap_or(0),
            rank_pattern: self.pattern("rank_pattern", count),
            scaling: if kind == Kind::Dual {
                self.typed("scaling", "a number", number)
            } else {
                None
            },
            targets,
            modules_to_save,
            biases,
            alphas,
            tokens,
        }
    }

    /// Refuses adapters that were trained on another base than the checkpoint.
    fn check_start(&mut self) {
        let plain = |v: &Value| {
            v.is_boolean()
                || v.as_str()
                    .is_some_and(|name| PLAIN_STARTS.contains(&name.to_lowercase().as_str()))
        };
        if let Some(start) = self.given("init_lora_weights").filter(|v| !plain(v)) {
            let start = shown(start);
            self.problems.push(format!(
                "init_lora_weights = {start} changes the base as well, which the checkpoint isn't; save the adapter as plain LoRA with PEFT's \
                 save_pretrained(path_initial_model_for_weight_conversion=...)"
            ));
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
            if !unused
                && ![known, &COMMON_KEYS, &HARMLESS]
                    .iter()
                    .any(|keys| keys.contains(&key.as_str()))
            {
                self.problems.push(format!(
                    "{key} = {} may change the result, and dlc doesn't know how",
                    shown(value)
                ));
            }
        }
    }

    /// Notes something that is wrong, rather than unknown.
    fn wrong(&mut self, problem: String) {
        self.unsupported = false;
        self.problems.push(problem);
    }

    /// What `key` says; null says nothing.
    fn given(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|v| !v.is_null())
    }

    /// What `key` says, if it says something; another type than `what` is noted.
    fn typed<T>(
        &mut self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.given(key)?;
        let read = read(value);
        if read.is_none() {
            self.wrong(format!("{key} must be {what}, and is {}", shown(value)));
        }
        read
    }

    fn required<T>(
        &mut self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        if self.given(key).is_none() {
            self.wrong(format!("{key} is missing; it must be {what}"));
        }
        self.typed(key, what, read)
    }

    fn flag(&mut self, key: &str) -> bool {
        self.typed(key, "true or false", Value::as_bool)
            .unwrap_or(false)
    }

    /// `{module pattern: value}`; patterns are matched as PEFT does, against the end of a module's
    /// name.
    fn pattern<T>(&mut self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Vec<(Pattern, T)> {
        let mut list = Vec::new();
        let Some(entries) = self.typed(key, "an object of patterns and numbers", Value::as_object)
        else {
            return list;
        };
        if entries.len() > MOST_ENTRIES {
            self.wrong(format!(
                "{key} has {} entries, more than any model has modules",
                entries.len()
            ));
            return list;
        }
        if let Some(problem) = too_many(entries.keys().map(String::as_str)) {
            self.wrong(format!("{key} {problem}"));
            return list;
        }
        for (pattern, value) in entries {
            if let (Some(pattern), Some(value)) = (Pattern::of_end(pattern), read(value)) {
                list.push((pattern, value));
            } else {
                let pattern: String = pattern.chars().take(60).collect();
                self.wrong(format!(
                    "{key}: {pattern} = {} is not a pattern with a number",
                    shown(value)
                ));
            }
        }
        list
    }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|n| n.is_finite())
}

fn count(value: &Value) -> Option<usize> {
    value
        .as_u64()
        .filter(|n| *n > 0)
        .and_then(|n| usize::try_from(n).ok())
}

/// Whether the parameter `name` is part of a module whose name ends with `entry`, after a dot or
/// not, as PEFT has it.
fn is_inside(name: &str, entry: &str) -> bool {
    name.match_indices('.')
        .any(|(at, _)| name[..at].ends_with(entry))
}

impl Config {
    /// The patterns that took too long to match, so that it isn't known what they fit.
    pub fn overran(&self) -> Vec<String> {
        let ours = self
            .alpha_pattern
            .iter()
            .map(|(pattern, _)| pattern)
            .chain(self.rank_pattern.iter().map(|(pattern, _)| pattern));
        let all = ours.chain(self.targets.iter().flat_map(Targets::patterns));
        all.filter_map(Pattern::overran)
            .map(|pattern| {
                format!(
                    "the pattern {} takes too long to match",
                    shown(&pattern.into())
                )
            })
            .collect()
    }

    /// Whether the parameter `name` is a bias and biases were trained.
    pub fn announces_bias(&self, name: &str) -> bool {
        self.biases && name.ends_with("bias")
    }

    /// Whether the parameter `name` is part of a module that was trained as a whole.
    pub fn saves(&self, name: &str) -> bool {
        self.modules_to_save
            .iter()
            .any(|entry| is_inside(name, entry))
    }

    /// Modules that were trained as a whole, that `model` has parameters of and `held` has none of.
    pub fn lost<'a>(&'a self, model: &[&str], held: &[&str]) -> Vec<&'a str> {
        let has = |names: &[&str], entry: &str| names.iter().any(|name| is_inside(name, entry));
        self.modules_to_save
            .iter()
            .map(String::as_str)
            .filter(|entry| has(model, entry) && !has(held, entry))
            .collect()
    }

    /// The factor of the change of `module`, whose adapter has these ranks.
    pub fn scaling(&self, module: &str, ranks: &[usize]) -> f64 {
        let rank = ranks.iter().map(|&r| r as f64).product::<f64>();
        let alpha = match &self.alphas {
            Some(alphas) => alphas.get(module).copied().unwrap_or(rank),
            None => self
                .alpha_pattern
                .iter()
                .find(|(p, _)| p.matches(module))
                .map_or(self.alpha, |(_, alpha)| *alpha),
        };
        match self.kind {
            Kind::Dual => self.scaling.unwrap_or(alpha / rank.sqrt()),
            Kind::RsLora
            | Kind::Dora {
                rank_stabilized: true,
            } => alpha / rank.sqrt(),
            Kind::Lora
            | Kind::Dora {
                rank_stabilized: false,
            } => alpha / rank,
        }
    }

    /// The rank that the configuration promises for `module`, if it does; not for Dual LoRA.
    pub fn rank(&self, module: &str) -> Option<usize> {
        let pattern = self.rank_pattern.iter().find(|(p, _)| p.matches(module));
        self.alphas
            .is_none()
            .then(|| pattern.map_or(self.rank, |(_, rank)| *rank))
    }
}
