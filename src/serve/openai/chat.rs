//! `/v1/chat/completions`: conversations, put into text by the model's chat template.

use std::sync::Arc;
use std::time::SystemTime;

use dlc_runtime::Conversation;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::sampling::{MOST_LOGPROBS, Sampling};
use super::tools::{Calls, Tools, with_objects};
use super::{Form, Piece, Request, Text, finish_reason, logprobs};
use crate::serve::answer::Finish;
use crate::serve::fields::{Fields, Object};
use crate::serve::models::{Model, TextModel};
use crate::serve::problem::Problem;

/// Turns of one conversation.
const MOST_MESSAGES: usize = 1 << 14;

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Object<Part>>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

pub(super) struct Chat {
    model: Arc<Model>,
    tells_logprobs: bool,
    tools: Option<Tools>,
    /// Of each text of a stream.
    calls: Vec<Calls>,
}

pub(super) fn understand(
    model: Arc<Model>,
    text: &TextModel,
    mut fields: Fields,
) -> Result<Request<Chat>, Problem> {
    let template = text.info.template.as_ref().map_err(|problem| {
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
    let tools = Tools::take(&mut fields, text, template)?;
    let messages = messages.into_iter().enumerate().map(message);
    let settings = fields.take("chat_template_kwargs", "an object")?;
    let conversation = Conversation {
        messages: messages.collect::<Result<_, _>>()?,
        tools: tools
            .as_ref()
            .map_or_else(Vec::new, |tools| tools.listed.clone()),
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
    let mut sampling = Sampling::take(&mut fields, text, tells_logprobs.then(|| top.unwrap_or(0)))?;
    fields.only("modalities", &json!(["text"]), "answers are text")?;
    fields.finish()?;
    if let Some(grammar) = tools.as_ref().and_then(|tools| tools.grammar.clone()) {
        sampling.demand(grammar)?;
    }
    let texts = sampling.n;
    Ok(Request {
        prompt: text.encode(&rendered, false)?,
        max_tokens,
        sampling,
        form: Chat {
            model: Arc::clone(&model),
            tells_logprobs,
            calls: tools
                .iter()
                .flat_map(|tools| (0..texts).map(|_| tools.calls()))
                .collect(),
            tools,
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
            let texts = parts.into_iter().map(|part| match part.0 {
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
    with_objects(&mut message);
    Ok(message.into())
}

impl Chat {
    fn said(&self, piece: &Piece) -> Value {
        match self.model.text() {
            Ok(model) if self.tells_logprobs => logprobs::of_chat(&model.info.tokenizer, piece),
            _ => Value::Null,
        }
    }
}

/// A text that ends with calls waits for what they bring.
fn finished(finish: Option<Finish>, calls: &[Value]) -> Value {
    match finish {
        Some(Finish::Stop) if !calls.is_empty() => "tool_calls".into(),
        finish => finish_reason(finish),
    }
}

impl Form for Chat {
    fn whole(&self, texts: Vec<Text>) -> Vec<Value> {
        let choice = |(i, text): (usize, Text)| {
            let (content, calls) = match &self.tools {
                None => (text.pieces.text.clone(), vec![]),
                Some(tools) => {
                    let mut calls = tools.calls();
                    let before = calls.push(&text.pieces.text);
                    let (rest, calls) = calls.finish();
                    (before + &rest, calls)
                }
            };
            let finish = finished(text.finish, &calls);
            let mut message = json!({"role": "assistant", "content": content, "refusal": null});
            if !calls.is_empty() {
                message["tool_calls"] = calls.into();
                if content.trim().is_empty() {
                    message["content"] = Value::Null;
                }
            }
            json!({"index": i, "message": message, "logprobs": self.said(&text.pieces), "finish_reason": finish})
        };
        texts.into_iter().enumerate().map(choice).collect()
    }

    fn first(&self, i: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": i, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn piece(&mut self, i: usize, piece: &Piece) -> Option<Value> {
        let (mut text, mut called) = (piece.text.clone(), vec![]);
        if let Some(calls) = self.calls.get_mut(i) {
            text = calls.push(&text);
            if piece.finish.is_some() {
                let (rest, found) = calls.clone().finish();
                text += &rest;
                called = found;
            }
        }
        let said = self.tells_logprobs && !piece.tokens.is_empty();
        if text.is_empty() && piece.finish.is_none() && !said {
            return None;
        }
        let finish = finished(piece.finish, &called);
        let mut delta = json!({});
        if !text.is_empty() {
            delta["content"] = text.into();
        }
        if !called.is_empty() {
            for (index, call) in called.iter_mut().enumerate() {
                call["index"] = index.into();
            }
            delta["tool_calls"] = called.into();
        }
        let logprobs = self.said(piece);
        Some(json!({"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}))
    }

    fn objects(&self) -> (&'static str, &'static str) {
        ("chat.completion", "chat.completion.chunk")
    }

    fn prefix(&self) -> &'static str {
        "chatcmpl"
    }
}
