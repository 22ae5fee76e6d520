//! What a model said of tokens, in the two forms of OpenAI's API.

use dlc_runtime::TextTokenizer;
use dlc_runtime::methods::speculation::TokenLogprobs;
use serde_json::{Value, json};

use super::Piece;

/// The text of a token; of one that is a part of a character, its bytes can't be told.
fn text_of(tokenizer: &TextTokenizer, token: u32) -> String {
    tokenizer.decode(&[token]).unwrap_or_default()
}

fn entry(tokenizer: &TextTokenizer, token: u32, logprob: f32) -> Value {
    let text = text_of(tokenizer, token);
    let bytes = text.as_bytes();
    json!({"token": text, "logprob": TokenLogprobs::finite(logprob), "bytes": bytes})
}

/// `logprobs` of a chat's choice.
pub(super) fn of_chat(tokenizer: &TextTokenizer, piece: &Piece) -> Value {
    let content = piece.tokens.iter().filter_map(|(token, said)| {
        let said = said.as_ref()?;
        let mut value = entry(tokenizer, *token, said.logprob);
        let top = said.top.iter();
        value["top_logprobs"] = top
            .map(|(token, logprob)| entry(tokenizer, *token, *logprob))
            .collect();
        Some(value)
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a completion's choice.
pub(super) fn of_completion(tokenizer: &TextTokenizer, piece: &Piece) -> Value {
    let said = || {
        let tokens = piece.tokens.iter();
        tokens.filter_map(|(token, said)| Some((*token, said.as_ref()?)))
    };
    let tokens: Vec<String> = said().map(|(id, _)| text_of(tokenizer, id)).collect();
    let ends = tokens.iter().scan(0, |end, text| {
        *end += text.chars().count();
        Some(*end)
    });
    let offsets: Vec<usize> = std::iter::once(0).chain(ends).take(tokens.len()).collect();
    let logprobs: Vec<f32> = said()
        .map(|(_, said)| TokenLogprobs::finite(said.logprob))
        .collect();
    // The token that was drawn is among them, likely or not.
    let top = said().map(|(id, said)| {
        let top = said.top.iter().copied().chain([(id, said.logprob)]);
        top.map(|(token, logprob)| {
            (
                text_of(tokenizer, token),
                json!(TokenLogprobs::finite(logprob)),
            )
        })
        .collect::<serde_json::Map<_, _>>()
    });
    let top: Vec<_> = top.collect();
    json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets})
}

/// Moves the offsets of a part of a stream behind the `told` characters before it; returns how many
/// there are then.
pub(super) fn shift(logprobs: &mut Value, told: usize) -> usize {
    let characters = |tokens: &Value| {
        let tokens = tokens.as_array().into_iter().flatten();
        tokens
            .filter_map(Value::as_str)
            .map(|text| text.chars().count())
            .sum::<usize>()
    };
    let end = told + characters(&logprobs["tokens"]);
    if let Some(offsets) = logprobs
        .get_mut("text_offset")
        .and_then(Value::as_array_mut)
    {
        for offset in offsets {
            *offset = json!(offset.as_u64().unwrap_or(0) + told as u64);
        }
    }
    end
}
