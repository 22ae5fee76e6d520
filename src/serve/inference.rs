//! The Open Inference Protocol (`KServe`, version 2) for models that read texts: each text is an element
//! of type `BYTES`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dlc_runtime::QueryPair;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, Object};
use super::models::Model;
use super::problem::{Json, Problem};
use super::state::{App, Received};

/// Texts of one request.
const MOST_TEXTS: usize = 2048;
const TEXT: &str = "text";
const QUERY: &str = "query";

/// A refusal as the protocol has it.
pub(super) struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.as_text().into_response()
    }
}

/// A tensor of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    data: Vec<String>,
    #[serde(default, rename = "parameters")]
    _parameters: Option<Value>,
}

/// An output that is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    #[serde(default, rename = "parameters")]
    _parameters: Option<Value>,
}

/// What a model takes and gives.
struct Boundary {
    inputs: &'static [&'static str],
    output: &'static str,
    /// -1 for what depends on the model and the request.
    shape: &'static [i64],
}

impl Boundary {
    fn of(model: &Model) -> Result<Self, Problem> {
        if model.vectors().is_ok() {
            return Ok(Self {
                inputs: &[TEXT],
                output: "embedding",
                shape: &[-1, -1],
            });
        }
        model.relevance().map(|_| Self {
            inputs: &[QUERY, TEXT],
            output: "relevance",
            shape: &[-1],
        })
    }
}

pub(super) async fn server() -> Json {
    Json(json!({"name": "dlc", "version": env!("CARGO_PKG_VERSION"), "extensions": []}))
}

pub(super) async fn live() -> Json {
    Json(json!({"live": true}))
}

/// Whether every model can be asked, or has failed beside one that can.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let ready = app.is_ready();
    status(ready, json!({"ready": ready}))
}

pub(super) async fn model_ready(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let ready = app.models.find(&name)?.serves() && !app.stopping.load(Ordering::SeqCst);
    Ok(status(ready, json!({"name": name, "ready": ready})))
}

fn status(ready: bool, body: Value) -> Response {
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body)).into_response()
}

/// What a model takes and gives.
pub(super) async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json, Refusal> {
    let boundary = Boundary::of(app.models.find(&name)?)?;
    let input = |name: &&str| json!({"name": name, "datatype": "BYTES", "shape": [-1]});
    let inputs: Vec<Value> = boundary.inputs.iter().map(input).collect();
    let output = json!({"name": boundary.output, "datatype": "FP32", "shape": boundary.shape});
    Ok(Json(json!({
        "name": name, "versions": [], "platform": "dlc", "inputs": inputs, "outputs": [output],
    })))
}

/// Vectors of texts, or how well they answer queries.
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    body: Result<Received, Problem>,
) -> Result<Json, Refusal> {
    let Received(body) = body?;
    let model = Arc::clone(app.models.find(&name)?);
    let boundary = Boundary::of(&model)?;
    let mut fields = Fields::parse(&body)?;
    let id: Option<String> = fields.take("id", "a text")?;
    let tensors: Vec<Object<Tensor>> = fields.need(
        "inputs",
        "a list of tensors with `name`, `shape`, `datatype` and `data`, which are texts",
    )?;
    let wanted: Option<Vec<Object<Wanted>>> =
        fields.take("outputs", "a list of outputs that have a `name`")?;
    fields.only("parameters", &json!({}), "no model has parameters")?;
    fields.finish()?;
    for wanted in wanted.into_iter().flatten() {
        if wanted.name != boundary.output {
            let message = format!("the model gives `{}` alone", boundary.output);
            return Err(Problem::field("outputs", message).into());
        }
    }
    let texts = texts(tensors, boundary.inputs)?;
    let deadline = app.limits.deadline();
    let (shape, data): (Vec<usize>, Vec<f32>) = if let Ok(reader) = model.vectors() {
        let found = deadline.keep(reader.read(texts.concat())).await??;
        let width = found.first().map_or(0, |one| one.vector.len());
        let numbers = found.iter().flat_map(|one| one.vector.iter().copied());
        (vec![found.len(), width], numbers.collect())
    } else {
        let reader = model.relevance()?;
        let found = deadline.keep(reader.read(pairs(texts))).await??;
        (
            vec![found.len()],
            found.iter().map(|one| one.score).collect(),
        )
    };
    let output = json!({"name": boundary.output, "datatype": "FP32", "shape": shape, "data": data});
    let mut answer = json!({"model_name": model.name, "outputs": [output]});
    if let Some(id) = id {
        answer["id"] = id.into();
    }
    Ok(Json(answer))
}

/// The texts of the tensors with these names, in their order; all have as many.
fn texts(mut tensors: Vec<Object<Tensor>>, names: &[&str]) -> Result<Vec<Vec<String>>, Problem> {
    let fail = |message: String| Problem::field("inputs", message);
    let mut all: Vec<Vec<String>> = Vec::with_capacity(names.len());
    for name in names {
        let Some(at) = tensors.iter().position(|tensor| tensor.name == *name) else {
            return Err(fail(format!(
                "the model takes {}, and `{name}` is missing",
                names.join(" and ")
            )));
        };
        let tensor = tensors.swap_remove(at);
        let count = tensor.data.len();
        if tensor.datatype != "BYTES" || tensor.shape != [count] {
            return Err(fail(format!(
                "`{name}` must be of datatype BYTES and of the shape [{count}], as it has {count} texts"
            )));
        }
        if count == 0 || count > MOST_TEXTS {
            return Err(fail(format!("`{name}` must have 1 to {MOST_TEXTS} texts")));
        }
        if all.first().is_some_and(|first| first.len() != count) {
            return Err(fail(format!(
                "{} must have as many texts each",
                names.join(" and ")
            )));
        }
        all.push(tensor.0.data);
    }
    match tensors.first() {
        Some(tensor) => Err(fail(format!(
            "the model takes {} alone, and `{}` is another input",
            names.join(" and "),
            tensor.name.escape_debug().take(60).collect::<String>()
        ))),
        None => Ok(all),
    }
}

/// Queries and the texts at their places.
fn pairs(texts: Vec<Vec<String>>) -> Vec<QueryPair> {
    let mut texts = texts.into_iter();
    let queries = texts.next().unwrap_or_default();
    let texts = texts.next().unwrap_or_default();
    let pairs = queries.into_iter().zip(texts);
    pairs
        .map(|(query, text)| QueryPair { query, text })
        .collect()
}
