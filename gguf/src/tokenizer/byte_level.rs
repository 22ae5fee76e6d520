//! Byte-level BPE (`tokenizer.ggml.model` is `gpt2`).

use dlc_tokenizer::parts::{self, Tokenizer};
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
    let tokenizer = Tokenizer {
        added_tokens: vocabulary.added(),
        normalizer: pre.normalizer(),
        pre_tokenizer: pre.pre_tokenizer(),
        post_processor: special.template(vocabulary),
        decoder: parts::byte_level(true, true),
        model: parts::byte_level_model(vocabulary.table(), merges, pre.ignore_merges),
    };
    Some(tokenizer.into_json())
}

/// Pairs of tokens, in the order in which they are merged.
fn merges(keys: &mut Keys<'_>, vocabulary: &Vocabulary<'_>) -> Option<Vec<Json>> {
    let Some(texts) = keys.array(MERGES) else {
        keys.problems.push(format!("key `{MERGES}` is missing"));
        return None;
    };
    let mut merges = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let known = |token: &str| vocabulary.id(token).is_some();
        let pair = text.text().and_then(|text| parts::pair_of(text, known));
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
