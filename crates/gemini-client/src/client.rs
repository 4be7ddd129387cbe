//! The client: one request for all texts, retries, and splitting in halves after an unusable response.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backon::Retryable;
use bytes::BytesMut;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span, warn};
use url::Url;

use crate::error::{BuildError, TranslationError};
use crate::wire::{self, RequestError};

/// A connection that takes longer than this indicates a network failure.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a response body: 251 texts of a few thousand characters take a fifth of it.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// Maximum number of requests for one call, not counting retries. After an unusable response the texts are requested
/// again in halves, so that one bad text does not affect the others: of 200 texts, one blocked text takes 17 requests,
/// five take about 60.
const MAX_REQUESTS: usize = 64;
/// No request starts later than this after the call began: images that need no translation wait for the call to end.
const MAX_CALL_DURATION: Duration = Duration::from_mins(4);

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct GeminiSettings {
    /// The API key; never logged.
    pub api_key: SecretString,
    /// Base URL of the API.
    pub base_url: Url,
    /// The model's name, without `models/`.
    pub model: String,
    /// Timeout of one request.
    pub timeout: Duration,
    /// Delays before the retries; their number is the maximum number of retries of a request.
    pub retry_delays: Vec<Duration>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Whether a text counts as English. A translation that does not is unusable and requested again.
    pub is_english: fn(&str) -> bool,
}

/// A client that translates texts into English. Clones share one connection pool.
#[derive(Clone)]
pub struct Gemini {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    url: Url,
    model: String,
    retry_delays: Vec<Duration>,
    is_english: fn(&str) -> bool,
    /// Never empty: error bodies are searched for it.
    api_key: SecretString,
}

/// Texts that are translated in one request.
struct Batch {
    texts: Range<usize>,
    /// The same batch was requested before.
    is_retry: bool,
}

impl Gemini {
    /// Creates a client; sends no request.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the key is not a valid header value, or the HTTP client cannot be built.
    pub fn new(settings: &GeminiSettings) -> Result<Self, BuildError> {
        let build_error = |why: &str| BuildError(why.to_owned());
        // Fails only if the program has installed a crypto provider already, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut key = HeaderValue::from_str(settings.api_key.expose_secret())
            .map_err(|_| build_error("contains characters that are not allowed in a header"))?;
        key.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-goog-api-key"), key)]);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(&settings.user_agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.timeout)
            // A redirect would send the key to another server.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| build_error(&error.without_url().to_string()))?;
        let mut url = settings.base_url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v1beta/models/{}", settings.model));
        let inner = Inner {
            http,
            url,
            model: settings.model.clone(),
            retry_delays: settings.retry_delays.clone(),
            is_english: settings.is_english,
            api_key: settings.api_key.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.inner.model
    }

    /// Checks that the key is accepted and the model exists; free of charge.
    ///
    /// # Errors
    ///
    /// [`TranslationError`] if the API is unreachable, or rejects the key or the model.
    pub async fn check(&self) -> Result<(), TranslationError> {
        let result = self.send(self.inner.http.get(self.inner.url.clone())).await;
        result.map(drop).map_err(RequestError::into_translation_error)
    }

    /// Translates texts into English; returns one result for each text, in the same order.
    ///
    /// When `stop` is cancelled it returns at once; texts without a result yet have a retryable error.
    pub async fn translate(&self, texts: &[&str], stop: &CancellationToken) -> Vec<Result<String, TranslationError>> {
        let unreachable = |why: &str| Err(TranslationError::Unreachable(why.to_owned()));
        let mut results = vec![unreachable("no request was sent"); texts.len()];
        let deadline = Instant::now() + MAX_CALL_DURATION;
        let mut batches = VecDeque::from([Batch { texts: 0..texts.len(), is_retry: false }]);
        let mut requests = 0;
        while let Some(Batch { texts: part, is_retry: again }) = batches.pop_front() {
            if requests == MAX_REQUESTS || Instant::now() > deadline {
                // The API has not rejected these texts: a retryable error lets the job's next attempt request them.
                results[part].fill(unreachable("request limit or time limit of the call reached"));
                continue;
            }
            if stop.is_cancelled() {
                return results;
            }
            requests += 1;
            let response = stop.run_until_cancelled(self.request_translations(&texts[part.clone()]));
            let Some(response) = response.await else { return results };
            match response {
                Ok(english) => {
                    for (result, english) in results[part].iter_mut().zip(english) {
                        *result = Ok(english);
                    }
                }
                Err(error) if error.is_text_specific() && part.len() > 1 => {
                    debug!(%error, texts = part.len(), "translation request failed; retrying in halves");
                    let middle = part.start + part.len() / 2;
                    batches
                        .extend([part.start..middle, middle..part.end].map(|texts| Batch { texts, is_retry: false }));
                }
                Err(RequestError::InvalidResponse(why)) if !again => {
                    debug!(why, "unusable translation response; retrying once");
                    batches.push_back(Batch { texts: part, is_retry: true });
                }
                Err(error) if error.is_text_specific() => {
                    results[part].fill(Err(error.into_translation_error()));
                }
                // The cause does not depend on the texts: every other request would fail too.
                Err(error) => {
                    let failed = error.into_translation_error();
                    for rest in batches.drain(..).map(|batch| batch.texts).chain([part]) {
                        results[rest].fill(Err(failed.clone()));
                    }
                }
            }
        }
        results
    }

    /// Requests translations of these texts, with retries while the API is unreachable.
    async fn request_translations(&self, texts: &[&str]) -> Result<Vec<String>, RequestError> {
        let body = wire::request_body(texts);
        (|| async {
            let result = self.send(self.build_request(&body)).await?;
            wire::parse_translations(&result, texts.len(), self.inner.is_english)
        })
        .retry(self.inner.retry_delays.clone().into_iter())
        .when(|error| match error {
            RequestError::Unreachable { .. } => true,
            // Several texts are split by the caller, as smaller requests finish sooner; a single text is retried.
            RequestError::Timeout(_) => texts.len() == 1,
            RequestError::Rejected(_) | RequestError::Blocked(_) | RequestError::InvalidResponse(_) => false,
        })
        .adjust(|error, wait| match error {
            RequestError::Unreachable { retry_after: Some(after), .. } => wait.map(|wait| wait.max(*after)),
            _ => wait,
        })
        .notify(|error, wait| warn!(%error, ?wait, "translation request failed; retrying"))
        .await
    }

    fn build_request(&self, body: &Value) -> reqwest::RequestBuilder {
        let mut url = self.inner.url.clone();
        url.set_path(&format!("{}:generateContent", url.path()));
        self.inner.http.post(url).json(body)
    }

    /// Sends a request in a span by OpenTelemetry's HTTP client conventions; returns the body if the status is 200.
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, RequestError> {
        let request = request.build().map_err(|error| RequestError::unreachable(error_chain(&error.without_url())))?;
        let (method, url) = (request.method().as_str(), request.url());
        let span = info_span!(
            "http request",
            otel.name = method,
            otel.kind = "client",
            http.request.method = method,
            url.full = url.as_str(),
            server.address = url.host_str(),
            server.port = url.port_or_known_default(),
            http.response.status_code = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        );
        let result = self.execute(request).instrument(span.clone()).await;
        if let Err(error) = &result {
            span.record("error.type", error.kind());
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", "translation request failed");
        }
        result
    }

    async fn execute(&self, request: reqwest::Request) -> Result<Vec<u8>, RequestError> {
        let to_request_error = |error: reqwest::Error| {
            let timed_out = error.is_timeout() && !error.is_connect();
            let message = error_chain(&error.without_url());
            if timed_out { RequestError::Timeout(message) } else { RequestError::unreachable(message) }
        };
        let mut response = self.inner.http.execute(request).await.map_err(to_request_error)?;
        let status = response.status().as_u16();
        Span::current().record("http.response.status_code", status);
        let retry_after = wire::parse_retry_after(response.headers());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(to_request_error)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(RequestError::InvalidResponse(format!(
                    "response body is longer than {MAX_BODY_BYTES} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        if status == 200 {
            return Ok(body.to_vec());
        }
        // The error for a suspended key contains the whole key.
        let body = String::from_utf8_lossy(&body).replace(self.inner.api_key.expose_secret(), "***");
        Err(RequestError::from_status(status, body.as_bytes(), retry_after))
    }
}

/// Formats an error and its causes in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
