//! HTTP requests and responses as plain data, independent of the HTTP library.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

/// Maximum length of a response body, in bytes: 64 MiB. Ten images of one megapixel take half of it in base64.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// A request to the API.
#[derive(Debug, Clone)]
pub(crate) struct HttpRequest {
    /// Relative to the base URL, without a leading slash.
    pub(crate) path: String,
    pub(crate) body: HttpBody,
    pub(crate) accept: &'static str,
    /// Number of requests that the same call sent before.
    #[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "for spans"))]
    pub(crate) resend_count: u32,
}

/// Body of a request, sent as `POST`; a request without a body is a `GET`.
#[derive(Debug, Clone)]
pub(crate) enum HttpBody {
    None,
    Json(Value),
    /// As `multipart/form-data`.
    Form(Vec<(&'static str, FormValue)>),
}

/// The value of a form field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FormValue {
    Text(String),
    File { bytes: Bytes, media_type: &'static str },
}

#[cfg(feature = "tracing")]
impl HttpBody {
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::None => "GET",
            Self::Json(_) | Self::Form(_) => "POST",
        }
    }
}

/// A complete response of any status.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    /// The media type without its parameters, in lower case.
    pub(crate) content_type: Option<String>,
    /// The `finish-reason` header, which accompanies an image file.
    pub(crate) finish_reason: Option<String>,
    /// The `seed` header, which accompanies an image file.
    pub(crate) seed: Option<u32>,
    pub(crate) body: Bytes,
}
