//! `SentencePiece`'s BPE (`tokenizer.ggml.model` is `llama`): pieces with scores, of which merges
//! are made as transformers makes them (`GGUFTokenizerSkeleton` in `integrations/ggml.py`).

use std::cmp::Ordering;

use dlc_errors::printable::shown;
use serde_json::{Value as Json, json};

use super::Special;
use super::vocabulary::{TokenType, Vocabulary};
use crate::keys::Keys;

const SCORES: &str = "tokenizer.ggml.scores";
/// What stands for a space.
const SPACE: &str = "\u{2581}";
/// The longest piece that is read, in bytes. Those of models have some 50: making merges takes the
/// square of it.
const LONGEST_PIECE: usize = 512;

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
    let merges: Vec<Json> = merges(keys, vocabulary, &scores)?
        .into_iter()
        .map(|(left, right)| json!([left, right]))
        .collect();
    let unknown = special
        .unknown
        .and_then(|id| vocabulary.tokens.get(id as usize))
        .map(|token| token.text);
    let bytes = (0..=255u8).all(|byte| vocabulary.id(&format!("<0x{byte:02X}>")).is_some());
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let normalizers: Vec<Json> = prefix
        .then_some(prepend)
        .into_iter()
        .chain([replace(" ", SPACE)])
        .collect();
    let decoders: Vec<Json> = [
        replace(SPACE, " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ]
    .into_iter()
    .chain(prefix.then_some(strip))
    .collect();
    Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": special.template(vocabulary),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": bytes,
            "ignore_merges": false,
            "vocab": vocabulary.table(),
            "merges": merges,
        },
    }))
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

/// Every way to make a piece of two others, the best piece first.
fn merges<'b>(
    keys: &mut Keys<'_>,
    vocabulary: &Vocabulary<'b>,
    scores: &[f64],
) -> Option<Vec<(&'b str, &'b str)>> {
    let part = |text: &str| {
        let id = vocabulary.id(text)? as usize;
        (vocabulary.tokens.get(id)?.kind == TokenType::Normal).then(|| scores[id])
    };
    let mut merges = Vec::new();
    for (id, token) in vocabulary
        .used()
        .filter(|(_, t)| t.kind == TokenType::Normal)
    {
        let text = token.text;
        if text.len() > LONGEST_PIECE {
            keys.problems.push(format!(
                "token `{}` is longer than the {LONGEST_PIECE} bytes that dlc reads",
                shown(text)
            ));
            return None;
        }
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut ways: Vec<_> = splits
            .filter_map(|(left, right)| Some(((part(left)?, part(right)?), (left, right))))
            .collect();
        ways.sort_by(|(a, _), (b, _)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        merges.extend(ways.into_iter().map(|(_, way)| (scores[id as usize], way)));
    }
    merges.sort_by(|(a, _), (b, _)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
    Some(merges.into_iter().map(|(_, way)| way).collect())
}
