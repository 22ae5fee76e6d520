//! `/v1/embeddings`: vectors of texts.

use std::sync::Arc;

use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dlc_runtime::TextVector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::sampling::OneOrMany;
use crate::serve::fields::Fields;
use crate::serve::problem::{Json, Problem};
use crate::serve::state::{App, Received};

/// Texts of one request, as in OpenAI's API.
const MOST_TEXTS: usize = 2048;

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

/// Makes the vectors.
pub(in crate::serve) async fn embeddings(
    State(app): State<Arc<App>>,
    Received(body): Received,
) -> Result<Json, Problem> {
    let mut fields = Fields::parse(&body)?;
    let model = app.model(&mut fields)?;
    let encoder = model.vectors()?;
    let texts: OneOrMany<String> = fields.need("input", "a text or a list of texts")?;
    let texts = texts.into_vec();
    if texts.is_empty() || texts.len() > MOST_TEXTS {
        let message = format!("`input` must have 1 to {MOST_TEXTS} texts");
        return Err(Problem::field("input", message));
    }
    let encoding = fields.take("encoding_format", "`float` or `base64`")?;
    let dimensions = fields.take::<usize>("dimensions", "a whole number")?;
    fields.finish()?;
    let vectors = app.limits.deadline().keep(encoder.read(texts)).await??;
    let own = vectors.first().map_or(0, |one| one.vector.len());
    if let Some(asked) = dimensions.filter(|asked| *asked != own) {
        let message = format!("the model's vectors have {own} numbers, and {asked} are asked for");
        return Err(Problem::field("dimensions", message));
    }
    let tokens: usize = vectors.iter().map(|one| one.tokens).sum();
    let encoding = encoding.unwrap_or(Encoding::Float);
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(i, one)| json!({"object": "embedding", "index": i, "embedding": written(one, encoding)}))
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(
        json!({"object": "list", "data": data, "model": model.name, "usage": usage}),
    ))
}

/// Numbers, or the bytes of 32-bit floats, lowest first.
fn written(one: &TextVector, encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(one.vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = one.vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            STANDARD.encode(bytes).into()
        }
    }
}
