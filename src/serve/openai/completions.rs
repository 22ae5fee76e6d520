//! `/v1/completions`: texts that are continued as they are.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::sampling::{MOST_LOGPROBS, Sampling};
use super::{Form, Piece, Request, Text, finish_reason, logprobs};
use crate::serve::answer::Finish;
use crate::serve::fields::Fields;
use crate::serve::models::{Model, TextModel};
use crate::serve::problem::Problem;

/// What a request that doesn't say it gets, as in OpenAI's API.
const MAX_TOKENS: usize = 16;

/// A text or its tokens; a list of one prompt is one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

pub(super) struct Completion {
    model: Arc<Model>,
    /// Characters of each text of a stream that were told.
    told: Vec<usize>,
    /// What stands before the texts, where it is asked for.
    echo: String,
    tells_logprobs: bool,
}

pub(super) fn understand(
    model: Arc<Model>,
    text: &TextModel,
    mut fields: Fields,
) -> Result<Request<Completion>, Problem> {
    let expected = "a text, or a list of token ids";
    let given: Prompt = fields.need("prompt", expected)?;
    let (prompt, shown) = tokens(text, given)?;
    let logprobs = fields.count("logprobs", 0..=MOST_LOGPROBS)?;
    let max_tokens = fields.count("max_tokens", 0..=1 << 30)?;
    let echo = fields.flag("echo")?;
    if echo && logprobs.is_some() {
        let message = "`echo` with `logprobs` isn't supported: prompts have none here";
        return Err(Problem::field("echo", message));
    }
    let sampling = Sampling::take(&mut fields, text, logprobs)?;
    let best_of = json!(sampling.n);
    fields.only("best_of", &best_of, "all texts are returned: set `n`")?;
    fields.only("suffix", &json!(""), "no model here fills gaps")?;
    fields.finish()?;
    let texts = sampling.n;
    Ok(Request {
        prompt,
        max_tokens: Some(max_tokens.unwrap_or(MAX_TOKENS)),
        sampling,
        form: Completion {
            model: Arc::clone(&model),
            echo: if echo { shown } else { String::new() },
            tells_logprobs: logprobs.is_some(),
            told: vec![0; texts],
        },
        model,
    })
}

/// The tokens of a prompt, and its text.
fn tokens(model: &TextModel, prompt: Prompt) -> Result<(Vec<u32>, String), Problem> {
    let several = || {
        let message = "`prompt` must be a single prompt: send a request for each";
        Problem::field("prompt", message)
    };
    let text = match prompt {
        Prompt::Text(text) => text,
        Prompt::Texts(texts) => match <[String; 1]>::try_from(texts) {
            Ok([text]) => text,
            Err(_) => return Err(several()),
        },
        Prompt::Tokens(tokens) => return model.shown(tokens),
        Prompt::Lists(lists) => match <[Vec<u32>; 1]>::try_from(lists) {
            Ok([tokens]) => return model.shown(tokens),
            Err(_) => return Err(several()),
        },
    };
    let tokens = model.encode(&text, true)?;
    Ok((tokens, text))
}

impl Completion {
    fn choice(&self, i: usize, text: &str, piece: &Piece, finish: Option<Finish>) -> Value {
        let said = match self.model.text() {
            Ok(model) if self.tells_logprobs => {
                logprobs::of_completion(&model.info.tokenizer, piece)
            }
            _ => Value::Null,
        };
        json!({"index": i, "text": text, "logprobs": said, "finish_reason": finish_reason(finish)})
    }
}

impl Form for Completion {
    fn whole(&self, texts: Vec<Text>) -> Vec<Value> {
        let choice = |(i, text): (usize, Text)| {
            let whole = format!("{}{}", self.echo, text.pieces.text);
            self.choice(i, &whole, &text.pieces, text.finish)
        };
        texts.into_iter().enumerate().map(choice).collect()
    }

    fn first(&self, i: usize) -> Option<Value> {
        let echo = self.echo.as_str();
        (!echo.is_empty()).then(|| self.choice(i, echo, &Piece::default(), None))
    }

    fn piece(&mut self, i: usize, piece: &Piece) -> Option<Value> {
        let said = self.tells_logprobs && !piece.tokens.is_empty();
        if piece.text.is_empty() && piece.finish.is_none() && !said {
            return None;
        }
        let mut choice = self.choice(i, &piece.text, piece, piece.finish);
        if let Some(told) = self.told.get_mut(i) {
            *told = logprobs::shift(&mut choice["logprobs"], *told);
        }
        Some(choice)
    }

    fn objects(&self) -> (&'static str, &'static str) {
        ("text_completion", "text_completion")
    }

    fn prefix(&self) -> &'static str {
        "cmpl"
    }
}
