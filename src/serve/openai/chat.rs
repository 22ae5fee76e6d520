//! `/v1/chat/completions`: conversations, put into text by the model's chat template.

use std::sync::Arc;
use std::time::SystemTime;

use dlc_runtime::Conversation;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::sampling::{MOST_LOGPROBS, Sampling};
use super::{Form, Piece, Request, Text, finish_reason, logprobs};
use crate::serve::fields::Fields;
use crate::serve::models::{Model, TextModel};
use crate::serve::problem::Problem;

/// Turns of one conversation.
const MOST_MESSAGES: usize = 1 << 14;

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

pub(super) struct Chat {
    model: Arc<Model>,
    tells_logprobs: bool,
}

pub(super) fn understand(
    model: Arc<Model>,
    text: &TextModel,
    mut fields: Fields,
) -> Result<Request<Chat>, Problem> {
    let template = text.template.as_ref().map_err(|problem| {
        Problem::request(format!(
            "model `{}` takes no chats: {problem}. /v1/completions continues texts",
            model.name
        ))
    })?;
    let expected = "a list of objects with `role` and `content`";
    let messages: Vec<Map<String, Value>> = fields.need("messages", expected)?;
    if messages.is_empty() || messages.len() > MOST_MESSAGES {
        let message = format!("`messages` must have 1 to {MOST_MESSAGES} messages");
        return Err(Problem::field("messages", message));
    }
    let messages = messages.into_iter().enumerate().map(message);
    let settings = fields.take("chat_template_kwargs", "an object")?;
    let conversation = Conversation {
        messages: messages.collect::<Result<_, _>>()?,
        tools: vec![],
        settings: settings.unwrap_or_default(),
    };
    let reply = fields.take("add_generation_prompt", "true or false")?;
    let rendered = template
        .render_conversation(&conversation, reply.unwrap_or(true), SystemTime::now())
        .map_err(|error| Problem::field("messages", error.to_string()))?;
    let tells_logprobs = fields.flag("logprobs")?;
    let top = fields.count("top_logprobs", 0..=MOST_LOGPROBS)?;
    if top.is_some() && !tells_logprobs {
        let message = "`top_logprobs` is for answers with `logprobs: true`";
        return Err(Problem::field("top_logprobs", message));
    }
    let max_tokens = max_tokens(&mut fields)?;
    let sampling = Sampling::take(&mut fields, text, tells_logprobs.then(|| top.unwrap_or(0)))?;
    for name in ["tools", "functions"] {
        fields.only(name, &json!([]), "models call no functions here")?;
    }
    fields.only(
        "tool_choice",
        &json!("none"),
        "models call no functions here",
    )?;
    fields.only(
        "parallel_tool_calls",
        &json!(true),
        "models call no functions here",
    )?;
    fields.only("modalities", &json!(["text"]), "answers are text")?;
    fields.finish()?;
    Ok(Request {
        prompt: text.encode(&rendered, false)?,
        max_tokens,
        sampling,
        form: Chat {
            model: Arc::clone(&model),
            tells_logprobs,
        },
        model,
    })
}

/// OpenAI renamed the field.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let old = fields.count("max_tokens", 1..=1 << 30)?;
    let new = fields.count("max_completion_tokens", 1..=1 << 30)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(Problem::field(
            "max_tokens",
            "`max_tokens` and `max_completion_tokens` differ: send one of them",
        )),
        (old, new) => Ok(new.or(old)),
    }
}

/// A message as templates read it: its parts are one text.
fn message((i, mut message): (usize, Map<String, Value>)) -> Result<Value, Problem> {
    let at = format!("messages[{i}]");
    let role = message.get("role").and_then(Value::as_str).unwrap_or("");
    match role {
        "system" | "user" | "assistant" | "tool" => {}
        "developer" => {
            message.insert("role".into(), "system".into());
        }
        _ => {
            let message = format!("`{at}.role` must be system, developer, user, assistant or tool");
            return Err(Problem::field(&at, message));
        }
    }
    let content = message.remove("content").unwrap_or_default();
    let content = match serde_json::from_value::<Option<Content>>(content) {
        Ok(None) => Value::Null,
        Ok(Some(Content::Text(text))) => text.into(),
        Ok(Some(Content::Parts(parts))) => {
            let texts = parts.into_iter().map(|part| match part {
                Part {
                    r#type,
                    text: Some(text),
                } if r#type == "text" => Ok(text),
                part => Err(Problem::field(
                    &at,
                    format!(
                        "`{at}.content` has a part of type {:.40}: this model reads text alone",
                        part.r#type
                    ),
                )),
            });
            texts.collect::<Result<Vec<_>, _>>()?.concat().into()
        }
        Err(_) => {
            let message = format!("`{at}.content` must be a text, or a list of parts");
            return Err(Problem::field(&at, message));
        }
    };
    message.insert("content".into(), content);
    Ok(message.into())
}

impl Chat {
    fn said(&self, piece: &Piece) -> Value {
        match self.model.text() {
            Ok(model) if self.tells_logprobs => logprobs::of_chat(&model.tokenizer, piece),
            _ => Value::Null,
        }
    }
}

impl Form for Chat {
    fn whole(&self, texts: Vec<Text>) -> Vec<Value> {
        let choice = |(i, text): (usize, Text)| {
            let message =
                json!({"role": "assistant", "content": text.pieces.text, "refusal": null});
            let finish = finish_reason(text.finish);
            json!({"index": i, "message": message, "logprobs": self.said(&text.pieces), "finish_reason": finish})
        };
        texts.into_iter().enumerate().map(choice).collect()
    }

    fn first(&self, i: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": i, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn piece(&self, i: usize, piece: &Piece) -> Value {
        let delta = match piece.text.as_str() {
            "" => json!({}),
            text => json!({"content": text}),
        };
        let finish = finish_reason(piece.finish);
        json!({"index": i, "delta": delta, "logprobs": self.said(piece), "finish_reason": finish})
    }

    fn objects(&self) -> (&'static str, &'static str) {
        ("chat.completion", "chat.completion.chunk")
    }

    fn prefix(&self) -> &'static str {
        "chatcmpl"
    }
}
