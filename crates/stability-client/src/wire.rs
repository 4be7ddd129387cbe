//! One HTTP request and its response, as the client sees them: plain data without behaviour.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

/// The longest body that is read, in bytes (64 MiB): ten pictures of the largest size in base64 fit twice.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// A request to the API.
#[derive(Debug, Clone)]
pub(crate) struct HttpRequest {
    /// Below the base URL, without a leading slash.
    pub(crate) path: String,
    pub(crate) body: HttpBody,
    pub(crate) accept: &'static str,
    /// Requests that were sent for the same purpose before.
    pub(crate) resends: u32,
}

/// What is sent: `POST` with a body, or `GET` without one.
#[derive(Debug, Clone)]
pub(crate) enum HttpBody {
    None,
    Json(Value),
    /// As `multipart/form-data`.
    Form(Vec<(&'static str, String)>),
}

/// A complete response of any status.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    /// Without its parameters.
    pub(crate) content_type: Option<String>,
    /// Of a response that is a picture.
    pub(crate) finish_reason: Option<String>,
    /// Of a response that is a picture.
    pub(crate) seed: Option<u32>,
    pub(crate) body: Bytes,
}
