//! HTTP, and nothing above it: the only module that names `reqwest`.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use serde_json::Value;
use url::Url;

use crate::answer::MAX_BODY_BYTES;
use crate::api_key::ApiKey;
use crate::error::Error;

/// The longest wait that a `Retry-After` is believed to mean.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// A request to the API.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Below the base URL, without a leading slash.
    pub(crate) path: String,
    /// `POST` with this body, or `GET` without one.
    pub(crate) body: Option<Value>,
}

/// A complete answer of any status.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

/// Sends one request and reads its whole answer.
#[async_trait]
pub(crate) trait Transport: Send + Sync {
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Timeout`], [`Error::Interrupted`] or [`Error::Undecodable`] for a body without end.
    async fn send(&self, call: Call) -> Result<Answer, Error>;
}

/// What the HTTP client is made of.
pub(crate) struct HttpSettings {
    pub(crate) api_key: ApiKey,
    pub(crate) base_url: Url,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
}

pub(crate) struct Http {
    client: reqwest::Client,
    base_url: Url,
}

impl Http {
    pub(crate) fn new(settings: HttpSettings) -> Result<Self, String> {
        // Fails only where the program has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut key = HeaderValue::from_str(&settings.api_key.bearer())
            .map_err(|_| "the API key holds characters that a header cannot carry".to_owned())?;
        key.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, key);
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"))),
        );
        let client = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout)
            // The key must not follow a redirect to elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            // Retries are ours: the library's own would be unseen and uncounted.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| error.without_url().to_string())?;
        let mut base_url = settings.base_url;
        if !base_url.path().ends_with('/') {
            base_url.set_path(&format!("{}/", base_url.path()));
        }
        Ok(Self { client, base_url })
    }
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, call: Call) -> Result<Answer, Error> {
        let url = self.base_url.join(&call.path).map_err(|error| Error::Connect(error.to_string()))?;
        let request = match &call.body {
            None => self.client.get(url),
            Some(body) => self.client.post(url).json(body),
        };
        let request = request.header("accept", "application/json");
        let mut response = request.send().await.map_err(reduced)?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, SystemTime::now()));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(reduced)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(Error::Undecodable(format!("the body is longer than {MAX_BODY_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, retry_after, body: body.freeze() })
    }
}

fn reduced(error: reqwest::Error) -> Error {
    let timeout = error.is_timeout();
    let connect = error.is_connect();
    let cause = root_cause(&error.without_url());
    match (timeout, connect) {
        (_, true) => Error::Connect(cause),
        (true, false) => Error::Timeout,
        (false, false) => Error::Interrupted(cause),
    }
}

/// The innermost source says what happened; the layers above it say "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Reads `Retry-After`: seconds, or an HTTP date relative to `now`. At most an hour is believed.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let wait = match value.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value.trim()).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").expect("a date");
        let check = |value: &str, seconds: Option<u64>| {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        };
        check("60", Some(60));
        check(" 0 ", Some(0));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(37));
        check("Sun, 06 Nov 1994 08:48:37 GMT", Some(0));
        check("99999999", Some(3600));
        check("soon", None);
        check("-1", None);
    }
}
