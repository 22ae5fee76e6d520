//! Routes, and what holds for all of them: keys, sizes, times.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::problem::{Json, Problem};
use super::state::App;
use super::{inference, openai};

pub(super) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/rerank", post(openai::rerank))
        .route("/v1/images/generations", post(openai::images))
        .route("/v2", get(inference::server))
        .route("/v2/models/{name}", get(inference::model))
        .route("/v2/models/{name}/infer", post(inference::infer))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(description))
        .route_layer(from_fn_with_state(Arc::clone(&app), check_key));
    Router::new()
        .merge(api)
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/v2/health/live", get(inference::live))
        .route("/v2/health/ready", get(inference::ready))
        .route("/v2/models/{name}/ready", get(inference::model_ready))
        .fallback(|| async { Problem::not_found("there is no such route", "unknown_url") })
        .method_not_allowed_fallback(|| async { Problem::wrong_method() })
        .layer(from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

async fn check_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let given = request.headers().get(header::AUTHORIZATION);
    if app.keys.admit(given.map(HeaderValue::as_bytes)) {
        Ok(next.run(request).await)
    } else {
        Err(Problem::key())
    }
}

async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("unknown", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    app.metrics.answered(&route, response.status().as_u16());
    response
}

async fn models(State(app): State<Arc<App>>) -> Json {
    let data: Vec<Value> = app
        .models
        .all()
        .map(|model| listed(&model.name, model.created))
        .collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Json, Problem> {
    let model = app.models.find(&name)?;
    Ok(Json(listed(&model.name, model.created)))
}

fn listed(name: &str, created: u64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "dlc"})
}

async fn health() -> &'static str {
    "ok\n"
}

/// Whether requests are answered: 503 while models load, where none could be, and at the end.
async fn ready(State(app): State<Arc<App>>) -> Response {
    // Why one failed may name paths, and is told to who has a key.
    let state = |model: &super::models::Model| match (model.is_settled(), model.serves()) {
        (false, _) => "loading",
        (true, true) => "ready",
        (true, false) => "failed",
    };
    let models: serde_json::Map<String, Value> = app
        .models
        .all()
        .map(|model| (model.name.clone(), state(model).into()))
        .collect();
    let (ready, stopping) = (app.is_ready(), app.stopping.load(Ordering::SeqCst));
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({"ready": ready, "stopping": stopping, "models": models});
    (status, Json(body)).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let models: Vec<_> = app
        .models
        .all()
        .map(|model| (model.name.as_str(), &*model.metrics))
        .collect();
    let text = app.metrics.render(&models);
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn description() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, include_str!("openapi.json")).into_response()
}
