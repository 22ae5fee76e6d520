//! How a checkpoint says that it is quantised: the keys of `quantization_config`, which AutoGPTQ and
//! AutoAWQ also wrote into files of their own.

use dlc_errors::printable::shown;
use serde_json::{Map, Value};

/// How matrices are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Gptq,
    Awq,
}

impl Method {
    /// What people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gptq => "GPTQ",
            Self::Awq => "AWQ",
        }
    }

    /// The method that a value of `quant_method` names.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "gptq" => Some(Self::Gptq),
            "awq" => Some(Self::Awq),
            _ => None,
        }
    }
}

/// What matrices are packed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scheme {
    pub(super) method: Method,
    /// Bits of a code.
    pub(super) bits: usize,
    /// Inputs of a group; all of them if none.
    pub(super) group_size: Option<usize>,
    /// Whether zero points are stored less 1.
    pub(super) less_one: bool,
}

/// What else a configuration says.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Modules that it says were left as they were.
    pub(super) left_plain: Vec<String>,
    /// Keys that mean nothing to dlc.
    pub(super) unknown: Vec<String>,
    /// What dlc can't follow.
    pub(super) problems: Vec<String>,
}

/// The names of the key for bits.
const BITS: [&str; 3] = ["bits", "w_bit", "wbits"];

/// Keys that say how the codes were found or which kernels run them, and nothing of what they mean.
const HARMLESS: &[&str] = &[
    "_load_in_4bit",
    "_load_in_8bit",
    "act_group_aware",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "calib_data",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "desc_act",
    "disable_exllama",
    "do_fuse",
    "exllama_config",
    "fuse_max_seq_len",
    "hyb_act",
    "lm_head",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "modules_to_fuse",
    "mse",
    "pad_token_id",
    "parallel_packing",
    "quantizer",
    "static_groups",
    "sym",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
];

/// Reads a configuration of `method`, whose keys messages put `prefix` before; none if it can't be
/// followed, for which there are problems.
pub(super) fn read(
    method: Method,
    config: &Map<String, Value>,
    prefix: &str,
) -> (Option<Scheme>, Said) {
    let mut keys = Keys {
        config,
        prefix,
        asked: vec!["quant_method", "method"],
        said: Said::default(),
    };
    keys.refuse_others();
    let bits = keys.number(&BITS);
    let group_size = keys.number(&["group_size", "q_group_size"]).unwrap_or(128);
    let scheme = match method {
        Method::Gptq => keys.gptq(bits),
        Method::Awq => Some(keys.awq(bits.unwrap_or(4))),
    };
    let group_size = match group_size {
        -1 => Some(None),
        size => usize::try_from(size).ok().filter(|n| *n > 0).map(Some),
    };
    if group_size.is_none() {
        keys.problem("group_size", "it must be -1 or a number above 0");
    }
    keys.judge_unasked();
    let sound = keys.said.problems.is_empty();
    let scheme = scheme.zip(group_size).filter(|_| sound);
    let scheme = scheme.map(|((bits, less_one), group_size)| Scheme {
        method,
        bits,
        group_size,
        less_one,
    });
    (scheme, keys.said)
}

struct Keys<'a> {
    config: &'a Map<String, Value>,
    prefix: &'a str,
    asked: Vec<&'static str>,
    said: Said,
}

impl<'a> Keys<'a> {
    /// The value of a key that isn't null.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// `key` is its value, which ...
    fn problem(&mut self, key: &str, problem: &str) {
        let value = self.config.get(key).unwrap_or(&Value::Null);
        let value = shown(&value.to_string());
        let problem = format!("`{}{key}` is {value}; {problem}", self.prefix);
        self.said.problems.push(problem);
    }

    /// A whole number under one of several names, which agree if there are more.
    fn number(&mut self, names: &[&'static str]) -> Option<i64> {
        let mut found = None;
        for &name in names {
            let Some(value) = self.get(name) else {
                continue;
            };
            match (value.as_i64(), found) {
                (None, _) => self.problem(name, "it must be a whole number"),
                (Some(number), Some(other)) if number != other => {
                    self.problem(name, &format!("`{}` says {other}", names[0]));
                }
                (Some(number), _) => found = Some(number),
            }
        }
        found
    }

    /// A name under one of several keys, in lower case; the names agree if there are more.
    fn name(&mut self, keys: &[&'static str]) -> Option<String> {
        let mut found: Option<String> = None;
        for &key in keys {
            let Some(value) = self.get(key) else {
                continue;
            };
            let name = value.as_str().map(str::to_ascii_lowercase);
            match (name, &found) {
                (None, _) => self.problem(key, "it must be a name"),
                (Some(name), Some(other)) if name != *other => {
                    let other = format!("`{}` says {}", keys[0], shown(other));
                    self.problem(key, &other);
                }
                (Some(name), _) => found = Some(name),
            }
        }
        found
    }

    /// Whether a key has another value than those that change nothing.
    fn refuse_unless(
        &mut self,
        key: &'static str,
        harmless: impl Fn(&Value) -> bool,
        problem: &str,
    ) {
        if self.get(key).is_some_and(|value| !harmless(value)) {
            self.problem(key, problem);
        }
    }

    /// The first of several keys that the configuration has.
    fn written(&self, keys: &[&'static str]) -> &'static str {
        let mut written = keys.iter().filter(|key| self.config.contains_key(**key));
        written.next().or(keys.first()).copied().unwrap_or_default()
    }

    /// Refuses what no layout that dlc reads has.
    fn refuse_others(&mut self) {
        let off = |value: &Value| {
            matches!(value, Value::Bool(false))
                || value.as_object().is_some_and(Map::is_empty)
                || value.as_str().is_some_and(str::is_empty)
        };
        let left_plain = |value: &Value| {
            let rules = value.as_object();
            rules.is_some_and(|rules| rules.keys().all(|rule| rule.starts_with("-:")))
        };
        self.refuse_unless("is_marlin_format", off, "dlc can't read Marlin's layout");
        self.refuse_unless(
            "pack_dtype",
            |value| value == "int32",
            "dlc reads codes in int32",
        );
        self.refuse_unless("rotation", off, "dlc can't rotate inputs");
        self.refuse_unless(
            "adapter",
            off,
            "dlc reads no adapter inside of a quantised checkpoint. Save it by itself and name it with `--adapter`",
        );
        self.refuse_unless("activation", off, "dlc can't quantise activations");
        self.refuse_unless(
            "dynamic",
            left_plain,
            "of rules for single modules dlc follows those that leave them as they were (`-:`), not other bits or groups",
        );
    }

    /// Bits, and whether zero points are stored less 1.
    fn gptq(&mut self, bits: Option<i64>) -> Option<(usize, bool)> {
        const FORMAT: [&str; 2] = ["checkpoint_format", "format"];
        let less_one = match self.name(&FORMAT).as_deref() {
            None | Some("gptq") => Some(true),
            Some("gptq_v2") => Some(false),
            Some(_) => {
                let problem = "dlc reads the layouts gptq and gptq_v2 of GPTQ";
                self.problem(self.written(&FORMAT), problem);
                None
            }
        };
        let key = self.written(&BITS);
        let is_written = self.config.get(key).is_some_and(|value| !value.is_null());
        let known = bits.and_then(|bits| usize::try_from(bits).ok());
        let known = known.filter(|bits| matches!(bits, 2 | 3 | 4 | 8));
        if known.is_none() && (bits.is_some() || !is_written) {
            self.problem(key, "dlc reads codes of 2, 3, 4 and 8 bits of GPTQ");
        }
        known.zip(less_one)
    }

    /// As [`gptq`](Self::gptq).
    fn awq(&mut self, bits: i64) -> (usize, bool) {
        const FORMAT: [&str; 3] = ["version", "format", "checkpoint_format"];
        if self.name(&FORMAT).is_some_and(|version| version != "gemm") {
            let problem = "dlc reads the layout gemm of AWQ";
            self.problem(self.written(&FORMAT), problem);
        }
        self.refuse_unless(
            "zero_point",
            |value| *value == Value::Bool(true),
            "the layout gemm has zero points",
        );
        self.refuse_unless(
            "backend",
            |value| value != "llm-awq",
            "dlc reads AutoAWQ's layout gemm",
        );
        if bits != 4 {
            let problem = "the layout gemm has codes of 4 bits";
            self.problem(self.written(&BITS), problem);
        }
        match self.get("modules_to_not_convert") {
            None => {}
            Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
                let names = names.iter().filter_map(Value::as_str).map(str::to_owned);
                self.said.left_plain.extend(names);
            }
            Some(_) => self.problem("modules_to_not_convert", "it must be a list of names"),
        }
        (4, false)
    }

    fn judge_unasked(&mut self) {
        let unknown = self.config.iter().filter(|(key, value)| {
            let key = key.as_str();
            !self.asked.contains(&key) && !HARMLESS.contains(&key) && !value.is_null()
        });
        self.said.unknown.extend(unknown.map(|(key, _)| shown(key)));
    }
}
