//! The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Two kinds of tokenizers are known: byte-level BPE (`gpt2`) and `SentencePiece`'s BPE (`llama`).
//! Others are refused by name.

mod byte_level;
mod pieces;
mod pre;
mod vocabulary;

use dlc_errors::printable::shown;
use dlc_tokenizer::parts;
use serde_json::{Map, Value as Json};

use crate::keys::Keys;
use vocabulary::Vocabulary;

/// What a tokenizer's files say.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`, with the chat template.
    pub config: Map<String, Json>,
    /// Id of the token that texts begin with.
    pub bos: Option<u32>,
    /// Id of the token that fills up batches.
    pub pad: Option<u32>,
    /// Ids of the tokens that end a text, the usual one first.
    pub ends: Vec<u32>,
    /// How many tokens there are.
    pub tokens: usize,
}

/// Names of tokens that llama.cpp takes for the end of a turn whatever the file's keys say.
const ENDS_OF_TURNS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"];

/// Special tokens that have no part in generating text: infilling, classification.
const OTHER_TOKENS: [&str; 16] = [
    "seperator",
    "cls",
    "mask",
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
    "prefix",
    "suffix",
    "middle",
    "eot",
    "eom",
    "padding",
    "unknown",
];

/// The tokenizer, if the file has one; what can't be followed goes to the problems of `keys`.
pub(crate) fn read(keys: &mut Keys<'_>) -> Option<TokenizerFiles> {
    let model = keys.text("tokenizer.ggml.model");
    let kind = match model {
        None | Some("none" | "no_vocab") => {
            keys.notes.push("the file has no tokenizer".into());
            return None;
        }
        Some("gpt2") => Kind::ByteLevel(pre::read(keys)?),
        Some("llama") => Kind::Pieces,
        Some(other) => {
            keys.problems.push(format!(
                "key `tokenizer.ggml.model` is \"{}\"; dlc knows the tokenizers gpt2 (byte-level BPE) and llama (SentencePiece's BPE)",
                shown(other)
            ));
            return None;
        }
    };
    let vocabulary = Vocabulary::read(keys)?;
    let special = Special::read(keys, &kind, &vocabulary);
    let tokenizer = match &kind {
        Kind::ByteLevel(pre) => byte_level::tokenizer(keys, &vocabulary, pre, &special)?,
        Kind::Pieces => pieces::tokenizer(keys, &vocabulary, &special)?,
    };
    Some(TokenizerFiles {
        tokenizer,
        config: configuration(keys, &vocabulary, &special),
        bos: special.bos,
        pad: special.pad,
        ends: special.ends,
        tokens: vocabulary.tokens.len(),
    })
}

/// The kind of a tokenizer.
enum Kind {
    ByteLevel(&'static pre::Pre),
    Pieces,
}

/// The special tokens and where they are put.
#[derive(Debug)]
struct Special {
    bos: Option<u32>,
    pad: Option<u32>,
    unknown: Option<u32>,
    ends: Vec<u32>,
    /// Whether texts begin with `bos`.
    add_bos: bool,
    /// Whether texts end with the first of `ends`.
    add_eos: bool,
}

impl Special {
    /// What the keys say; what they leave out is as llama.cpp has it.
    fn read(keys: &mut Keys<'_>, kind: &Kind, vocabulary: &Vocabulary<'_>) -> Self {
        let id = |keys: &mut Keys<'_>, name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = keys.size(&key)?;
            if id >= vocabulary.tokens.len() {
                keys.problems
                    .push(format!("key `{key}` is {id}, and there is no such token"));
                return None;
            }
            u32::try_from(id).ok()
        };
        let pieces = matches!(kind, Kind::Pieces);
        let usual = |n: usize| (pieces && n < vocabulary.tokens.len()).then_some(n as u32);
        let bos = id(keys, "bos").or(usual(1));
        let mut ends: Vec<u32> = Vec::new();
        let named = ENDS_OF_TURNS
            .iter()
            .filter_map(|name| vocabulary.control(name));
        let told = [
            id(keys, "eos").or(usual(2)),
            id(keys, "eot"),
            id(keys, "eom"),
        ];
        for end in told.into_iter().flatten().chain(named) {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        for name in OTHER_TOKENS {
            id(keys, name);
        }
        let flag = |keys: &mut Keys<'_>, name: &str, usual: bool| {
            keys.flag(&format!("tokenizer.ggml.{name}"))
                .unwrap_or(usual)
        };
        let begins = match kind {
            Kind::ByteLevel(pre) => pre.adds_bos,
            Kind::Pieces => true,
        };
        let special = Self {
            bos,
            pad: id(keys, "padding"),
            unknown: id(keys, "unknown").or(usual(0)),
            ends,
            add_bos: flag(keys, "add_bos_token", begins),
            add_eos: flag(keys, "add_eos_token", false),
        };
        if flag(keys, "add_sep_token", false) {
            keys.problems.push(
                "key `tokenizer.ggml.add_sep_token` is true, which dlc doesn't follow".into(),
            );
        }
        for (wanted, id, name) in [
            (special.add_bos, special.bos, "bos"),
            (special.add_eos, special.ends.first().copied(), "eos"),
        ] {
            if wanted && id.is_none() {
                keys.problems.push(format!(
                    "texts get a token `{name}`, and key `tokenizer.ggml.{name}_token_id` is missing"
                ));
            }
        }
        special
    }

    /// What puts the special tokens around a text (`post_processor` of `tokenizer.json`).
    fn template(&self, vocabulary: &Vocabulary<'_>) -> Json {
        let token = |wanted: bool, id: Option<u32>| {
            let id = id.filter(|_| wanted)?;
            Some((vocabulary.tokens.get(id as usize)?.text, id))
        };
        let bos = token(self.add_bos, self.bos);
        let eos = token(self.add_eos, self.ends.first().copied());
        parts::edges(bos, eos)
    }
}

fn configuration(
    keys: &mut Keys<'_>,
    vocabulary: &Vocabulary<'_>,
    special: &Special,
) -> Map<String, Json> {
    let mut config = Map::new();
    let mut put = |key: &str, value: Json| _ = config.insert(key.to_owned(), value);
    put("tokenizer_class", "PreTrainedTokenizerFast".into());
    put("clean_up_tokenization_spaces", false.into());
    put("add_prefix_space", false.into());
    for (key, id) in [
        ("bos_token", special.bos),
        ("eos_token", special.ends.first().copied()),
        ("pad_token", special.pad),
        ("unk_token", special.unknown),
    ] {
        if let Some(token) = id.and_then(|id| vocabulary.tokens.get(id as usize)) {
            put(key, token.text.into());
        }
    }
    let decoder: Map<String, Json> = vocabulary
        .added()
        .into_iter()
        .filter_map(|token| {
            let Json::Object(mut token) = token else {
                return None;
            };
            let id = token.shift_remove("id")?;
            Some((id.to_string(), token.into()))
        })
        .collect();
    put("added_tokens_decoder", decoder.into());
    if let Some(template) = keys.text("tokenizer.chat_template") {
        put("chat_template", template.into());
    }
    let key = keys.full("context_length");
    if let Some(length) = keys.size(&key) {
        put("model_max_length", length.into());
    }
    config
}
