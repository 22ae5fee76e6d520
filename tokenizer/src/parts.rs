//! The parts of `tokenizer.json` that tokenizers of several origins share.

use serde_json::{Map, Value as Json, json};

/// What stands for a space in the pieces of `SentencePiece`.
pub const SPACE: &str = "\u{2581}";

/// How Qwen 2 splits texts.
pub const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A `tokenizer.json`, part by part; `Json::Null` for a part that does nothing.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// What is found in a text before it is split, see [`AddedToken`].
    pub added_tokens: Vec<Json>,
    /// What rewrites a text first.
    pub normalizer: Json,
    /// What splits it.
    pub pre_tokenizer: Json,
    /// What puts tokens around it.
    pub post_processor: Json,
    /// What makes text of tokens.
    pub decoder: Json,
    /// What makes tokens of a piece of text.
    pub model: Json,
}

impl Tokenizer {
    /// The file.
    pub fn into_json(self) -> Json {
        let head = json!({"version": "1.0", "truncation": null, "padding": null});
        with(
            head,
            [
                ("added_tokens", self.added_tokens.into()),
                ("normalizer", self.normalizer),
                ("pre_tokenizer", self.pre_tokenizer),
                ("post_processor", self.post_processor),
                ("decoder", self.decoder),
                ("model", self.model),
            ],
        )
    }
}

/// An object with more entries; large ones are moved, never copied.
fn with<const N: usize>(mut object: Json, entries: [(&str, Json); N]) -> Json {
    if let Json::Object(object) = &mut object {
        object.extend(entries.map(|(key, value)| (key.to_owned(), value)));
    }
    object
}

/// A token that is found in a text before it is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Whether it is no text, such as the end of one.
    pub special: bool,
    /// Whether it is looked for in the text as the normalizer leaves it.
    pub normalized: bool,
    /// Whether it takes the spaces before it along.
    pub lstrip: bool,
    /// Whether it takes the spaces after it along.
    pub rstrip: bool,
    /// Whether it stands for whole words only.
    pub single_word: bool,
}

impl AddedToken {
    /// A token that is found as it stands.
    pub fn new(content: &str, special: bool) -> Self {
        Self {
            content: content.to_owned(),
            special,
            normalized: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    /// An entry of `added_tokens`.
    pub fn entry(&self, id: u32) -> Json {
        json!({
            "id": id,
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        })
    }
}

/// A part of what is put around a text.
#[derive(Debug, Clone, Copy)]
pub enum Part<'t> {
    /// A token with its id, and the segment that it belongs to.
    Token(&'t str, u32, u8),
    /// The first text (`A`) or the second one (`B`), and its segment.
    Text(&'static str, u8),
}

/// What puts tokens around a text and around a pair of texts.
pub fn template(single: &[Part<'_>], pair: &[Part<'_>]) -> Json {
    let part = |part: &Part<'_>| match part {
        Part::Token(text, _, segment) => {
            json!({"SpecialToken": {"id": text, "type_id": segment}})
        }
        Part::Text(name, segment) => json!({"Sequence": {"id": name, "type_id": segment}}),
    };
    let list = |parts: &[Part<'_>]| -> Json { parts.iter().map(part).collect() };
    let token = |part: &Part<'_>| match part {
        Part::Token(text, id, _) => Some((
            (*text).to_owned(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        )),
        Part::Text(..) => None,
    };
    let tokens: Map<String, Json> = single.iter().chain(pair).filter_map(token).collect();
    json!({
        "type": "TemplateProcessing",
        "single": list(single),
        "pair": list(pair),
        "special_tokens": tokens,
    })
}

/// What puts a token before each text and one after it, where there are such.
pub fn edges<'t>(begin: Option<(&'t str, u32)>, end: Option<(&'t str, u32)>) -> Json {
    if begin.is_none() && end.is_none() {
        return Json::Null;
    }
    let around = |name: &'static str, segment: u8| {
        let token = |(text, id): (&'t str, u32)| Part::Token(text, id, segment);
        let parts = begin.map(token).into_iter();
        let parts = parts.chain([Part::Text(name, segment)]);
        parts.chain(end.map(token)).collect::<Vec<_>>()
    };
    template(&around("A", 0), &[around("A", 0), around("B", 1)].concat())
}

/// Replaces a text by another.
pub fn replace(from: &str, to: &str) -> Json {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// Steps one after the other; `key` is what the kind of steps calls them.
pub fn sequence(key: &str, steps: Vec<Json>) -> Json {
    with(json!({"type": "Sequence"}), [(key, steps.into())])
}

/// Splits a text where a pattern is found.
pub fn split(pattern: &str) -> Json {
    json!({
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": false,
    })
}

/// Writes the bytes of a text as characters; `splits` says whether GPT-2's pattern splits it first.
pub fn byte_level(add_prefix_space: bool, splits: bool) -> Json {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": true,
        "use_regex": splits,
    })
}

/// A BPE over bytes; `ignore_merges` says whether a word that is a token stays whole whatever the
/// merges say.
pub fn byte_level_model(vocab: Json, merges: Vec<Json>, ignore_merges: bool) -> Json {
    let head = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": ignore_merges,
    });
    with(head, [("vocab", vocab), ("merges", merges.into())])
}

/// `SentencePiece`'s BPE; what no piece stands for is written by tokens of bytes or is `unknown`.
pub fn piece_model(
    vocab: Json,
    merges: Vec<Json>,
    unknown: Option<&str>,
    byte_fallback: bool,
) -> Json {
    let head = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": byte_fallback,
        "ignore_merges": false,
    });
    with(head, [("vocab", vocab), ("merges", merges.into())])
}

/// Makes text of pieces and of tokens of bytes; `strips` takes the space away that was put before
/// the text.
pub fn piece_decoder(strips: bool) -> Json {
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let steps = [
        replace(SPACE, " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let steps = steps.into_iter().chain(strips.then_some(strip));
    sequence("decoders", steps.collect())
}

/// Writes spaces as pieces have them; `prefix` puts one before the text.
pub fn piece_normalizer(prefix: bool) -> Json {
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let steps = prefix.then_some(prepend).into_iter();
    sequence("normalizers", steps.chain([replace(" ", SPACE)]).collect())
}

/// The two tokens of a line of merges, which make a third one.
pub fn pair_of(line: &str, is_token: impl Fn(&str) -> bool) -> Option<(&str, &str)> {
    let (left, right) = line.split_once(' ')?;
    let all = is_token(left) && is_token(right) && is_token(&[left, right].concat());
    all.then_some((left, right))
}
