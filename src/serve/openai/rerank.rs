//! `/v1/rerank`: how well documents answer a query, in the form of Jina's and Cohere's APIs.

use std::sync::Arc;

use axum::extract::State;
use dlc_runtime::QueryPair;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::serve::fields::{Fields, Object};
use crate::serve::problem::{Json, Problem};
use crate::serve::state::{App, Received};

/// Documents of one request.
const MOST_DOCUMENTS: usize = 2048;

/// A document is a text, or an object with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Passage(Object<Passage>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Passage {
    text: String,
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Passage(Object(Passage { text })) => text,
        }
    }
}

/// Scores the documents, the best first.
pub(in crate::serve) async fn rerank(
    State(app): State<Arc<App>>,
    Received(body): Received,
) -> Result<Json, Problem> {
    let mut fields = Fields::parse(&body)?;
    let model = app.model(&mut fields)?;
    let encoder = model.relevance()?;
    let query: String = fields.need("query", "a text")?;
    let documents: Vec<Document> = fields.need(
        "documents",
        "a list of texts, or of objects that have nothing but `text`",
    )?;
    if documents.is_empty() || documents.len() > MOST_DOCUMENTS {
        let message = format!("`documents` must have 1 to {MOST_DOCUMENTS} texts");
        return Err(Problem::field("documents", message));
    }
    let most = fields.count("top_n", 1..=MOST_DOCUMENTS)?;
    let returns = fields.flag("return_documents")?;
    fields.finish()?;
    let pairs: Vec<QueryPair> = documents
        .into_iter()
        .map(|document| QueryPair {
            query: query.clone(),
            text: document.into_text(),
        })
        .collect();
    let found = app
        .limits
        .deadline()
        .keep(encoder.read(pairs.clone()))
        .await??;
    let tokens: usize = found.iter().map(|one| one.tokens).sum();
    let mut ranked: Vec<usize> = (0..found.len()).collect();
    ranked.sort_by(|&a, &b| found[b].score.total_cmp(&found[a].score));
    ranked.truncate(most.unwrap_or(usize::MAX));
    let results: Vec<Value> = ranked
        .into_iter()
        .map(|index| {
            let mut result = json!({"index": index, "relevance_score": found[index].score});
            if returns {
                result["document"] = json!({"text": pairs[index].text});
            }
            result
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(
        json!({"object": "list", "model": model.name, "results": results, "usage": usage}),
    ))
}
