//! The files beside `tokenizer.json`, which decides: what they say and nobody heeds.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::shown;
use super::files::{is_there, read_object};
use super::side_keys::SideKeys;

/// Largest file: those with many added tokens have a few hundred KB.
const CAP: u64 = 32 << 20;

pub(super) const CONFIG: (&str, SideKeys) = (
    "tokenizer_config.json",
    SideKeys {
        heeded: &[
            "add_bos_token",
            "add_eos_token",
            "add_prefix_space",
            "added_tokens_decoder",
            "chat_template",
            "clean_up_tokenization_spaces",
            "do_lower_case",
            "extra_ids",
            "extra_special_tokens",
            "fix_mistral_regex",
            "model_max_length",
            "split_special_tokens",
            "strip_accents",
            "tokenize_chinese_chars",
            "tokenizer_class",
            "truncation_side",
        ],
        // Names and versions, what tokenizer.json says itself, and how batches are padded and cut,
        // which dlc doesn't do for others.
        harmless: &[
            "_from_auto",
            "_name_or_path",
            "auto_map",
            "backend",
            "device",
            "do_basic_tokenize",
            "errors",
            "from_slow",
            "is_local",
            "keep_accents",
            "legacy",
            "local_files_only",
            "max_len",
            "max_length",
            "merges_file",
            "model_input_names",
            "name_or_path",
            "never_split",
            "pad_to_multiple_of",
            "pad_token_type_id",
            "padding",
            "padding_side",
            "processor_class",
            "sp_model_kwargs",
            "spaces_between_special_tokens",
            "special_tokens_map_file",
            "split_by_punct",
            "stride",
            "tokenizer_file",
            "tokenizer_type",
            "transformers_version",
            "trim_offsets",
            "truncation_strategy",
            "use_default_system_prompt",
            "use_fast",
            "vocab_file",
            "vocab_size",
            "vocab_type",
            "wordpieces_prefix",
        ],
        neutral: &[],
    },
);

pub(super) const MAP: (&str, SideKeys) = (
    "special_tokens_map.json",
    SideKeys {
        heeded: &[],
        harmless: &[],
        neutral: &[],
    },
);

pub(super) const ADDED: &str = "added_tokens.json";

/// The tokenizer itself.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Most tokens that a warning names.
const MOST_NAMED: usize = 12;

/// A line that names the tokens of `added_tokens.json` that the tokenizer doesn't have under their
/// ids. transformers adds them to it.
pub(super) fn foreign_tokens(folder: &Path, id: impl Fn(&str) -> Option<u32>) -> Option<String> {
    let path = folder.join(ADDED);
    let object = if is_there(&path) {
        read_object(&path, CAP).ok()?.0
    } else {
        return None;
    };
    let foreign: Vec<&String> = object
        .iter()
        .filter(|(token, wanted)| {
            wanted.as_u64().is_none() || id(token).map(u64::from) != wanted.as_u64()
        })
        .map(|(token, _)| token)
        .collect();
    let mut named: Vec<String> = foreign
        .iter()
        .take(MOST_NAMED)
        .map(|token| format!("`{}`", shown(token)))
        .collect();
    if foreign.len() > named.len() {
        named.push(format!("{} more", foreign.len() - named.len()));
    }
    (!named.is_empty()).then(|| {
        format!(
            "{ADDED}: not heeded, as tokenizer.json decides and doesn't have them so: {}",
            named.join(", ")
        )
    })
}

/// A line for each file in `folder` that says something else. Files that can't be read are other
/// warnings.
pub(super) fn warnings(folder: &Path) -> Vec<String> {
    let unheeded = |(name, keys): (&str, SideKeys)| {
        let path = folder.join(name);
        let object = if is_there(&path) {
            read_object(&path, CAP).ok()?.0
        } else {
            return None;
        };
        // Templates and tokenizers know special tokens by these names, whatever they are.
        let is_token = |key: &str| key.ends_with("_token") || key.ends_with("_tokens");
        let others: Map<String, Value> = object
            .into_iter()
            .filter(|(key, _)| !is_token(key))
            .collect();
        keys.warning(name, &others)
    };
    [CONFIG, MAP].into_iter().filter_map(unheeded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_tokens_that_the_tokenizer_has_otherwise_or_not_at_all_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let known = |token: &str| {
            [("<a>", 3), ("<b>", 4)]
                .iter()
                .find(|t| t.0 == token)
                .map(|t| t.1)
        };
        assert_eq!(foreign_tokens(folder.path(), known), None);
        let write = |text: &str| std::fs::write(folder.path().join(ADDED), text).unwrap();
        write(r#"{"<a>": 3, "<b>": 4}"#);
        assert_eq!(foreign_tokens(folder.path(), known), None);
        write(r#"{"<a>": 3, "<b>": 5, "<c>": 6}"#);
        let warning = foreign_tokens(folder.path(), known).unwrap();
        assert!(warning.ends_with(": `<b>`, `<c>`"), "{warning}");
    }

    #[test]
    fn keys_that_nobody_reads_are_named_and_special_tokens_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            CONFIG.0,
            r#"{"bos_token": "<s>", "image_token": "<i>", "padding_side": "left", "model_max_length": 512, "strange": 1}"#,
        );
        write(
            MAP.0,
            r#"{"eos_token": "</s>", "additional_special_tokens": ["a"], "odd": "x"}"#,
        );
        assert_eq!(
            warnings(folder.path()),
            [
                "tokenizer_config.json: not heeded: `strange`",
                "special_tokens_map.json: not heeded: `odd`"
            ]
        );
    }
}
