//! Byte-level BPE (`vocab.json` and `merges.txt`): GPT-2, Qwen 2, `RoBERTa`, `DeBERTa`, CLIP.

use std::collections::HashMap;

use dlc_errors::printable::shown;
use serde_json::{Value as Json, json};

use super::words::around;
use super::{Input, table};
use crate::ConvertError;
use crate::added::Added;
use crate::parts::{
    Part, QWEN_2, Tokenizer, byte_level, byte_level_model, pair_of, sequence, split, template,
};

const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
pub(super) const FILES: [&str; 2] = [VOCABULARY, MERGES];
/// What ends the last piece of a word of CLIP's.
const WORD_END: &str = "</w>";
/// How CLIP splits texts, leaving out what is between.
const CLIP: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The merges that CLIP's class reads of a longer list.
const CLIP_MERGES: usize = 49_152 - 256 - 2;
/// Most tokens and most merges: four times what the largest vocabularies have.
const MOST: usize = 1 << 20;

pub(super) fn gpt2(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let (added, tokenizer) = spaced(input)?;
    let begin = if input.flag("add_bos_token", false)? {
        Some(added.special("bos_token")?)
    } else {
        None
    };
    let around = begin.map(|begin| {
        let start = Part::Token(begin.0, begin.1, 0);
        let (a, b) = (Part::Text("A", 0), Part::Text("B", 1));
        template(&[start, a], &[start, a, b])
    });
    Ok(Tokenizer {
        post_processor: around.unwrap_or_default(),
        ..tokenizer
    })
}

pub(super) fn roberta(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let (added, tokenizer) = spaced(input)?;
    Ok(Tokenizer {
        post_processor: json!({
            "type": "RobertaProcessing",
            "sep": added.special("sep_token")?,
            "cls": added.special("cls_token")?,
            "trim_offsets": input.flag("trim_offsets", true)?,
            "add_prefix_space": input.flag("add_prefix_space", false)?,
        }),
        ..tokenizer
    })
}

pub(super) fn deberta(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let (added, tokenizer) = spaced(input)?;
    Ok(Tokenizer {
        post_processor: around(&added, 1)?,
        ..tokenizer
    })
}

pub(super) fn qwen2(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let (_, tokenizer) = spaced(input)?;
    let bytes = byte_level(input.flag("add_prefix_space", false)?, false);
    Ok(Tokenizer {
        normalizer: json!({"type": "NFC"}),
        pre_tokenizer: sequence("pretokenizers", vec![split(QWEN_2), bytes]),
        ..tokenizer
    })
}

pub(super) fn clip(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let ids = vocabulary(input.file(VOCABULARY)?)?;
    let mut merges = merges(input.file(MERGES)?, &ids)?;
    merges.truncate(CLIP_MERGES);
    let added = input.added(vec![], &ids)?;
    let mut model = byte_level_model(table(&ids), merges, false);
    model["continuing_subword_prefix"] = "".into();
    model["end_of_word_suffix"] = WORD_END.into();
    model["unk_token"] = added.special("unk_token")?.0.into();
    let mut words = split(CLIP);
    words["behavior"] = "Removed".into();
    words["invert"] = true.into();
    let steps = vec![
        json!({"type": "NFC"}),
        json!({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}),
        json!({"type": "Lowercase"}),
    ];
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer: sequence("normalizers", steps),
        pre_tokenizer: sequence("pretokenizers", vec![words, byte_level(false, true)]),
        post_processor: json!({
            "type": "RobertaProcessing",
            "sep": added.special("eos_token")?,
            "cls": added.special("bos_token")?,
            "trim_offsets": false,
            "add_prefix_space": false,
        }),
        decoder: byte_level(true, true),
        model,
    })
}

/// A tokenizer that splits texts as GPT-2 does, and its added tokens.
fn spaced(input: &Input<'_>) -> Result<(Added, Tokenizer), ConvertError> {
    let ids = vocabulary(input.file(VOCABULARY)?)?;
    let merges = merges(input.file(MERGES)?, &ids)?;
    let added = input.added(vec![], &ids)?;
    let tokenizer = Tokenizer {
        added_tokens: added.entries(),
        normalizer: Json::Null,
        pre_tokenizer: byte_level(input.flag("add_prefix_space", false)?, true),
        post_processor: Json::Null,
        decoder: byte_level(true, true),
        model: byte_level_model(table(&ids), merges, false),
    };
    Ok((added, tokenizer))
}

/// The ids of the tokens.
fn vocabulary(bytes: &[u8]) -> Result<HashMap<String, u32>, ConvertError> {
    let ids: HashMap<String, u32> = serde_json::from_slice(bytes).map_err(|error| {
        ConvertError::damaged(VOCABULARY, format!("isn't one id for each token: {error}"))
    })?;
    if ids.len() > MOST {
        let problem = format!("has {} tokens, more than {MOST}", ids.len());
        return Err(ConvertError::damaged(VOCABULARY, problem));
    }
    Ok(ids)
}

/// Pairs of tokens, in the order in which they are merged, a line each after the format's version.
fn merges(bytes: &[u8], ids: &HashMap<String, u32>) -> Result<Vec<Json>, ConvertError> {
    let damaged = |problem: String| ConvertError::damaged(MERGES, problem);
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("is no text in UTF-8".to_owned()))?;
    let lines = (1..).zip(text.lines());
    let lines = lines.filter(|(number, line)| {
        !(line.trim().is_empty() || *number == 1 && line.starts_with("#version"))
    });
    let mut merges = Vec::new();
    for (number, line) in lines {
        let pair = pair_of(line.trim(), |token| ids.contains_key(token));
        let (left, right) = pair.ok_or_else(|| {
            let line = shown(line);
            damaged(format!(
                "line {number}, `{line}`, isn't two tokens that make a third one"
            ))
        })?;
        merges.push(json!([left, right]));
        if merges.len() > MOST {
            return Err(damaged(format!("has more than {MOST} merges")));
        }
    }
    Ok(merges)
}
