//! What is wrong with a `tokenizer.json` that the `tokenizers` crate would read and then fail on,
//! or let grow without end: known traps, and how much longer its steps can make a text.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Steps of all parts together; the longest pipelines have some twenty.
const MOST_STEPS: usize = 128;
/// Tokens beside the vocabulary.
const MOST_ADDED: usize = 100_000;
const LONGEST_ADDED: usize = 1024;
/// The bytes of all added tokens, which the crate builds an automaton of.
const MOST_ADDED_BYTES: usize = 1 << 20;
/// The longest piece of a Unigram model and the bytes of all, of which the crate makes a tree with
/// a node for each byte. The vocabularies of 250 000 pieces in use have some 2 MB.
const LONGEST_UNIGRAM: usize = 1024;
const MOST_UNIGRAM_BYTES: usize = 4 << 20;
/// Pieces of a template around a text.
const MOST_PIECES: usize = 64;
/// The longest pattern, and the longest word of a `WordPiece` model, which looks at it in square
/// time.
const LONGEST_PATTERN: usize = 8192;
const LONGEST_WORD: u64 = 1000;
/// The table of a sentencepiece normalizer, in bytes.
const LARGEST_TABLE: usize = 4 << 20;
/// How often longer a text may become at most; 3 or 4 is usual.
const MOST_GROWTH: usize = 1024;

/// The parts of the file but for vocabulary and merges.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Pieces,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

/// The sizes of a Unigram model's pieces; those of other models, which are keys, aren't looked at.
#[derive(Default)]
struct Pieces {
    longest: usize,
    bytes: usize,
}

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PiecesVisitor)
    }
}

struct PiecesVisitor;

impl<'de> Visitor<'de> for PiecesVisitor {
    type Value = Pieces;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_unit<E>(self) -> Result<Pieces, E> {
        Ok(Pieces::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Pieces, A::Error> {
        let mut pieces = Pieces::default();
        while let Some((piece, _)) = entries.next_element::<(String, IgnoredAny)>()? {
            pieces.longest = pieces.longest.max(piece.len());
            pieces.bytes += piece.len();
        }
        Ok(pieces)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Pieces, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Pieces::default())
    }
}

/// How often longer than it was the tokenizer can make a text, or the text of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    pub encoding: usize,
    pub decoding: usize,
}

/// Checks a file whose shape has been checked, and returns its growth, or what is wrong.
pub(super) fn check(file: &File) -> Result<Growth, String> {
    if file.added_tokens.len() > MOST_ADDED {
        return Err(format!(
            "it adds {} tokens, more than {MOST_ADDED}",
            file.added_tokens.len()
        ));
    }
    if let Some(token) = file
        .added_tokens
        .iter()
        .find(|token| token.content.len() > LONGEST_ADDED)
    {
        return Err(format!("it adds a token of {} bytes", token.content.len()));
    }
    let added: usize = file
        .added_tokens
        .iter()
        .map(|token| token.content.len())
        .sum();
    if added > MOST_ADDED_BYTES {
        return Err(format!(
            "its added tokens have {added} bytes, more than {MOST_ADDED_BYTES}"
        ));
    }
    let Pieces { longest, bytes } = file.model.vocab;
    if longest > LONGEST_UNIGRAM || bytes > MOST_UNIGRAM_BYTES {
        return Err(format!(
            "its pieces have {bytes} bytes, the longest {longest}, more than {MOST_UNIGRAM_BYTES} or {LONGEST_UNIGRAM}"
        ));
    }
    if file
        .model
        .max_input_chars_per_word
        .is_some_and(|most| most > LONGEST_WORD)
    {
        return Err(format!(
            "its words may have more than {LONGEST_WORD} characters"
        ));
    }
    for (what, text) in [
        ("prefix", &file.model.continuing_subword_prefix),
        ("suffix", &file.model.end_of_word_suffix),
    ] {
        if text.as_ref().is_some_and(|text| text.len() > MOST_PIECES) {
            return Err(format!("its {what} of subwords is too long"));
        }
    }
    let mut encoding = Steps::default();
    encoding.add(&file.normalizer)?;
    encoding.add(&file.pre_tokenizer)?;
    encoding.add(&file.post_processor)?;
    let mut decoding = Steps::default();
    decoding.add(&file.decoder)?;
    Ok(Growth {
        encoding: encoding.growth,
        decoding: decoding.growth,
    })
}

struct Steps {
    count: usize,
    growth: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            count: 0,
            growth: 1,
        }
    }
}

impl Steps {
    fn add(&mut self, step: &Value) -> Result<(), String> {
        let Some(kind) = step.get("type").and_then(Value::as_str) else {
            return Ok(());
        };
        self.count += 1;
        if self.count > MOST_STEPS {
            return Err(format!("it has more than {MOST_STEPS} steps"));
        }
        match kind {
            "Sequence" => {
                for key in ["normalizers", "pretokenizers", "processors", "decoders"] {
                    for inner in step
                        .get(key)
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                    {
                        self.add(inner)?;
                    }
                }
                Ok(())
            }
            "Replace" => {
                let content = text(step, "content").len();
                let factor = match pattern(step)? {
                    Pattern::Text("") => return Err("its Replace has an empty pattern".to_owned()),
                    Pattern::Text(text) => content.div_ceil(text.len()),
                    Pattern::Regex(_) => content,
                };
                self.grow(factor)
            }
            "Prepend" => self.grow(1 + text(step, "prepend").len()),
            "Split" => pattern(step).map(drop),
            "Precompiled" => {
                let longest = table(text(step, "precompiled_charsmap"))?;
                self.grow(longest)
            }
            "FixedLength" if step.get("length").and_then(Value::as_u64) == Some(0) => {
                Err("its FixedLength pieces have no length".to_owned())
            }
            "TemplateProcessing" => template(step),
            _ => Ok(()),
        }
    }

    fn grow(&mut self, factor: usize) -> Result<(), String> {
        self.growth = self.growth.saturating_mul(factor.max(1));
        if self.growth > MOST_GROWTH {
            Err(format!(
                "its steps can make a text more than {MOST_GROWTH} times as long"
            ))
        } else {
            Ok(())
        }
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

enum Pattern<'v> {
    Text(&'v str),
    Regex(&'v str),
}

fn pattern(step: &Value) -> Result<Pattern<'_>, String> {
    let pattern = step.get("pattern").unwrap_or(&Value::Null);
    let found = match pattern.get("Regex").and_then(Value::as_str) {
        Some(regex) => Pattern::Regex(regex),
        None => Pattern::Text(text(pattern, "String")),
    };
    let (Pattern::Text(text) | Pattern::Regex(text)) = found;
    if text.len() > LONGEST_PATTERN {
        return Err(format!("it has a pattern of {} bytes", text.len()));
    }
    if let Pattern::Regex(regex) = found {
        super::patterns::check(regex)?;
    }
    Ok(found)
}

/// The longest text in the table of a sentencepiece normalizer: the length of a trie, the trie, and
/// texts that end in NUL.
fn table(base64: &str) -> Result<usize, String> {
    let damaged = || "the table of its Precompiled normalizer is damaged".to_owned();
    if base64.len() > LARGEST_TABLE {
        return Err("the table of its Precompiled normalizer is too large".to_owned());
    }
    let bytes = decode(base64).ok_or_else(damaged)?;
    if bytes.is_empty() {
        // What a normalizer that does nothing is written as.
        return Ok(1);
    }
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let length = u32::from_le_bytes(*length) as usize;
    if !length.is_multiple_of(4) || length == 0 || length > rest.len() {
        return Err(damaged());
    }
    let (trie, texts) = rest.split_at(length);
    let texts = std::str::from_utf8(texts).map_err(|_| damaged())?;
    check_trie(trie, texts).ok_or_else(damaged)?;
    Ok(texts.split('\0').map(str::len).max().unwrap_or(1))
}

/// Every unit that a search can reach lies in the array, and every value at the beginning of a
/// character of the texts.
fn check_trie(trie: &[u8], texts: &str) -> Option<()> {
    let units: Vec<usize> = trie
        .chunks_exact(4)
        .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize)
        .collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let mut seen = vec![false; units.len()];
    let mut pending = vec![offset(units[0])];
    while let Some(base) = pending.pop() {
        for label in 1..=255_usize {
            // Searches look at each child, whether it is there or not.
            let at = base ^ label;
            let unit = *units.get(at)?;
            if unit & ((1 << 31) | 0xFF) != label || std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let child = at ^ offset(unit);
            if (unit >> 8) & 1 == 1 {
                let value = units.get(child)? & ((1 << 31) - 1);
                texts.get(value..)?;
            }
            pending.push(child);
        }
    }
    Some(())
}

/// The bytes of standard base64.
fn decode(text: &str) -> Option<Vec<u8>> {
    let trimmed = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut buffer, mut bits) = (0_u32, 0);
    for c in trimmed.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        buffer = (buffer << 6 | u32::from(digit)) & 0xFFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
        }
    }
    Some(bytes)
}

/// A template puts the text in once, and tokens around it that it defines.
fn template(step: &Value) -> Result<(), String> {
    let tokens = step.get("special_tokens").and_then(Value::as_object);
    for key in ["single", "pair"] {
        let pieces = step
            .get(key)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if pieces.len() > MOST_PIECES {
            return Err(format!("its template has {} pieces", pieces.len()));
        }
        let sequences: Vec<&str> = pieces
            .iter()
            .filter_map(|piece| piece.get("Sequence"))
            .map(|sequence| text(sequence, "id"))
            .collect();
        if key == "single" && sequences != ["A"] {
            return Err("its template for a single text doesn't hold the text once".to_owned());
        }
        for token in pieces
            .iter()
            .filter_map(|piece| piece.get("SpecialToken"))
            .map(|token| text(token, "id"))
        {
            let known = tokens.and_then(|tokens| tokens.get(token)).ok_or_else(|| {
                format!("its template has a token `{token}` that it doesn't define")
            })?;
            let count = |key: &str| known.get(key).and_then(Value::as_array).map_or(0, Vec::len);
            if count("ids") != count("tokens") || count("ids") > MOST_PIECES {
                return Err(format!("the token `{token}` of its template is damaged"));
            }
        }
    }
    Ok(())
}
