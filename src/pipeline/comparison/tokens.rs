//! Texts as tokens, which both models must agree on.

use dlc_runtime::{TextTokenizer, TokenizedText};

use super::{Reading, Side, misfit};
use crate::pipeline::error::PipelineError;

/// Of most texts a token is at most so many bytes long; of longer texts only the beginning is
/// looked at.
const BYTES_OF_TOKEN: usize = 16;

/// The pieces of the texts that decoders read, each with what the tokenizer puts before a text.
pub(super) fn pieces(
    reference: &Side<'_>,
    other: &Side<'_>,
    reading: &Reading,
) -> Result<Vec<Vec<u32>>, PipelineError> {
    let context = |side: &Side<'_>| side.module.model.context_length;
    let length = length(reading, [reference, other], context);
    agreed(reference, other, |tokenizer| {
        let (mut pieces, mut left) = (Vec::new(), reading.most_tokens);
        for text in &reading.texts {
            let text = start(text, reading.most_tokens);
            let (before, tokens) = parts(tokenizer, text)?;
            let room = length.saturating_sub(before.len()).max(1);
            for chunk in tokens.chunks(room) {
                let piece: Vec<u32> = before.iter().chain(chunk).copied().take(left).collect();
                left -= piece.len();
                // One token by itself foretells nothing.
                pieces.extend((piece.len() > 1).then_some(piece));
            }
        }
        Ok(pieces)
    })
}

/// What the tokenizer puts before a text, and the tokens of the text itself.
fn parts(tokenizer: &TextTokenizer, text: &str) -> Result<(Vec<u32>, Vec<u32>), PipelineError> {
    let (all, own) = (
        tokenizer.encode(text, true)?,
        tokenizer.encode(text, false)?,
    );
    let before = (0..=all.len().saturating_sub(own.len()))
        .find(|&at| all[at..].starts_with(&own))
        .unwrap_or(0);
    Ok((all[..before].to_vec(), own))
}

/// The texts as encoders read them, cut to the length that is asked for.
pub(super) fn texts(
    reference: &Side<'_>,
    other: &Side<'_>,
    reading: &Reading,
) -> Result<Vec<TokenizedText>, PipelineError> {
    let limit = |side: &Side<'_>| {
        let model = &side.module.model;
        let own = model.sentence.as_ref().and_then(|s| s.max_tokens);
        own.unwrap_or(model.context_length)
            .min(model.context_length)
    };
    let length = length(reading, [reference, other], limit);
    agreed(reference, other, |tokenizer| {
        let (mut found, mut left) = (Vec::new(), reading.most_tokens);
        for text in &reading.texts {
            let (tokens, _) = tokenizer.analyse_cut(start(text, length), length, false)?;
            if tokens.ids.is_empty() {
                continue;
            }
            let Some(rest) = left.checked_sub(tokens.ids.len()) else {
                break;
            };
            left = rest;
            found.push(tokens);
        }
        Ok(found)
    })
}

/// The length that is asked for, as far as both models go.
fn length(reading: &Reading, sides: [&Side<'_>; 2], limit: impl Fn(&Side<'_>) -> usize) -> usize {
    sides
        .map(limit)
        .into_iter()
        .fold(reading.length, usize::min)
        .max(1)
}

/// What holds the first `tokens` tokens of a text.
fn start(text: &str, tokens: usize) -> &str {
    let bytes = tokens.saturating_mul(BYTES_OF_TOKEN).max(1 << 12);
    &text[..text.floor_char_boundary(bytes)]
}

/// What the tokenizers of both make of the texts, which must be the same. A model without one reads
/// what the other's makes.
fn agreed<T: Tokens>(
    reference: &Side<'_>,
    other: &Side<'_>,
    read: impl Fn(&TextTokenizer) -> Result<Vec<T>, PipelineError>,
) -> Result<Vec<T>, PipelineError> {
    let of = |side: &Side<'_>| {
        let tokenizer = side.tokenizer.clone().map(|mut tokenizer| {
            let sentence = side.module.model.sentence.as_ref();
            if sentence.is_some_and(|s| s.lower_case) {
                tokenizer.lower_case()?;
            }
            Ok::<_, PipelineError>(tokenizer)
        });
        tokenizer.transpose()?.as_ref().map(&read).transpose()
    };
    let found = match (of(reference)?, of(other)?) {
        (Some(a), Some(b)) => {
            let ids = |list: &[T]| list.iter().flat_map(T::ids).copied().collect::<Vec<u32>>();
            let (x, y) = (ids(&a), ids(&b));
            if x != y {
                let at = x.iter().zip(&y).take_while(|(x, y)| x == y).count();
                let token = |list: &[u32]| {
                    list.get(at)
                        .map_or_else(|| "none".to_owned(), ToString::to_string)
                };
                let difference = format!(
                    "makes other tokens of the same text than {}: token {} is {}, there {}",
                    other.name,
                    at + 1,
                    token(&x),
                    token(&y)
                );
                let way_out = "compare models with one tokenizer";
                return Err(misfit(reference, other, &difference, way_out));
            }
            a
        }
        (Some(found), None) | (None, Some(found)) => found,
        (None, None) => {
            let way_out = "put the model's tokenizer.json beside its config.json";
            return Err(misfit(
                reference,
                other,
                "has no tokenizer, nor has the other, so they can't read text",
                way_out,
            ));
        }
    };
    if found.is_empty() {
        let way_out = "give more with --text or --max-tokens";
        return Err(misfit(reference, other, "gets no text to read", way_out));
    }
    Ok(found)
}

/// What has tokens.
trait Tokens {
    fn ids(&self) -> &[u32];
}

impl Tokens for Vec<u32> {
    fn ids(&self) -> &[u32] {
        self
    }
}

impl Tokens for TokenizedText {
    fn ids(&self) -> &[u32] {
        &self.ids
    }
}
