//! The special tokens that chat templates know by name and that tokenizers don't split, as
//! transformers gathers them: from `tokenizer_config.json`, from `special_tokens_map.json`, and
//! from the defaults of the tokenizer's class. A token that a file sets to null is none; one that
//! no file names has its class's default.
//!
//! Follows transformers 5: `AutoTokenizer.from_pretrained` and
//! `PreTrainedTokenizerBase._from_pretrained`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The names that every tokenizer knows, in the order of [`DEFAULTS`].
pub(crate) const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The files beside a tokenizer's vocabulary, as far as they are there.
#[derive(Debug, Default)]
pub struct TokenizerFiles {
    /// `config.json`.
    pub model: Map<String, Value>,
    /// `tokenizer_config.json`.
    pub config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub map: Map<String, Value>,
}

impl TokenizerFiles {
    /// Names and texts of the special tokens; `byte_level` says whether `tokenizer.json` works on
    /// bytes.
    pub fn named(&self, byte_level: impl FnOnce() -> bool) -> BTreeMap<String, String> {
        special_tokens(self, class(self, byte_level).as_deref())
    }

    /// What the files say of special tokens and more, by name.
    pub(crate) fn given(&self) -> Map<String, Value> {
        let mut given = self.config.clone();
        // Newer files say everything in one place, with the tokens that were added.
        if !self.config.contains_key("added_tokens_decoder") {
            given.extend(self.map.clone());
        }
        given
    }

    /// The texts of special tokens without a name.
    pub fn nameless(&self) -> Vec<String> {
        let listed = ["extra_special_tokens", "additional_special_tokens"]
            .into_iter()
            .flat_map(|key| [self.config.get(key), self.map.get(key)]);
        let listed = listed.flatten().filter_map(Value::as_array).flatten();
        let added = self
            .config
            .get("added_tokens_decoder")
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::values);
        listed
            .chain(added.filter(|token| token["special"] == true))
            .filter_map(text)
            .collect()
    }

    /// Whether special tokens in a text are read as text.
    pub fn splits_special(&self) -> bool {
        self.config.get("split_special_tokens") == Some(&Value::Bool(true))
    }

    /// The class that the files declare, without the ending of fast ones.
    pub(crate) fn declared(&self) -> Option<&str> {
        [&self.config, &self.model].into_iter().find_map(|object| {
            let name = object.get("tokenizer_class")?.as_str()?;
            Some(name.strip_suffix("Fast").unwrap_or(name))
        })
    }

    /// `model_type`; empty where there is none.
    pub(crate) fn model_type(&self) -> &str {
        let found = self.model.get("model_type").and_then(Value::as_str);
        found.unwrap_or_default()
    }
}

/// Names and texts of the special tokens of a tokenizer of the class.
pub(crate) fn special_tokens(
    files: &TokenizerFiles,
    class: Option<&str>,
) -> BTreeMap<String, String> {
    let given = files.given();
    let mut tokens: BTreeMap<String, String> = class.into_iter().flat_map(defaults).collect();
    for (name, value) in &given {
        let known = NAMES.contains(&name.as_str());
        match text(value) {
            Some(text) if name.ends_with("_token") => drop(tokens.insert(name.clone(), text)),
            None if known => drop(tokens.remove(name)),
            _ => {}
        }
    }
    let named = |key: &str| given.get(key).and_then(Value::as_object);
    let extra = named("extra_special_tokens").or_else(|| named("additional_special_tokens"));
    tokens.extend(
        extra
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), text(value)?))),
    );
    tokens
}

/// The text of a token that is written as it is or with its settings.
pub(crate) fn text(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token.get("content")?.as_str())
        .map(str::to_owned)
}

/// The tokenizer's class, where it is one with defaults.
fn class(files: &TokenizerFiles, byte_level: impl FnOnce() -> bool) -> Option<String> {
    let model_type = files.model_type();
    let registered = registered(model_type);
    let wrongly_declared = WRONGLY_DECLARED.contains(&model_type);
    match (files.declared().map(str::to_owned), registered) {
        (Some(declared), registered)
            if declared == LLAMA
                && registered != Some(GENERIC)
                && !wrongly_declared
                && byte_level() =>
        {
            None
        }
        (None, registered) => registered.map(str::to_owned),
        (Some(declared), Some(registered)) if declared == registered => Some(declared),
        (Some(_), Some(GENERIC)) => None,
        (Some(_), Some(registered)) if wrongly_declared => Some(registered.to_owned()),
        (Some(declared), _) => Some(declared),
    }
}

/// The class that transformers registers for a type of models.
pub(crate) fn registered(model_type: &str) -> Option<&'static str> {
    let found = REGISTERED
        .iter()
        .find(|(types, _)| types.contains(&model_type));
    found.map(|(_, class)| *class)
}

const LLAMA: &str = "LlamaTokenizer";
/// The class of models whose files say everything.
const GENERIC: &str = "TokenizersBackend";

/// The class that transformers registers for types of models; others go by what their files
/// declare.
const REGISTERED: &[(&[&str], &str)] = &[
    (
        &[
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_next",
            "qwen3_vl",
        ],
        "Qwen2Tokenizer",
    ),
    (
        &[
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n_text",
            "recurrent_gemma",
            "t5gemma",
        ],
        "GemmaTokenizer",
    ),
    (
        &[
            "gpt2",
            "gpt_neo",
            "gptj",
            "codegen",
            "opt",
            "phi",
            "starcoder2",
            "dbrx",
        ],
        "GPT2Tokenizer",
    ),
    (
        &[
            "gpt_neox",
            "falcon_mamba",
            "mamba",
            "mamba2",
            "mpt",
            "olmo",
            "olmoe",
            "rwkv",
        ],
        "GPTNeoXTokenizer",
    ),
    (
        &[
            "bert",
            "distilbert",
            "electra",
            "convbert",
            "layoutlm",
            "megatron-bert",
            "nomic_bert",
            "squeezebert",
        ],
        "BertTokenizer",
    ),
    (
        &[
            "roberta",
            "roberta-prelayernorm",
            "longformer",
            "data2vec-text",
            "ibert",
            "bart",
        ],
        "RobertaTokenizer",
    ),
    (
        &["xlm-roberta", "xmod", "gte", "jina_embeddings_v3"],
        "XLMRobertaTokenizer",
    ),
    (&["clip"], "CLIPTokenizer"),
    (&["deberta"], "DebertaTokenizer"),
    (&["deberta-v2"], "DebertaV2Tokenizer"),
    (&["t5", "mt5", "switch_transformers"], "T5Tokenizer"),
    (&["albert", "yoso"], "AlbertTokenizer"),
    (&["camembert"], "CamembertTokenizer"),
    (&["mpnet"], "MPNetTokenizer"),
    (&["code_llama"], "CodeLlamaTokenizer"),
    (&["cohere", "cohere2", "aya_vision"], "CohereTokenizer"),
    (&["openai-gpt"], "OpenAIGPTTokenizer"),
    (
        &[
            "mistral",
            "mistral3",
            "mixtral",
            "ministral",
            "ministral3",
            "pixtral",
            "phi3",
            "phi3_v",
            "phimoe",
            "granite",
            "granitemoe",
            "granitemoehybrid",
            "granitemoeshared",
            "glm",
            "glm4",
            "olmo2",
            "olmo3",
            "stablelm",
            "gpt_bigcode",
            "persimmon",
            "modernbert",
            "smolvlm",
            "internlm2",
            "minicpm3",
            "nemotron",
            "jamba",
            "llava",
            "ernie4_5",
            "xlm-roberta-xl",
            "umt5",
        ],
        GENERIC,
    ),
];

/// Types of models whose files often declare another class than theirs; the registered one counts.
const WRONGLY_DECLARED: &[&str] = &[
    "qwen2",
    "phi3",
    "phi3_v",
    "phimoe",
    "modernbert",
    "nemotron",
    "internlm2",
    "minicpm3",
    "jamba",
    "llava",
    "smolvlm",
    "ernie4_5",
];

/// The tokens that classes have by default, in the order of [`NAMES`]; an empty text is none.
const DEFAULTS: &[(&[&str], [&str; 7])] = &[
    (
        &[LLAMA, "CodeLlamaTokenizer"],
        ["<s>", "</s>", "<unk>", "", "", "", ""],
    ),
    (
        &["GPT2Tokenizer", "CodeGenTokenizer", "WhisperTokenizer"],
        [END, END, END, "", "", "", ""],
    ),
    (&["Qwen2Tokenizer"], ["", END, END, "", END, "", ""]),
    (
        &["CLIPTokenizer"],
        ["<|startoftext|>", END, END, "", END, "", ""],
    ),
    (
        &["GPTNeoXTokenizer"],
        [END, END, END, "", "<|padding|>", "", ""],
    ),
    (
        &["GemmaTokenizer"],
        ["<bos>", "<eos>", "<unk>", "", "<pad>", "", "<mask>"],
    ),
    (
        &["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"],
        ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
    ),
    (
        &[
            "RobertaTokenizer",
            "XLMRobertaTokenizer",
            "BartTokenizer",
            "LongformerTokenizer",
            "CamembertTokenizer",
            "BarthezTokenizer",
        ],
        ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"],
    ),
    (
        &["MPNetTokenizer"],
        ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"],
    ),
    (
        &["DebertaTokenizer", "DebertaV2Tokenizer"],
        [
            "[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]",
        ],
    ),
    (
        &["AlbertTokenizer", "RemBertTokenizer"],
        [
            "[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]",
        ],
    ),
    (&["T5Tokenizer"], ["", "</s>", "<unk>", "", "<pad>", "", ""]),
    (
        &["CohereTokenizer"],
        [
            "<BOS_TOKEN>",
            "<|END_OF_TURN_TOKEN|>",
            "<UNK>",
            "<SEP>",
            "<PAD>",
            "<CLS>",
            "<MASK_TOKEN>",
        ],
    ),
    (&["OpenAIGPTTokenizer"], ["", "", "<unk>", "", "", "", ""]),
];

const END: &str = "<|endoftext|>";

/// The tokens of Code Llama that mark what is to be filled in.
const INFILLING: [(&str, &str); 5] = [
    ("prefix_token", "▁<PRE>"),
    ("middle_token", "▁<MID>"),
    ("suffix_token", "▁<SUF>"),
    ("eot_token", "▁<EOT>"),
    ("fill_token", "<FILL_ME>"),
];

fn defaults(class: &str) -> Vec<(String, String)> {
    let tokens = DEFAULTS
        .iter()
        .find(|(classes, _)| classes.contains(&class))
        .map_or([""; 7], |(_, tokens)| *tokens);
    let infilling = INFILLING
        .into_iter()
        .filter(|_| class == "CodeLlamaTokenizer");
    let named = NAMES
        .into_iter()
        .zip(tokens)
        .filter(|(_, token)| !token.is_empty());
    named
        .chain(infilling)
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .collect()
}
