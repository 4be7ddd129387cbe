//! The error of a request, and its class: what it means for the caller.

use std::fmt::Display;
use std::time::Duration;

use serde::Deserialize;

use crate::budget::BudgetError;
use crate::quota::QuotaUnavailable;

/// Statuses of timeouts at a gateway. The API may have generated (and charged) the image nevertheless.
const GATEWAY_TIMEOUT_STATUSES: [u16; 4] = [408, 504, 522, 524];
/// Maximum number of characters kept of each text in an error response.
const MAX_MESSAGE_CHARS: usize = 200;

/// A request option outside the API's ranges, or one that the engine does not support.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not allowed; {allowed}")]
#[non_exhaustive]
pub struct InvalidRequest {
    /// The API's name of the field.
    pub field: &'static str,
    /// The rejected value; of a prompt, its length.
    pub value: String,
    /// What is allowed instead, or that the engine does not support the option.
    pub allowed: String,
}

impl InvalidRequest {
    /// The error of a field with a value that is not allowed.
    pub fn new(field: &'static str, value: impl Display, allowed: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), allowed: allowed.into() }
    }
}

/// A complete image that the caller cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct UnusableImage {
    /// Why the image cannot be used.
    pub reason: String,
    /// Whether the image was damaged in transit. If not, the same seed would produce the same image again.
    pub damaged: bool,
}

/// An error response of the API.
///
/// `id`, `name` and `message` hold at most 200 characters each, with control characters replaced by spaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {}: {message}", .name.as_deref().unwrap_or("(no name)"))]
#[non_exhaustive]
pub struct ApiFailure {
    /// The HTTP status code.
    pub status: u16,
    /// The API's id of this failure, for support requests.
    pub id: Option<String>,
    /// The API's name for this kind of failure, such as `invalid_prompts`.
    pub name: Option<String>,
    /// The API's message, or the start of a body that is not the API's JSON.
    pub message: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    id: Option<String>,
    name: Option<String>,
    message: Option<String>,
    #[serde(default)]
    errors: Vec<String>,
}

impl ApiFailure {
    /// Parses the body of an error response; accepts any bytes.
    pub(crate) fn parse(status: u16, body: &[u8]) -> Self {
        if let Ok(ErrorBody { id, name, message, errors }) = serde_json::from_slice::<ErrorBody>(body) {
            let message = message.unwrap_or_else(|| errors.join("; "));
            let short = |text: Option<String>| text.as_deref().map(sanitize);
            Self { status, id: short(id), name: short(name), message: sanitize(&message) }
        } else {
            let text = String::from_utf8_lossy(&body[..body.len().min(4 * MAX_MESSAGE_CHARS)]);
            Self { status, id: None, name: None, message: sanitize(text.trim()) }
        }
    }

    fn is_named(&self, names: &[&str]) -> bool {
        self.name.as_deref().is_some_and(|name| names.contains(&name))
    }

    fn mentions(&self, words: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        words.iter().any(|word| message.contains(word))
    }
}

/// Truncates a text and replaces control characters, which logs and databases do not accept.
fn sanitize(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect()
}

/// Why a request returned no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is outside the API's ranges and was not sent.
    #[error(transparent)]
    InvalidRequest(#[from] InvalidRequest),
    /// No connection to the API could be established.
    #[error("cannot connect to the API: {0}")]
    Connect(String),
    /// The request timed out; the API may have generated (and charged) the image nevertheless.
    #[error("the request to the API timed out")]
    Timeout,
    /// The connection was interrupted before the response was complete; the request may have been charged.
    #[error("the connection to the API was interrupted: {0}")]
    Interrupted(String),
    /// The API's rate limit was exceeded (status 429); the API may have locked the account out.
    #[error("the API's rate limit was exceeded ({failure})")]
    RateLimited {
        /// The wait that the API asked for in `Retry-After`.
        retry_after: Option<Duration>,
        /// The API's error response.
        failure: ApiFailure,
    },
    /// The quota is unavailable, or granted no permit in time; the request was not sent.
    #[error(transparent)]
    Quota(#[from] QuotaUnavailable),
    /// The request could not be reserved in the budget and was not sent.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The caller cancelled [`CallOptions::stop`](crate::CallOptions::stop).
    #[error("the call was stopped before the next request")]
    Stopped,
    /// The API, or a gateway in front of it, failed (status 408 or 5xx).
    #[error("the API returned a server error ({failure})")]
    Server {
        /// The wait that the API asked for in `Retry-After`.
        retry_after: Option<Duration>,
        /// The API's error response.
        failure: ApiFailure,
    },
    /// The API reported that generating the image failed (`finishReason: ERROR`).
    #[error("the API could not finish the image")]
    Unfinished,
    /// The API rejected this request for another reason, such as an invalid option.
    #[error("the API rejected the request ({0})")]
    Rejected(ApiFailure),
    /// The prompt, or the image to upscale, violates the API's content policy.
    #[error("the prompt is refused by content policy ({0})")]
    ContentPolicy(ApiFailure),
    /// The image was generated and withheld by content policy (`finishReason: CONTENT_FILTERED`).
    #[error("the image was filtered by content policy")]
    Filtered,
    /// The API key is invalid, or lacks the permission for this request.
    #[error("the API rejected the API key ({0})")]
    Unauthorized(ApiFailure),
    /// The account has not enough credits.
    #[error("the account has insufficient credits ({0})")]
    InsufficientCredits(ApiFailure),
    /// The engine or the upscaler does not exist, or was retired (status 404).
    #[error("the API does not know the engine ({0})")]
    UnknownEngine(ApiFailure),
    /// A 200 response whose image is truncated, or is not a PNG, JPEG or WebP file.
    #[error("the image is damaged: {size_bytes} bytes are not a complete PNG, JPEG or WebP file")]
    Damaged {
        /// Number of bytes received.
        size_bytes: usize,
    },
    /// A complete image that the caller's `accept` function rejected.
    #[error("the image cannot be used: {0}")]
    Unusable(UnusableImage),
    /// The response body is not the expected JSON, or contains no image.
    #[error("the API's response cannot be decoded: {0}")]
    Undecodable(String),
    /// The response body is longer than [`MAX_BODY_BYTES`](crate::MAX_BODY_BYTES). The same request would return it
    /// again.
    #[error("the API's response is longer than {} bytes", crate::MAX_BODY_BYTES)]
    TooLong,
}

/// What an [`Error`] means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorClass {
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Whether every other request of this account, or of this budget, would fail in the same way.
    pub fatal: bool,
    /// Whether the account may have been charged for the request.
    pub possibly_charged: bool,
}

impl UnusableImage {
    /// An image that was damaged in transit: the same request can return a good one.
    pub fn damaged(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), damaged: true }
    }

    /// An image that is as the API made it: the same seed would produce it again.
    pub fn rejected(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), damaged: false }
    }
}

impl Error {
    /// Classifies an error response by its status, name and message.
    ///
    /// Source: the error table of the v1 specification, and the responses of gateways in front of the API.
    pub(crate) fn from_api_failure(failure: ApiFailure, retry_after: Option<Duration>) -> Self {
        const CONTENT_POLICY_WORDS: &[&str] =
            &["content policy", "content_policy", "moderation", "filtered", "invalid prompts"];
        const CREDIT_WORDS: &[&str] = &["balance", "credits", "payment required"];
        let status = failure.status;
        // A name says more than the words of a message.
        let named_content = failure.is_named(&["invalid_prompts", "content_moderation"]);
        let about_content = failure.name.is_none() && failure.mentions(CONTENT_POLICY_WORDS);
        let about_credit = failure.is_named(&["insufficient_balance", "payment_required"])
            || (matches!(status, 400 | 429) && failure.mentions(CREDIT_WORDS));
        match status {
            400 | 403 if named_content => Self::ContentPolicy(failure),
            402 => Self::InsufficientCredits(failure),
            400 | 429 if about_credit => Self::InsufficientCredits(failure),
            400 | 403 if about_content => Self::ContentPolicy(failure),
            401 | 403 => Self::Unauthorized(failure),
            404 => Self::UnknownEngine(failure),
            429 => Self::RateLimited { retry_after, failure },
            408 | 500..=599 => Self::Server { retry_after, failure },
            _ => Self::Rejected(failure),
        }
    }

    /// Returns whether the failure is retryable, fatal, and possibly charged.
    pub fn class(&self) -> ErrorClass {
        const RETRYABLE: ErrorClass = ErrorClass { retryable: true, fatal: false, possibly_charged: false };
        const PERMANENT: ErrorClass = ErrorClass { retryable: false, fatal: false, possibly_charged: false };
        match self {
            Self::Server { failure, .. } => {
                ErrorClass { possibly_charged: GATEWAY_TIMEOUT_STATUSES.contains(&failure.status), ..RETRYABLE }
            }
            Self::Connect(_)
            | Self::RateLimited { .. }
            | Self::Quota(_)
            | Self::Budget(BudgetError::Unavailable(_)) => RETRYABLE,
            Self::Timeout
            | Self::Interrupted(_)
            | Self::Unfinished
            | Self::Damaged { .. }
            | Self::Unusable(_)
            | Self::Undecodable(_) => ErrorClass { possibly_charged: true, ..RETRYABLE },
            Self::InvalidRequest(_) | Self::Rejected(_) | Self::ContentPolicy(_) | Self::Stopped => PERMANENT,
            Self::Filtered | Self::TooLong => ErrorClass { possibly_charged: true, ..PERMANENT },
            Self::Unauthorized(_)
            | Self::InsufficientCredits(_)
            | Self::UnknownEngine(_)
            | Self::Budget(BudgetError::Exceeded(_)) => ErrorClass { fatal: true, ..PERMANENT },
        }
    }

    /// Returns how long the API asks to wait before the next request, if it does: at most one hour.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns a short name of the kind of failure, such as `rate_limited`, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::Connect(_) => "connect",
            Self::Timeout => "timeout",
            Self::Interrupted(_) => "interrupted",
            Self::RateLimited { .. } => "rate_limited",
            Self::Quota(_) => "quota",
            Self::Budget(_) => "budget",
            Self::Stopped => "stopped",
            Self::Server { .. } => "server",
            Self::Unfinished => "unfinished",
            Self::Rejected(_) => "rejected",
            Self::ContentPolicy(_) => "content_policy",
            Self::Filtered => "filtered",
            Self::Unauthorized(_) => "unauthorized",
            Self::InsufficientCredits(_) => "insufficient_credits",
            Self::UnknownEngine(_) => "unknown_engine",
            Self::Damaged { .. } => "damaged",
            Self::Unusable(_) => "unusable",
            Self::Undecodable(_) => "undecodable",
            Self::TooLong => "too_long",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_error(status: u16, body: &str) -> Error {
        Error::from_api_failure(ApiFailure::parse(status, body.as_bytes()), None)
    }

    #[test]
    fn each_status_and_body_has_its_kind() {
        let named = |name: &str, message: &str| format!(r#"{{"id":"9160","name":"{name}","message":"{message}"}}"#);
        let check =
            |status, body: &str, kind: &str| assert_eq!(parse_error(status, body).kind(), kind, "{status} {body}");
        check(400, &named("bad_request", "bad"), "rejected");
        check(400, &named("invalid_sdxl_v1_dimensions", "sizes"), "rejected");
        check(400, &named("invalid_samples", "samples"), "rejected");
        check(400, &named("invalid_prompts", "refused"), "content_policy");
        check(403, &named("content_moderation", "flagged"), "content_policy");
        check(400, &named("content_moderation", "the words credits and balance"), "content_policy");
        check(400, r#"{"message": "Content policy violation"}"#, "content_policy");
        check(400, r#"{"message": "prompt was Filtered"}"#, "content_policy");
        check(400, &named("bad_request", "the word filtered in a named failure"), "rejected");
        check(400, &named("bad_request", "your balance is too low"), "insufficient_credits");
        check(429, &named("rate_limit", "not enough credits"), "insufficient_credits");
        check(402, "", "insufficient_credits");
        check(400, &named("insufficient_balance", "x"), "insufficient_credits");
        check(401, &named("unauthorized", "missing authorization header"), "unauthorized");
        check(403, &named("permission_denied", "x"), "unauthorized");
        check(404, &named("not_found", "the specified engine was not found"), "unknown_engine");
        check(413, "", "rejected");
        check(422, "{}", "rejected");
        check(429, &named("rate_limit_exceeded", "150 in 10 s"), "rate_limited");
        check(429, "<html>slow down</html>", "rate_limited");
        check(500, &named("server_error", "x"), "server");
        check(502, "<html>bad gateway</html>", "server");
        check(503, "", "server");
        check(504, "[]", "server");
        check(302, "", "rejected");
    }

    #[test]
    fn api_message_is_kept_up_to_its_limit() {
        let error = parse_error(400, r#"{"id":"9160aa70","name":"invalid_samples","message":"samples: above 10"}"#);
        assert_eq!(error.to_string(), "the API rejected the request (400 invalid_samples: samples: above 10)");
        let html = format!("<html>{}", "x".repeat(1_000));
        let Error::Server { failure, .. } = parse_error(502, &html) else { panic!("status 502 is a server error") };
        assert_eq!(failure.message.len(), 200);
        let v2 = parse_error(422, r#"{"id":"1","name":"unprocessable","errors":["seed: too big","model: unknown"]}"#);
        assert!(v2.to_string().contains("seed: too big; model: unknown"), "{v2}");
    }

    #[test]
    fn each_error_has_its_class() {
        assert_eq!(Error::Timeout.class(), ErrorClass { retryable: true, fatal: false, possibly_charged: true });
        assert_eq!(
            parse_error(400, "{}").class(),
            ErrorClass { retryable: false, fatal: false, possibly_charged: false }
        );
        assert_eq!(
            parse_error(402, "{}").class(),
            ErrorClass { retryable: false, fatal: true, possibly_charged: false }
        );
        assert_eq!(
            parse_error(500, "{}").class(),
            ErrorClass { retryable: true, fatal: false, possibly_charged: false }
        );
        assert_eq!(Error::Filtered.class(), ErrorClass { retryable: false, fatal: false, possibly_charged: true });
    }

    proptest! {
        #[test]
        fn every_error_response_is_classified(status in 300..600_u16, body in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let error = Error::from_api_failure(ApiFailure::parse(status, &body), None);
            prop_assert!(error.to_string().len() < 2_000);
        }
    }
}
