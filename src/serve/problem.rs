//! What a request is refused with, in the form that OpenAI's clients read.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dlc_errors::{Fault, Faulty};
use serde_json::{Value, json};

/// Seconds after which a client may ask again where the queue is full.
const RETRY_AFTER: u64 = 1;

/// Why a request isn't answered.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    /// The field that it is about.
    param: Option<String>,
    /// Whether the same request may be answered soon.
    passes: bool,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            message: message.into(),
            param: None,
            passes: false,
        }
    }

    /// A client may ask again soon.
    fn passes(self) -> Self {
        Self {
            passes: true,
            ..self
        }
    }

    fn code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// The request contradicts itself or the model.
    pub fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request does.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(name.to_owned()),
            ..Self::request(message)
        }
    }

    /// There is no model, or no route, of this name.
    pub fn not_found(message: impl Into<String>, code: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code(code)
    }

    pub fn wrong_method() -> Self {
        let message = "this route takes another method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            message,
        )
    }

    pub fn key() -> Self {
        let message =
            "the request has no API key that this server knows: send `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
            .code("invalid_api_key")
    }

    pub fn too_large(most: usize) -> Self {
        let message = format!("the request has more than {most} bytes (--max-request-bytes)");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
    }

    pub fn too_slow() -> Self {
        let message = "the request didn't arrive in time";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            message,
        )
    }

    /// As many requests wait as may.
    pub fn full(waiting: usize) -> Self {
        let message = format!("{waiting} requests wait already: try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .code("queue_full")
            .passes()
    }

    /// The model can't be asked at all.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// The model isn't loaded yet, or the server ends: another one, or a later request, is answered.
    pub fn not_now(message: impl Into<String>) -> Self {
        Self::unavailable(message).passes()
    }

    /// A web page can't send JSON to another address unasked.
    pub fn no_json() -> Self {
        let message = "requests are JSON: send `Content-Type: application/json`";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(status, "invalid_request_error", message)
    }

    /// The answer takes longer than it may.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("the answer took more than {seconds} s (--timeout)");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message)
    }

    /// Something failed that no request should lead to.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What a library says: whose fault it is decides.
    pub fn of(error: &impl Faulty) -> Self {
        match error.fault() {
            Fault::BadInput | Fault::Unsupported => Self::request(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }

    /// The same in the form of the Open Inference Protocol: a text.
    pub fn as_text(&self) -> Response {
        self.with_body(json!({"error": self.message}))
    }

    fn with_body(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if self.passes {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }

    /// The error as it stands in a stream, too.
    pub fn json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

/// An answer in JSON.
pub(super) struct Json(pub Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, self.0.to_string()).into_response()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.with_body(self.json())
    }
}

#[cfg(test)]
mod tests {
    use dlc_runtime::methods::MethodError;

    use super::*;

    #[test]
    fn a_model_that_fails_is_no_fault_of_the_request() {
        let asked = Problem::of(&MethodError::Input("no such token".to_owned()));
        let broken = Problem::of(&MethodError::Logits {
            position: 3,
            found: "NaN",
        });
        assert_eq!(asked.status, StatusCode::BAD_REQUEST);
        assert_eq!(broken.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
