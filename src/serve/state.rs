//! What all requests share, and the bodies that they bring.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, header};
use http_body_util::LengthLimitError;
use tokio::time::timeout;

use super::fields::Fields;
use super::keys::Keys;
use super::limits::Limits;
use super::metrics::Metrics;
use super::models::{Model, Models};
use super::problem::Problem;

/// Time for a request's body to arrive.
const ARRIVAL: Duration = Duration::from_mins(1);

/// What all requests share.
#[derive(Debug)]
pub(super) struct App {
    pub models: Models,
    pub limits: Limits,
    pub keys: Keys,
    pub metrics: Metrics,
    pub stopping: AtomicBool,
}

impl App {
    /// The model that a request names.
    pub fn model(&self, fields: &mut Fields) -> Result<Arc<Model>, Problem> {
        let name: String = fields.need("model", "the name of a model")?;
        self.models.find(&name).cloned()
    }

    /// Whether requests are answered: every model is loaded or has failed, one at least can be
    /// asked, and the server doesn't stop.
    pub fn is_ready(&self) -> bool {
        let settled = self.models.all().all(|model| model.is_settled());
        let serves = self.models.all().any(|model| model.serves());
        settled && serves && !self.stopping.load(Ordering::SeqCst)
    }
}

/// The body of a request, which is small enough and arrived in time.
pub(super) struct Received(pub Bytes);

impl FromRequest<Arc<App>> for Received {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, app: &Arc<App>) -> Result<Self, Problem> {
        if app.stopping.load(Ordering::SeqCst) {
            return Err(Problem::not_now("the server is stopping"));
        }
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.map_or(&b""[..], HeaderValue::as_bytes);
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
        if !kind.trim_ascii().eq_ignore_ascii_case(b"application/json") {
            return Err(Problem::no_json());
        }
        let most = app.limits.max_request_bytes;
        match timeout(ARRIVAL, to_bytes(request.into_body(), most)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(error)) if is_too_large(&error) => Err(Problem::too_large(most)),
            Ok(Err(_)) => Err(Problem::request("the request's body is broken off")),
            Err(_) => Err(Problem::too_slow()),
        }
    }
}

/// Whether a body was read no further since it is too large.
fn is_too_large(error: &axum::Error) -> bool {
    error
        .source()
        .is_some_and(<dyn Error>::is::<LengthLimitError>)
}
