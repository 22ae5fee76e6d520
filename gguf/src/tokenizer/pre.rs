//! How texts are split before byte-level BPE: the kinds that `tokenizer.ggml.pre` names.
//!
//! Each is as `tokenizer.json` of the models has it that the kind is named after; llama.cpp's own
//! patterns (`llm_tokenizer_bpe` in `llama-vocab.cpp`) split the same way.

use dlc_errors::printable::shown;
use dlc_tokenizer::parts::{self, QWEN_2};
use serde_json::{Value as Json, json};

use crate::keys::Keys;

const KEY: &str = "tokenizer.ggml.pre";

/// A kind of splitting.
#[derive(Debug)]
pub(super) struct Pre {
    /// Its names in files.
    names: &'static [&'static str],
    /// What is split off, pattern by pattern, each in what the ones before left.
    splits: &'static [&'static str],
    /// Whether GPT-2's own pattern comes last, which `ByteLevel` has built in.
    gpt2: bool,
    /// Whether texts are brought into Unicode's form C first. llama.cpp leaves that out.
    pub nfc: bool,
    /// Whether a word that is a token stays whole whatever the merges say.
    pub ignore_merges: bool,
    /// Whether texts begin with a special token if the file doesn't say it.
    pub adds_bos: bool,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's form of GPT-2's pattern, whose last alternative, `\s+`, it lacks: what no
/// alternative finds is a piece of its own.
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

static KINDS: [Pre; 5] = [
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        splits: &[LLAMA_3],
        gpt2: false,
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    Pre {
        names: &["qwen2"],
        splits: &[QWEN_2],
        gpt2: false,
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    Pre {
        names: &["smollm"],
        splits: &[r"\p{N}"],
        gpt2: true,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Pre {
        names: &["gpt-2"],
        splits: &[],
        gpt2: true,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Pre {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"],
        gpt2: false,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
];

/// The kind that the file names; llama.cpp takes `default` where it names none.
pub(super) fn read(keys: &mut Keys<'_>) -> Option<&'static Pre> {
    let name = keys.text(KEY).unwrap_or("default");
    let found = KINDS.iter().find(|pre| pre.names.contains(&name));
    if found.is_none() {
        let known: Vec<&str> = KINDS
            .iter()
            .filter_map(|p| p.names.first().copied())
            .collect();
        keys.problems.push(format!(
            "key `{KEY}` is \"{}\"; dlc knows {}",
            shown(name),
            known.join(", ")
        ));
    }
    found
}

impl Pre {
    /// `pre_tokenizer` of `tokenizer.json`.
    pub fn pre_tokenizer(&self) -> Json {
        let splits = self.splits.iter().map(|pattern| parts::split(pattern));
        let bytes = parts::byte_level(false, self.gpt2);
        parts::sequence("pretokenizers", splits.chain([bytes]).collect())
    }

    /// `normalizer` of `tokenizer.json`.
    pub fn normalizer(&self) -> Json {
        if self.nfc {
            json!({"type": "NFC"})
        } else {
            Json::Null
        }
    }
}
