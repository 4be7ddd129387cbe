//! Reads parts of requests, with problems that name the field.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use domain::fields::{self, Fields};
use domain::rules::{MAX_BODY_BYTES, MAX_REASON_CHARS};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Map;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use uuid::Uuid;

use super::problem::{Problem, ProblemCode};

/// Time in which the body of a request must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of the bodies that are not commands, in bytes.
pub(crate) const SMALL_BODY_BYTES: usize = 16 * 1024;
/// Maximum size of a command, in bytes.
const COMMAND_BODY_BYTES: usize = MAX_BODY_BYTES;

/// The parameters in the path.
pub(crate) struct UrlPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for UrlPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        // Such as a character that is not UTF-8.
        path.map(|Path(value)| Self(value)).map_err(|_| Problem::unknown_path())
    }
}

/// The id of a job, which is the only parameter in the path.
pub(crate) struct JobId(pub(crate) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for JobId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let UrlPath(text) = UrlPath::<String>::from_request_parts(parts, state).await?;
        parse_job_id(&text).map(Self)
    }
}

/// No parameters in the query.
pub(crate) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::parse(parts.uri.query(), &[]).map(|_| Self)
    }
}

/// Parses the id of a job in a path.
pub(crate) fn parse_job_id(text: &str) -> Result<Uuid, Problem> {
    // Only the usual form, so that a job has one address.
    let id = Uuid::try_parse(text).ok().filter(|id| id.to_string().eq_ignore_ascii_case(text));
    id.ok_or_else(|| not_allowed("job_id", text, "a UUID with hyphens"))
}

/// The problem of a value in a path or query.
pub(crate) fn not_allowed(field: &str, value: &str, allowed: &str) -> Problem {
    let shown: String = value.chars().take(60).collect();
    Problem::invalid_field(field, format_args!("{shown:?} is not allowed; {allowed}"))
}

/// Memory for the commands of all calls together, also those in forms.
pub(crate) struct BodyMemory(Arc<Semaphore>);

/// Bytes of a permit of [`BodyMemory`].
const PERMIT_BYTES: u32 = 64 * 1024;
/// Bytes of all commands that are read at the same time.
const MAX_MEMORY_BYTES: usize = 16 * COMMAND_BODY_BYTES;

impl Default for BodyMemory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_MEMORY_BYTES / PERMIT_BYTES as usize)))
    }
}

impl BodyMemory {
    /// Reserves memory for a body of at most `limit` bytes. The permit is to be kept as long as its content.
    pub(crate) fn reserve(&self, headers: &HeaderMap, limit: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let bytes = content_length(headers).unwrap_or(u64::MAX).min(limit as u64);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).div_ceil(PERMIT_BYTES);
        let busy = |_| Problem::new(ProblemCode::Busy, "too many large commands are being read").retry_after(1);
        self.0.clone().try_acquire_many_owned(permits).map_err(busy)
    }
}

/// Reads the body of a command, with its permit.
pub(crate) async fn read_command(
    memory: &BodyMemory,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
    let permit = memory.reserve(headers, COMMAND_BODY_BYTES)?;
    Ok((read_body(headers, body, COMMAND_BODY_BYTES).await?, permit))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a JSON body of at most `limit` bytes.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let bytes = read_bytes(headers, body, limit).await?;
    if !bytes.is_empty() {
        check_content_type(headers)?;
    }
    Ok(bytes)
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_bytes(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(ProblemCode::TooLarge, format!("the body may have at most {limit} bytes"));
    if content_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::new();
    let reading = async {
        while let Some(chunk) = stream.next().await {
            // The client has gone; the response reaches nothing.
            let chunk = chunk.map_err(|_| Problem::new(ProblemCode::BodyTimeout, "the body is incomplete"))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(())
    };
    let late = |_| Err(Problem::new(ProblemCode::BodyTimeout, format!("the body took more than {BODY_TIMEOUT:?}")));
    timeout(BODY_TIMEOUT, reading).await.unwrap_or_else(late)?;
    Ok(bytes.freeze())
}

/// The media type of a body, without its parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or_default();
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// Checks the reason of a change, from a form.
pub(crate) fn check_reason(reason: Option<&str>) -> Result<Option<String>, Problem> {
    let Some(reason) = reason else { return Ok(None) };
    let length = reason.chars().count();
    if length > MAX_REASON_CHARS || reason.contains('\0') {
        let message = format!("{length} characters is not allowed; at most {MAX_REASON_CHARS}, without NUL");
        return Err(Problem::invalid_field("reason", message));
    }
    Ok(Some(reason.to_owned()))
}

/// A body without a content type counts as JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(media_type) = media_type(headers) else { return Ok(()) };
    let is_json = media_type.eq_ignore_ascii_case("application/json")
        || (media_type.starts_with("application/") && media_type.ends_with("+json"));
    if is_json {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::WrongContentType, format!("{media_type:?} is not allowed; application/json")))
}

/// Reads the keys of an optional small body with `read`; an empty body has none.
pub(crate) async fn read_fields<T>(
    headers: &HeaderMap,
    body: Body,
    read: impl FnOnce(&mut Fields) -> T,
) -> Result<T, Problem> {
    let body = read_body(headers, body, SMALL_BODY_BYTES).await?;
    let object = if body.is_empty() {
        Map::new()
    } else {
        fields::parse_object(&body).map_err(|violation| Problem::invalid(&[violation]))?
    };
    let mut fields = Fields::new(object);
    let value = read(&mut fields);
    let violations = fields::truncate_violations(fields.into_violations());
    if violations.is_empty() { Ok(value) } else { Err(Problem::invalid(&violations)) }
}

/// The parameters of a query, each at most once.
pub(crate) struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Parses a query; other parameters than `known` are refused.
    pub(crate) fn parse(query: Option<&str>, known: &[&'static str]) -> Result<Self, Problem> {
        let mut parameters: Vec<(&'static str, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let Some(name) = known.iter().find(|known| **known == name) else {
                let shown: String = name.chars().take(60).collect();
                let allowed = if known.is_empty() { "no parameters".to_owned() } else { known.join(", ") };
                return Err(Problem::invalid_field(&shown, format_args!("unknown parameter; allowed: {allowed}")));
            };
            if parameters.iter().any(|(known, _)| known == name) {
                return Err(Problem::invalid_field(name, "given twice"));
            }
            parameters.push((name, value.into_owned()));
        }
        Ok(Self(parameters))
    }

    /// The value of a parameter, if it is given and `parse` accepts it; `allowed` says which values it does.
    pub(crate) fn get<T>(
        &self,
        name: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some((_, text)) = self.0.iter().find(|(known, _)| *known == name) else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| not_allowed(name, text, allowed))
    }
}
