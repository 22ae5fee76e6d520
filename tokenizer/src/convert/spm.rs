//! Models of `SentencePiece`: Llama and Gemma (BPE), XLM-R, `DeBERTa` v2 and T5 (Unigram).

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::words::around;
use super::{Input, table};
use crate::ConvertError;
use crate::added::Added;
use crate::base64;
use crate::parts::{
    AddedToken, SPACE, Tokenizer, edges, piece_decoder, piece_model, piece_normalizer, replace,
    sequence,
};
use crate::pieces::merges;
use crate::proto::{Algorithm, PieceKind, Proto};

pub(super) const FILE: &str = "tokenizer.model";
/// Gemma's tokens that are special though its model calls them user's.
const TURNS: [&str; 2] = ["<start_of_turn>", "<end_of_turn>"];
/// T5's tokens beside its model, unless files say how many.
const EXTRA_IDS: usize = 100;
const TAB: (&str, &str) = ("\t", "<0x09>");

/// Pieces with their scores, and the number of the unknown one.
struct Pieces<'b> {
    list: Vec<(&'b str, f64)>,
    unknown: usize,
    /// Tokens of the class that aren't in the model.
    added: Vec<AddedToken>,
}

/// What a model's normalizer is expected to say, as the class does that whatever it says.
#[derive(Clone, Copy)]
struct Expected {
    add_dummy_prefix: Option<bool>,
    remove_extra_whitespaces: bool,
    charsmap: bool,
    byte_fallback: bool,
}

/// Of classes that split by merges.
const fn bpe(add_dummy_prefix: Option<bool>) -> Expected {
    Expected {
        add_dummy_prefix,
        remove_extra_whitespaces: false,
        charsmap: false,
        byte_fallback: true,
    }
}
const UNIGRAM: Expected = Expected {
    add_dummy_prefix: Some(true),
    remove_extra_whitespaces: true,
    charsmap: true,
    byte_fallback: false,
};

pub(super) fn llama(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let prefix = input.flag("add_prefix_space", true)?;
    let proto = read(input, bpe(prefix.then_some(true)))?;
    let pieces = Pieces {
        list: listed(&proto),
        unknown: 0,
        added: vec![],
    };
    let (added, model) = model(input, &proto, &pieces, &proto.ids(), &[])?;
    let legacy = input.flag("legacy", true)?;
    let scheme = if prefix { "first" } else { "never" };
    let spaces = json!({
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": scheme,
        "split": false,
    });
    let (normalizer, pre_tokenizer) = if legacy {
        (piece_normalizer(prefix), Json::Null)
    } else {
        (Json::Null, spaces)
    };
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer,
        pre_tokenizer,
        post_processor: ends(input, &added)?,
        decoder: piece_decoder(prefix),
        model,
    })
}

pub(super) fn gemma(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let proto = read(input, bpe(Some(false)))?;
    let mut ids = proto.ids();
    let mut list = listed(&proto);
    // Older models have no tab, and texts do.
    if !ids.contains_key(TAB.0)
        && let Some(id) = ids.get(TAB.1).copied()
    {
        ids.insert(TAB.0, id);
        list[id as usize] = (TAB.0, 0.0);
    }
    let pieces = Pieces {
        list,
        unknown: 3,
        added: vec![],
    };
    let (added, model) = model(input, &proto, &pieces, &ids, &TURNS)?;
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer: replace(" ", SPACE),
        pre_tokenizer: json!({
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": false,
        }),
        post_processor: ends(input, &added)?,
        decoder: piece_decoder(false),
        model,
    })
}

pub(super) fn xlm_roberta(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let proto = read(input, UNIGRAM)?;
    let own = proto.pieces.iter().skip(3).map(|p| (p.text, p.score));
    let first = ["<s>", "<pad>", "</s>", "<unk>"].map(|text| (text, 0.0));
    let pieces = Pieces {
        list: first
            .into_iter()
            .chain(own)
            .chain([("<mask>", 0.0)])
            .collect(),
        unknown: 3,
        added: vec![],
    };
    let (added, model) = model(input, &proto, &pieces, &proto.ids(), &[])?;
    let collapse = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE});
    let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
    let steps = charsmap(&proto).into_iter().chain([strip, collapse]);
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer: sequence("normalizers", steps.collect()),
        pre_tokenizer: spaces(),
        post_processor: around(&added, 2)?,
        decoder: spaces(),
        model,
    })
}

pub(super) fn t5(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let proto = read(input, UNIGRAM)?;
    let count = input.count("extra_ids", EXTRA_IDS)?;
    // They stand for what is left out of a text, and are numbered from the end.
    let extra = (0..count).rev().map(|n| format!("<extra_id_{n}>"));
    let extra: Vec<String> = extra.collect();
    let own = listed(&proto).into_iter();
    let pieces = Pieces {
        list: own
            .chain(extra.iter().map(|text| (text.as_str(), 0.0)))
            .collect(),
        unknown: proto.unknown,
        added: extra.iter().map(|text| stretched(text)).collect(),
    };
    let (added, model) = model(input, &proto, &pieces, &proto.ids(), &[])?;
    let collapse = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE});
    let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
    let steps = charsmap(&proto).into_iter().chain([strip, collapse]);
    let scheme = if input.flag("legacy", true)? {
        "always"
    } else {
        "first"
    };
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer: sequence("normalizers", steps.collect()),
        pre_tokenizer: metaspace(scheme),
        post_processor: edges(None, Some(added.special("eos_token")?)),
        decoder: metaspace(scheme),
        model,
    })
}

/// A special token that takes the spaces around it along.
fn stretched(text: &str) -> AddedToken {
    AddedToken {
        lstrip: true,
        rstrip: true,
        ..AddedToken::new(text, true)
    }
}

pub(super) fn deberta_v2(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    let proto = read(input, UNIGRAM)?;
    let pieces = Pieces {
        list: listed(&proto),
        unknown: proto.unknown,
        added: vec![],
    };
    let (added, model) = model(input, &proto, &pieces, &proto.ids(), &[])?;
    let lower = input.flag("do_lower_case", false)?;
    let lower = lower.then(|| json!({"type": "Lowercase"}));
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    let collapse = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    let steps = lower.into_iter().chain([strip]).chain(charsmap(&proto));
    let punctuation = input.flag("split_by_punct", false)?;
    let punctuation = punctuation.then(|| json!({"type": "Punctuation", "behavior": "Isolated"}));
    let splits = punctuation.into_iter().chain([spaces()]);
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer: sequence("normalizers", steps.chain([collapse]).collect()),
        pre_tokenizer: sequence("pretokenizers", splits.collect()),
        post_processor: around(&added, 1)?,
        decoder: spaces(),
        model,
    })
}

/// The class's model; what it says and the class doesn't do is noted.
fn read<'s>(input: &mut Input<'s>, expected: Expected) -> Result<Proto<'s>, ConvertError> {
    input.refuse("sp_model_kwargs")?;
    let file = input.class.files[0];
    let proto = Proto::read(input.file(file)?).map_err(|problem| {
        ConvertError::damaged(
            file,
            format!("isn't a model of SentencePiece that dlc reads: {problem}"),
        )
    })?;
    if proto.space_after {
        return Err(ConvertError::Unsupported(format!(
            "{file}: `treat_whitespace_as_suffix: true` isn't followed"
        )));
    }
    let says = [
        (
            "add_dummy_prefix",
            proto.add_dummy_prefix,
            expected.add_dummy_prefix.unwrap_or(proto.add_dummy_prefix),
        ),
        (
            "remove_extra_whitespaces",
            proto.remove_extra_whitespaces,
            expected.remove_extra_whitespaces,
        ),
        ("escape_whitespaces", proto.escape_whitespaces, true),
        (
            "byte_fallback",
            proto.byte_fallback,
            proto.byte_fallback && expected.byte_fallback,
        ),
        (
            "precompiled_charsmap",
            !proto.charsmap.is_empty(),
            !proto.charsmap.is_empty() && expected.charsmap,
        ),
    ];
    for (key, says, does) in says {
        if says != does {
            let name = input.name;
            input.notes.push(format!(
                "{file}: `{key}: {says}` isn't heeded, as {name} of transformers doesn't"
            ));
        }
    }
    Ok(proto)
}

fn listed<'b>(proto: &Proto<'b>) -> Vec<(&'b str, f64)> {
    let pieces = proto.pieces.iter();
    pieces.map(|piece| (piece.text, piece.score)).collect()
}

/// The added tokens and the model of pieces, of which others are made by `parts`; `special` are
/// those of the user's that are special.
fn model(
    input: &Input<'_>,
    proto: &Proto<'_>,
    pieces: &Pieces<'_>,
    parts: &HashMap<&str, u32>,
    special: &[&str],
) -> Result<(Added, Json), ConvertError> {
    let texts = pieces.list.iter().map(|(text, _)| (*text).to_owned());
    let ids: HashMap<String, u32> = texts.zip(0..).collect();
    let own = proto.pieces.iter().filter(|p| p.kind != PieceKind::Other);
    let own = own.map(|piece| {
        let is_special = piece.kind == PieceKind::Control || special.contains(&piece.text);
        AddedToken::new(piece.text, is_special)
    });
    let own = own.chain(pieces.added.iter().cloned());
    let added = input.added(own.collect(), &ids)?;
    let model = match proto.algorithm {
        Algorithm::Unigram => json!({
            "type": "Unigram",
            "unk_id": pieces.unknown,
            "vocab": pieces.list,
            "byte_fallback": input.class.files == [FILE],
        }),
        Algorithm::Bpe => {
            let merges = merges(pieces.list.iter().copied(), |text| parts.get(text).copied())
                .map_err(|problem| ConvertError::damaged(input.class.files[0], problem))?;
            let fallback = input.class.files == [FILE];
            piece_model(table(&ids), merges, Some(proto.unknown_piece), fallback)
        }
    };
    Ok((added, model))
}

/// Puts the tokens around a text that the settings ask for.
fn ends(input: &Input<'_>, added: &Added) -> Result<Json, ConvertError> {
    let token = |key: &str, usual: bool, name: &str| {
        let wanted = input.flag(key, usual)?;
        wanted.then(|| added.special(name)).transpose()
    };
    let begin = token("add_bos_token", true, "bos_token")?;
    let end = token("add_eos_token", false, "eos_token")?;
    Ok(edges(begin, end))
}

/// Writes spaces as pieces have them, one before the text, and splits there.
fn spaces() -> Json {
    metaspace("always")
}

/// The same; `scheme` says before which parts of a text a space is put.
fn metaspace(scheme: &str) -> Json {
    json!({
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": scheme,
        "split": true,
    })
}

/// Rewrites characters by the model's table.
fn charsmap(proto: &Proto<'_>) -> Option<Json> {
    let table = base64::encode(proto.charsmap);
    let step = json!({"type": "Precompiled", "precompiled_charsmap": table});
    (!proto.charsmap.is_empty()).then_some(step)
}
