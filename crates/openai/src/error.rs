//! Errors in the shape of OpenAI's interface.

use std::borrow::Cow;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::{Error, Refusal};
use serde_json::json;

/// A refused or failed request.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// The field that is wrong.
    param: Option<Cow<'static, str>>,
    code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn bad_request(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            message: message.into(),
            param: param.map(Cow::Borrowed),
            code: None,
        }
    }

    /// The value of a field cannot be read, or the field is none of the interface.
    pub(crate) fn bad_field(field: &str, problem: &str) -> Self {
        // The root is a dot.
        if field == "." {
            return Self::bad_request(problem, None);
        }
        Self::bad_request(format!("{field}: {problem}"), None).about(field)
    }

    /// The same about this field.
    pub(crate) fn about(self, field: &str) -> Self {
        Self { param: Some(Cow::Owned(field.to_owned())), ..self }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::bad_request(message, None) }
    }

    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here; this server has {served:?}");
        Self { code: Some("model_not_found"), param: Some("model".into()), ..Self::not_found(message) }
    }

    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        let (status, code) = (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"));
        Self { status, kind: "rate_limit_error", code, ..Self::bad_request(message, None) }
    }

    /// What was there is over.
    pub(crate) fn gone(message: impl Into<String>) -> Self {
        Self { status: StatusCode::GONE, code: Some("gone"), ..Self::bad_request(message, None) }
    }

    /// Something else was said before.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, code: Some("conflict"), ..Self::bad_request(message, None) }
    }

    /// An episode has no room for what is asked: the agent ends it.
    pub(crate) fn exhausted(message: impl Into<String>) -> Self {
        Self { code: Some("episode_exhausted"), ..Self::bad_request(message, None) }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { status, kind: "service_unavailable_error", ..Self::bad_request(message, None) }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, kind: "server_error", ..Self::bad_request(message, None) }
    }

    /// Whether a prompt leaves no room in the context.
    pub(crate) fn is_context(&self) -> bool {
        self.code == Some("context_length_exceeded")
    }

    /// As JSON.
    pub(crate) fn body(&self) -> serde_json::Value {
        let Self { kind, message, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::Busy { .. } | Refusal::Unread { .. } => Self::too_many(refusal.to_string()),
            Refusal::Context { .. } => Self {
                code: Some("context_length_exceeded"),
                ..Self::bad_request(refusal.to_string(), Some("messages"))
            },
            _ => Self::bad_request(refusal.to_string(), None),
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::internal(error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry =
            self.status == StatusCode::TOO_MANY_REQUESTS || self.status == StatusCode::SERVICE_UNAVAILABLE;
        let body = (self.status, Json(self.body()));
        if retry { ([("retry-after", "1")], body).into_response() } else { body.into_response() }
    }
}
