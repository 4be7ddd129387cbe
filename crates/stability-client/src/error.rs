//! What can go wrong, reduced once to one enum, and what each failure means for a caller.

use std::fmt::Display;
use std::time::Duration;

use serde::Deserialize;

use crate::budget::BudgetError;
use crate::quota::QuotaUnavailable;

/// Something in between did not wait for the picture, which may be made (and charged) all the same.
const GATEWAY_TIMEOUTS: [u16; 4] = [408, 504, 522, 524];
/// How many characters of a body that is not the API's JSON are kept.
const KEPT_CHARS: usize = 200;

/// A request that the API would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not allowed; {allowed}")]
pub struct InvalidRequest {
    /// The API's name of the field.
    pub field: &'static str,
    /// What was given; of a prompt, its length.
    pub value: String,
    /// What the API takes.
    pub allowed: String,
}

impl InvalidRequest {
    pub(crate) fn new(field: &'static str, value: impl Display, allowed: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), allowed: allowed.into() }
    }
}

/// A whole picture that the caller cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct UnusablePicture {
    /// Why, in a sentence.
    pub reason: String,
    /// Whether it was damaged on its way. If not, the same seed would make the same picture again.
    pub damaged: bool,
}

/// What the API said when it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {}: {message}", .name.as_deref().unwrap_or("(no name)"))]
pub struct ApiFailure {
    /// The HTTP status.
    pub status: u16,
    /// The API's id of this failure, for their support.
    pub id: Option<String>,
    /// The API's name of the kind of failure, such as `invalid_prompts`.
    pub name: Option<String>,
    /// The API's sentence, or a body that is not its JSON; of each of these texts the first 200 characters, without control characters.
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
    /// Reads an error body; any bytes will do.
    pub(crate) fn read(status: u16, body: &[u8]) -> Self {
        if let Ok(ErrorBody { id, name, message, errors }) = serde_json::from_slice::<ErrorBody>(body) {
            let message = message.unwrap_or_else(|| errors.join("; "));
            let short = |text: Option<String>| text.as_deref().map(first_chars);
            Self { status, id: short(id), name: short(name), message: first_chars(&message) }
        } else {
            let text = String::from_utf8_lossy(&body[..body.len().min(4 * KEPT_CHARS)]);
            Self { status, id: None, name: None, message: first_chars(text.trim()) }
        }
    }

    fn is_named(&self, names: &[&str]) -> bool {
        self.name.as_deref().is_some_and(|name| names.contains(&name))
    }

    fn speaks_of(&self, words: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        words.iter().any(|word| message.contains(word))
    }
}

/// The beginning of a text, without what neither a log nor a database takes.
fn first_chars(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(KEPT_CHARS).collect()
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is out of the API's ranges and was not sent.
    #[error("the request is not valid")]
    InvalidRequest(#[from] InvalidRequest),
    /// No connection could be made.
    #[error("cannot connect to the API: {0}")]
    Connect(String),
    /// The answer did not come in time; the API may have made (and charged) the picture all the same.
    #[error("the API did not answer in time")]
    Timeout,
    /// The connection broke before the answer was complete; it may have been charged.
    #[error("the connection to the API broke: {0}")]
    Interrupted(String),
    /// Too many requests; the account may be locked out.
    #[error("the API's rate limit was exceeded ({failure})")]
    RateLimited {
        /// How long the API asks to wait.
        retry_after: Option<Duration>,
        /// What it said.
        failure: ApiFailure,
    },
    /// The quota could not be asked, so nothing was sent.
    #[error(transparent)]
    Quota(#[from] QuotaUnavailable),
    /// The request could not be paid for, so it was not sent.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The caller wants no further request.
    #[error("stopped before the next request")]
    Stopped,
    /// The API failed.
    #[error("the API failed ({failure})")]
    Server {
        /// How long the API asks to wait.
        retry_after: Option<Duration>,
        /// What it said.
        failure: ApiFailure,
    },
    /// The API made something, and says itself that it went wrong (`finishReason: ERROR`).
    #[error("the API could not finish the picture")]
    Unfinished,
    /// The API refuses this request.
    #[error("the API refuses the request ({0})")]
    Rejected(ApiFailure),
    /// The prompt is against the API's content policy.
    #[error("the prompt is refused by content policy ({0})")]
    ContentPolicy(ApiFailure),
    /// The picture was made and withheld (`finishReason: CONTENT_FILTERED`).
    #[error("the picture was filtered by content policy")]
    Filtered,
    /// The key is not accepted, or may not do this.
    #[error("the API does not accept the key ({0})")]
    Unauthorized(ApiFailure),
    /// The account has no credits left.
    #[error("the account is out of credit ({0})")]
    OutOfCredit(ApiFailure),
    /// The engine does not exist, or was retired.
    #[error("the API does not know the engine ({0})")]
    UnknownEngine(ApiFailure),
    /// A good status with a picture that is not whole, or none at all.
    #[error("the picture is damaged: {size_bytes} bytes that are no whole PNG, JPEG or WebP")]
    Damaged {
        /// How much of it came.
        size_bytes: usize,
    },
    /// A whole picture that the caller did not accept.
    #[error("the picture cannot be used: {0}")]
    Unusable(UnusablePicture),
    /// A good status with a body that holds no picture.
    #[error("the API's answer cannot be decoded: {0}")]
    Undecodable(String),
}

/// What a failure means for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorClass {
    /// The same request may succeed later.
    pub retryable: bool,
    /// Every other request of this account, or of this budget, would meet the same failure.
    pub fatal: bool,
    /// The account may have been charged for it.
    pub possibly_charged: bool,
}

impl Error {
    /// Reduces an HTTP status and its body to a failure.
    ///
    /// Source: the error table of the v1 specification, and what gateways in front of it answer.
    pub(crate) fn from_status(failure: ApiFailure, retry_after: Option<Duration>) -> Self {
        const CONTENT: &[&str] = &["content policy", "content_policy", "moderation", "filtered", "invalid prompts"];
        const CREDIT: &[&str] = &["balance", "credits", "payment required"];
        let status = failure.status;
        let about_content = failure.is_named(&["invalid_prompts", "content_moderation"])
            || (failure.name.is_none() && failure.speaks_of(CONTENT));
        let about_credit = failure.is_named(&["insufficient_balance", "payment_required"])
            || (matches!(status, 400 | 429) && failure.speaks_of(CREDIT));
        match status {
            402 => Self::OutOfCredit(failure),
            400 | 429 if about_credit => Self::OutOfCredit(failure),
            400 | 403 if about_content => Self::ContentPolicy(failure),
            401 | 403 => Self::Unauthorized(failure),
            404 => Self::UnknownEngine(failure),
            429 => Self::RateLimited { retry_after, failure },
            408 | 500..=599 => Self::Server { retry_after, failure },
            _ => Self::Rejected(failure),
        }
    }

    /// What this failure means for a caller.
    pub fn class(&self) -> ErrorClass {
        const RETRYABLE: ErrorClass = ErrorClass { retryable: true, fatal: false, possibly_charged: false };
        const PERMANENT: ErrorClass = ErrorClass { retryable: false, fatal: false, possibly_charged: false };
        match self {
            Self::Server { failure, .. } => {
                ErrorClass { possibly_charged: GATEWAY_TIMEOUTS.contains(&failure.status), ..RETRYABLE }
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
            Self::Filtered => ErrorClass { possibly_charged: true, ..PERMANENT },
            Self::Unauthorized(_)
            | Self::OutOfCredit(_)
            | Self::UnknownEngine(_)
            | Self::Budget(BudgetError::Exceeded(_)) => ErrorClass { fatal: true, ..PERMANENT },
        }
    }

    /// How long the API asks to wait before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A short name of the kind, for logs and metrics.
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
            Self::OutOfCredit(_) => "insufficient_credits",
            Self::UnknownEngine(_) => "unknown_engine",
            Self::Damaged { .. } => "damaged",
            Self::Unusable(_) => "unusable",
            Self::Undecodable(_) => "undecodable",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(status: u16, body: &str) -> Error {
        Error::from_status(ApiFailure::read(status, body.as_bytes()), None)
    }

    #[test]
    fn each_status_and_body_has_its_kind() {
        let named = |name: &str, message: &str| format!(r#"{{"id":"9160","name":"{name}","message":"{message}"}}"#);
        let check = |status, body: &str, kind: &str| assert_eq!(read(status, body).kind(), kind, "{status} {body}");
        check(400, &named("bad_request", "bad"), "rejected");
        check(400, &named("invalid_sdxl_v1_dimensions", "sizes"), "rejected");
        check(400, &named("invalid_samples", "samples"), "rejected");
        check(400, &named("invalid_prompts", "refused"), "content_policy");
        check(403, &named("content_moderation", "flagged"), "content_policy");
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
    fn what_the_api_said_is_kept() {
        let error = read(400, r#"{"id":"9160aa70","name":"invalid_samples","message":"samples: above 10"}"#);
        assert_eq!(error.to_string(), "the API refuses the request (400 invalid_samples: samples: above 10)");
        let html = format!("<html>{}", "x".repeat(1_000));
        let Error::Server { failure, .. } = read(502, &html) else { panic!("a 502 is a server failure") };
        assert_eq!(failure.message.len(), 200);
        let v2 = read(422, r#"{"id":"1","name":"unprocessable","errors":["seed: too big","model: unknown"]}"#);
        assert!(v2.to_string().contains("seed: too big; model: unknown"), "{v2}");
    }

    #[test]
    fn each_error_has_its_class() {
        assert_eq!(Error::Timeout.class(), ErrorClass { retryable: true, fatal: false, possibly_charged: true });
        assert_eq!(read(400, "{}").class(), ErrorClass { retryable: false, fatal: false, possibly_charged: false });
        assert_eq!(read(402, "{}").class(), ErrorClass { retryable: false, fatal: true, possibly_charged: false });
        assert_eq!(read(500, "{}").class(), ErrorClass { retryable: true, fatal: false, possibly_charged: false });
        assert_eq!(Error::Filtered.class(), ErrorClass { retryable: false, fatal: false, possibly_charged: true });
    }

    proptest! {
        #[test]
        fn any_status_and_bytes_are_a_failure(status in 300..600_u16, body in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let error = Error::from_status(ApiFailure::read(status, &body), None);
            prop_assert!(error.to_string().len() < 2_000);
        }
    }
}
