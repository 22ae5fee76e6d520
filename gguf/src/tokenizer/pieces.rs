//! `SentencePiece`'s BPE (`tokenizer.ggml.model` is `llama`): pieces with scores, of which merges
//! are made as for models of `SentencePiece`.

use dlc_tokenizer::parts::{self, Tokenizer};
use serde_json::Value as Json;

use super::Special;
use super::vocabulary::{TokenType, Vocabulary};
use crate::keys::Keys;

const SCORES: &str = "tokenizer.ggml.scores";
/// `tokenizer.json`.
pub(super) fn tokenizer(
    keys: &mut Keys<'_>,
    vocabulary: &Vocabulary<'_>,
    special: &Special,
) -> Option<Json> {
    let prefix = keys.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    for (key, usual) in [
        ("tokenizer.ggml.remove_extra_whitespaces", false),
        ("tokenizer.ggml.escape_whitespaces", true),
    ] {
        if keys.flag(key).is_some_and(|flag| flag != usual) {
            keys.problems.push(format!(
                "key `{key}` is {}, which dlc doesn't follow",
                !usual
            ));
        }
    }
    if keys
        .array("tokenizer.ggml.precompiled_charsmap")
        .is_some_and(|map| !map.is_empty())
    {
        keys.problems.push(
            "key `tokenizer.ggml.precompiled_charsmap` rewrites characters, which dlc doesn't follow"
                .into(),
        );
    }
    // Some files carry those of another tokenizer; llama.cpp reads scores alone.
    keys.get("tokenizer.ggml.merges");
    keys.get("tokenizer.ggml.pre");
    let scores = scores(keys, vocabulary)?;
    let merges = merges(keys, vocabulary, &scores)?;
    let unknown = special
        .unknown
        .and_then(|id| vocabulary.tokens.get(id as usize))
        .map(|token| token.text);
    let bytes = (0..=255u8).all(|byte| vocabulary.id(&format!("<0x{byte:02X}>")).is_some());
    let tokenizer = Tokenizer {
        added_tokens: vocabulary.added(),
        normalizer: parts::piece_normalizer(prefix),
        pre_tokenizer: Json::Null,
        post_processor: special.template(vocabulary),
        decoder: parts::piece_decoder(prefix),
        model: parts::piece_model(vocabulary.table(), merges, unknown, bytes),
    };
    Some(tokenizer.into_json())
}

/// The score of each token.
fn scores(keys: &mut Keys<'_>, vocabulary: &Vocabulary<'_>) -> Option<Vec<f64>> {
    let scores: Option<Vec<f64>> = keys.array(SCORES).and_then(|scores| {
        let finite = |value: crate::metadata::Value<'_>| value.number().filter(|x| x.is_finite());
        scores.iter().map(finite).collect()
    });
    let scores = scores.filter(|scores| scores.len() == vocabulary.tokens.len());
    if scores.is_none() {
        keys.problems
            .push(format!("key `{SCORES}` isn't one finite number a token"));
    }
    scores
}

/// The merges of the normal pieces.
fn merges(keys: &mut Keys<'_>, vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Option<Vec<Json>> {
    let is_normal = |id: u32| {
        let token = vocabulary.tokens.get(id as usize);
        token.is_some_and(|token| token.kind == TokenType::Normal)
    };
    let normal = vocabulary.used().filter(|(id, _)| is_normal(*id));
    let pieces = normal.map(|(id, token)| (token.text, scores[id as usize]));
    let id = |text: &str| vocabulary.id(text).filter(|id| is_normal(*id));
    let merges = dlc_tokenizer::pieces::merges(pieces, id);
    merges.map_err(|problem| keys.problems.push(problem)).ok()
}
