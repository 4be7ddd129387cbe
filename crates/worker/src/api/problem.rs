//! Errors of the HTTP API: problem details by RFC 9457.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use broker::BrokerError;
use schemars::JsonSchema;
use serde::Serialize;
use store::StoreError;
use tracing::warn;

use crate::error_chain::error_chain;
use crate::storage::StorageError;

/// The media type of a problem.
pub(crate) const CONTENT_TYPE: &str = "application/problem+json";
/// Seconds after which a client may repeat a call that failed because a service cannot be reached.
const RETRY_AFTER_SECONDS: u64 = 5;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: the status and `code` say what is wrong.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "about:blank"))]
    kind: &'static str,
    /// The kind of problem.
    #[schemars(with = "ProblemCode")]
    code: ProblemCode,
    /// The meaning of the status.
    title: String,
    /// The status of the response.
    status: u16,
    /// What is wrong with this call.
    detail: String,
    /// The fields that are not allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    errors: Vec<FieldError>,
    /// Seconds for the header `Retry-After`.
    #[serde(skip)]
    retry_after: Option<u64>,
}

/// A field of a call that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
struct FieldError {
    /// Its name, such as `config.steps`.
    field: String,
    /// Its value and what is allowed.
    message: String,
}

/// The kinds of problems: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProblemCode {
    /// A field of the call is not allowed.
    Invalid,
    /// The call has no valid token.
    Unauthorized,
    /// The token, or the origin of the page, does not allow the call.
    Forbidden,
    /// Too many wrong tokens came from the address.
    TooManyAttempts,
    /// There is no such job, image, dead letter or path.
    NotFound,
    /// The job has ended and was purged.
    Purged,
    /// The path has no such method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTimeout,
    /// Another command has the job id.
    JobIdConflict,
    /// The state of the job or image does not allow the call.
    WrongState,
    /// The body is too large.
    TooLarge,
    /// The body is not JSON by its content type.
    WrongContentType,
    /// The program is at a limit: of calls, of event streams, or of calls that read dead letters.
    Busy,
    /// The program is starting, a service cannot be reached, or the call took too long.
    Unavailable,
}

impl ProblemCode {
    fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::TooManyAttempts => StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Purged => StatusCode::GONE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::JobIdConflict | Self::WrongState => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::WrongContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Problem {
    pub(crate) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        let status = code.status();
        Self {
            kind: "about:blank",
            code,
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    pub(crate) fn unknown_path() -> Self {
        Self::new(ProblemCode::NotFound, "there is no such path")
    }

    /// Fields that are not allowed, from sentences that begin with the field.
    pub(crate) fn invalid(violations: &[String]) -> Self {
        let errors = violations.iter().map(|violation| {
            let (field, message) = violation.split_once(": ").unwrap_or(("", violation));
            FieldError { field: field.to_owned(), message: message.to_owned() }
        });
        Self { errors: errors.collect(), ..Self::new(ProblemCode::Invalid, violations.join("; ")) }
    }

    /// One field that is not allowed.
    pub(crate) fn invalid_field(field: &str, message: impl std::fmt::Display) -> Self {
        Self::invalid(&[format!("{field}: {message}")])
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The meaning of the status.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// What is wrong with the call.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Seconds after which the call may be repeated.
    pub(crate) fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after
    }

    pub(crate) fn code(&self) -> ProblemCode {
        self.code
    }

    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS)
    }
}

/// A service failed: the log says why, the answer only which one.
macro_rules! unavailable_service {
    ($($error:ty => $service:literal),+) => {
        $(impl From<$error> for Problem {
            fn from(error: $error) -> Self {
                warn!(error = error_chain(&error), concat!("a call failed: ", $service, " cannot be used"));
                Self::unavailable(concat!($service, " cannot be used; try again"))
            }
        })+
    };
}

unavailable_service!(StoreError => "the database", StorageError => "the storage", BrokerError => "the broker");

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::to_string(&self).expect("a problem serialises");
        let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // A page shows it in another form.
        response.extensions_mut().insert(self);
        response
    }
}
