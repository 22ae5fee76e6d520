//! Byte-level BPE (`tokenizer.ggml.model` is `gpt2`).

use serde_json::{Value as Json, json};

use super::Special;
use super::pre::Pre;
use super::vocabulary::Vocabulary;
use crate::keys::Keys;

const MERGES: &str = "tokenizer.ggml.merges";

/// `tokenizer.json`.
pub(super) fn tokenizer(
    keys: &mut Keys<'_>,
    vocabulary: &Vocabulary<'_>,
    pre: &Pre,
    special: &Special,
) -> Option<Json> {
    if keys.flag("tokenizer.ggml.add_space_prefix") == Some(true) {
        keys.problems.push(
            "key `tokenizer.ggml.add_space_prefix` is true, which byte-level BPE doesn't know"
                .into(),
        );
    }
    // A table of zeros in some files; nothing reads it.
    keys.get("tokenizer.ggml.scores");
    let merges = merges(keys, vocabulary)?;
    Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.pre_tokenizer(),
        "post_processor": special.template(vocabulary),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary.table(),
            "merges": merges,
        },
    }))
}

/// Pairs of tokens, in the order in which they are merged.
fn merges(keys: &mut Keys<'_>, vocabulary: &Vocabulary<'_>) -> Option<Vec<Json>> {
    let Some(texts) = keys.array(MERGES) else {
        keys.problems.push(format!("key `{MERGES}` is missing"));
        return None;
    };
    let mut merges = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let pair = text.text().and_then(|text| pair(text, vocabulary));
        let Some((left, right)) = pair else {
            keys.problems.push(format!(
                "merge {number} isn't two tokens that make a third one"
            ));
            return None;
        };
        merges.push(json!([left, right]));
    }
    Some(merges)
}

fn pair<'t>(text: &'t str, vocabulary: &Vocabulary<'_>) -> Option<(&'t str, &'t str)> {
    let (left, right) = text.split_once(' ')?;
    let known = |text: &str| vocabulary.id(text).is_some();
    (known(left) && known(right) && known(&[left, right].concat())).then_some((left, right))
}
