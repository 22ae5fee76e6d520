//! OpenAI's dialect: completions and chats, whole or as they come.

mod chat;
mod completions;
mod embeddings;
mod format;
mod images;
mod logprobs;
mod rerank;
mod sampling;
mod stream;
mod tools;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub(super) use self::embeddings::embeddings;
pub(super) use self::images::images;
pub(super) use self::rerank::rerank;
use self::sampling::Sampling;
use self::stream::Streamed;
use super::answer::{Answer, Finish, Piece};
use super::fields::Fields;
use super::models::{Model, TextModel};
use super::problem::{Json, Problem};
use super::state::{App, Received};

/// How answers of a route look.
trait Form: Send + 'static {
    /// The whole answer.
    fn whole(&self, texts: Vec<Text>) -> Vec<Value>;

    /// What begins text `i` of a stream, if anything does.
    fn first(&self, i: usize) -> Option<Value>;

    /// What text `i` of a stream gains; None where it isn't known yet.
    fn piece(&mut self, i: usize, piece: &Piece) -> Option<Value>;

    /// `object` of a whole answer, and of a part of a stream.
    fn objects(&self) -> (&'static str, &'static str);

    /// What ids begin with.
    fn prefix(&self) -> &'static str;
}

/// A finished text.
#[derive(Debug, Default)]
struct Text {
    pieces: Piece,
    finish: Option<Finish>,
}

/// Tokens that an answer is charged for.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    prompt: usize,
    completion: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// A request that is understood.
struct Request<F> {
    model: Arc<Model>,
    prompt: Vec<u32>,
    max_tokens: Option<usize>,
    sampling: Sampling,
    form: F,
}

/// Understands the fields of a request for a model.
type Understand<F> = fn(Arc<Model>, &TextModel, Fields) -> Result<Request<F>, Problem>;

/// `/v1/completions`.
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    Received(body): Received,
) -> Result<Response, Problem> {
    let request = understand(&app, body, completions::understand).await?;
    answer(&app, request).await
}

/// `/v1/chat/completions`.
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Received(body): Received,
) -> Result<Response, Problem> {
    let request = understand(&app, body, chat::understand).await?;
    answer(&app, request).await
}

/// Reads a request apart from the connections: templates and tokenizers may take a while.
async fn understand<F: Form>(
    app: &Arc<App>,
    body: Bytes,
    read: Understand<F>,
) -> Result<Request<F>, Problem> {
    let app = Arc::clone(app);
    let work = move || {
        let mut fields = Fields::parse(&body)?;
        let model = app.model(&mut fields)?;
        let of_model = Arc::clone(&model);
        read(of_model, model.text()?, fields)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::failed("reading the request failed"))?
}

async fn answer<F: Form>(app: &App, request: Request<F>) -> Result<Response, Problem> {
    let Request {
        model,
        prompt,
        max_tokens,
        sampling,
        form,
    } = request;
    let text = model.text()?;
    let max_tokens = app.limits.length(text, prompt.len(), max_tokens)?;
    let events = text.engine.submit(&prompt, sampling.texts(max_tokens))?;
    let answers: Vec<Answer> = events
        .into_iter()
        .map(|events| Answer::new(events, &text.info.tokenizer, &sampling.stops))
        .collect();
    let head = Head::new(&model.name, &form);
    let usage = Usage {
        prompt: prompt.len(),
        completion: 0,
    };
    let deadline = app.limits.deadline();
    if sampling.streams {
        let usage = (usage, sampling.tells_usage);
        let streamed = Streamed::new(head, form, answers, usage, deadline);
        return Ok(streamed.into_response());
    }
    let collected = deadline.keep(collect(answers, usage)).await?;
    let (texts, usage) = collected?;
    let mut whole = head.json(form.objects().0, &form.whole(texts));
    whole["usage"] = usage.json();
    Ok(Json(whole).into_response())
}

async fn collect(answers: Vec<Answer>, mut usage: Usage) -> Result<(Vec<Text>, Usage), Problem> {
    let mut texts = Vec::with_capacity(answers.len());
    for mut answer in answers {
        let mut text = Text::default();
        while let Some(piece) = answer.next().await? {
            text.pieces.text += &piece.text;
            text.pieces.tokens.extend(piece.tokens);
            text.finish = piece.finish.or(text.finish);
        }
        usage.completion += text.pieces.tokens.len();
        texts.push(text);
    }
    Ok((texts, usage))
}

/// What all parts of an answer begin with.
#[derive(Debug, Clone)]
struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn new(model: &str, form: &impl Form) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            id: format!("{}-{:032x}", form.prefix(), rand::random::<u128>()),
            created: now.map_or(0, |time| time.as_secs()),
            model: model.to_owned(),
        }
    }

    fn json(&self, object: &str, choices: &[Value]) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}

/// `finish_reason`.
fn finish_reason(finish: Option<Finish>) -> Value {
    finish.map_or(Value::Null, |finish| finish.name().into())
}
