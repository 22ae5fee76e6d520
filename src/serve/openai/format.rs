//! What form a text is to have: `response_format` of OpenAI's API, and vLLM's `structured_outputs`.

use std::sync::Arc;

use dlc_runtime::GrammarSource;
use dlc_runtime::methods::speculation::Grammar;
use serde::Deserialize;
use serde_json::Value;

use crate::serve::fields::{Fields, Object};
use crate::serve::models::TextModel;
use crate::serve::problem::Problem;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: Object<NamedSchema> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedSchema {
    #[expect(
        dead_code,
        reason = "names and descriptions are for models that are told them"
    )]
    name: Option<String>,
    #[expect(
        dead_code,
        reason = "names and descriptions are for models that are told them"
    )]
    description: Option<String>,
    schema: Value,
    #[expect(dead_code, reason = "a schema is always held to")]
    strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Structured {
    Json(Value),
    Regex(String),
    Grammar(String),
}

/// Takes the fields, and prepares the grammar that they ask for.
pub(super) fn take(
    fields: &mut Fields,
    model: &TextModel,
) -> Result<Option<Arc<dyn Grammar>>, Problem> {
    const FORMAT: &str = "response_format";
    const STRUCTURED: &str = "structured_outputs";
    let expected =
        "an object of type `text`, `json_object` or `json_schema` with its `json_schema`";
    let format = fields
        .take::<Object<ResponseFormat>>(FORMAT, expected)?
        .map(|format| format.0);
    let structured = "an object with `json`, `regex` or `grammar`";
    let structured = fields.take::<Structured>(STRUCTURED, structured)?;
    let (name, source) = match (format, structured) {
        (None | Some(ResponseFormat::Text), None) => return Ok(None),
        (None, Some(Structured::Json(schema))) => (STRUCTURED, GrammarSource::JsonSchema(schema)),
        (None, Some(Structured::Regex(regex))) => (STRUCTURED, GrammarSource::Regex(regex)),
        (None, Some(Structured::Grammar(text))) => (STRUCTURED, GrammarSource::Lark(text)),
        (Some(ResponseFormat::JsonObject), None) => (FORMAT, GrammarSource::JsonObject),
        (Some(ResponseFormat::JsonSchema { json_schema }), None) => {
            (FORMAT, GrammarSource::JsonSchema(json_schema.0.schema))
        }
        (Some(_), Some(_)) => {
            let message = "`response_format` and `structured_outputs` contradict each other";
            return Err(Problem::field(STRUCTURED, message));
        }
    };
    let grammar = model
        .grammars()?
        .compile(&source)
        .map_err(|error| Problem::field(name, format!("`{name}`: {error}")))?;
    Ok(Some(Arc::new(grammar)))
}
