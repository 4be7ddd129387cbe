//! Error responses, worded like those of the API.

use axum::Json;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The error id, which identifies a failure to the API's support; always the same here.
const ERROR_ID: &str = "9160aa70222d77b8";

/// An API error: HTTP status, and name and message of the error body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) name: &'static str,
    pub(crate) message: String,
    pub(crate) retry_after_s: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: u16, name: &'static str, message: impl Into<String>) -> Self {
        Self { status, name, message: message.into(), retry_after_s: None }
    }

    /// The API's general error for this status.
    pub(crate) fn from_status(status: u16) -> Self {
        let (name, message) = match status {
            400 => ("bad_request", "the request is invalid"),
            401 => ("unauthorized", "missing or incorrect authorization header"),
            402 => ("payment_required", "your organization does not have enough balance to request this action"),
            403 => ("permission_denied", "you lack the necessary permissions to perform this action"),
            404 => ("not_found", "the specified engine was not found"),
            405 => ("method_not_allowed", "the method is not allowed for this path"),
            413 => ("payload_too_large", "the request body is too large"),
            422 => ("unprocessable_entity", "the request is well formed, but it is refused"),
            429 => {
                ("rate_limit_exceeded", "you have exceeded the rate limit of 150 requests within a 10 second period")
            }
            _ => ("server_error", "some unexpected server error occurred"),
        };
        Self::new(status, name, message)
    }
}

impl ApiError {
    /// The error response of the v2beta API.
    pub(crate) fn into_v2beta(self) -> Response {
        let body = json!({"id": ERROR_ID, "name": self.name, "errors": [self.message]});
        self.into_response_with(body)
    }

    fn into_response_with(self, body: serde_json::Value) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = Json(body);
        let retry_after: Option<[(HeaderName, String); 1]> =
            self.retry_after_s.map(|seconds| [(header::RETRY_AFTER, seconds.to_string())]);
        match retry_after {
            None => (status, body).into_response(),
            Some(headers) => (status, headers, body).into_response(),
        }
    }
}

impl IntoResponse for ApiError {
    /// The error response of the v1 API.
    fn into_response(self) -> Response {
        let body = json!({"id": ERROR_ID, "name": self.name, "message": self.message});
        self.into_response_with(body)
    }
}
