//! The client: requests for all texts at once, retries, and halves where an answer cannot be used.

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

use crate::error::{BuildError, Untranslated};
use crate::wire::{self, Failure};

/// A connection is there in this time, or the network is in trouble.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read: 251 texts of a few thousand characters are a fifth of it.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// The most requests for one call, retries aside. An answer that cannot be used is asked for again in halves, so that one text spoils only
/// itself: of 200 texts one that is blocked takes 17 requests, five take about 60.
const MAX_REQUESTS: usize = 64;
/// No request of a call is begun later than this after the first one: images in English wait behind it.
const PATIENCE: Duration = Duration::from_mins(4);

/// How Gemini is asked.
#[derive(Debug, Clone)]
pub struct GeminiSettings {
    /// Never logged.
    pub api_key: SecretString,
    /// Where the API is.
    pub base_url: Url,
    /// The model's name, without `models/`.
    pub model: String,
    /// One request.
    pub timeout: Duration,
    /// A retry after each.
    pub retry_delays: Vec<Duration>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Whether a text counts as English. Gemini is asked again where its translation does not.
    pub is_english: fn(&str) -> bool,
}

/// The translator. Clones share the connection.
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
    /// Never empty.
    api_key: SecretString,
}

/// Texts that are asked for together.
struct Part {
    texts: Range<usize>,
    /// They were asked for before, as they are.
    again: bool,
}

impl Gemini {
    /// Makes a client; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where the key is not a valid header value, or no HTTP client can be made.
    pub fn new(settings: &GeminiSettings) -> Result<Self, BuildError> {
        let unusable = |why: &str| BuildError(why.to_owned());
        // Fails only where the program has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut key = HeaderValue::from_str(settings.api_key.expose_secret())
            .map_err(|_| unusable("it holds characters that a header cannot carry"))?;
        key.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-goog-api-key"), key)]);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(&settings.user_agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.timeout)
            // The key must not follow a redirect to elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| unusable(&error.without_url().to_string()))?;
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

    /// Whether the key is accepted and the model is there; costs nothing.
    ///
    /// # Errors
    ///
    /// [`Untranslated`] says what is wrong.
    pub async fn check(&self) -> Result<(), Untranslated> {
        let checked = self.sent(self.inner.http.get(self.inner.url.clone())).await;
        checked.map(drop).map_err(Failure::into_untranslated)
    }

    /// Translates texts; the results are as many and in the same order.
    pub async fn translate(&self, texts: &[&str], stop: &CancellationToken) -> Vec<Result<String, Untranslated>> {
        let unreachable = |why: &str| Err(Untranslated::Unreachable(why.to_owned()));
        let mut results = vec![unreachable("it was not asked"); texts.len()];
        let deadline = Instant::now() + PATIENCE;
        let mut parts = VecDeque::from([Part { texts: 0..texts.len(), again: false }]);
        let mut requests = 0;
        while let Some(Part { texts: part, again }) = parts.pop_front() {
            if requests == MAX_REQUESTS || Instant::now() > deadline {
                // Nobody has refused these, so that the job's next try may ask for them.
                results[part].fill(unreachable("too many answers were of no use or late"));
                continue;
            }
            if stop.is_cancelled() {
                return results;
            }
            requests += 1;
            let asked = stop.run_until_cancelled(self.asked(&texts[part.clone()]));
            let Some(asked) = asked.await else { return results };
            match asked {
                Ok(english) => {
                    for (result, english) in results[part].iter_mut().zip(english) {
                        *result = Ok(english);
                    }
                }
                Err(failure) if failure.is_about_the_texts() && part.len() > 1 => {
                    debug!(%failure, texts = part.len(), "an answer cannot be used; asking again in halves");
                    let middle = part.start + part.len() / 2;
                    parts.extend([part.start..middle, middle..part.end].map(|texts| Part { texts, again: false }));
                }
                Err(Failure::Answer(why)) if !again => {
                    debug!(why, "an answer cannot be used; asking once more");
                    parts.push_back(Part { texts: part, again: true });
                }
                Err(failure) if failure.is_about_the_texts() => {
                    results[part].fill(Err(failure.into_untranslated()));
                }
                // The rest would fare alike.
                Err(failure) => {
                    let failed = failure.into_untranslated();
                    for rest in parts.drain(..).map(|part| part.texts).chain([part]) {
                        results[rest].fill(Err(failed.clone()));
                    }
                }
            }
        }
        results
    }

    /// One answer for these texts, retried while the API cannot be reached.
    async fn asked(&self, texts: &[&str]) -> Result<Vec<String>, Failure> {
        let body = wire::request(texts);
        (|| async {
            let answer = self.sent(self.generation(&body)).await?;
            wire::translations(&answer, texts.len(), self.inner.is_english)
        })
        .retry(self.inner.retry_delays.clone().into_iter())
        .when(|failure| match failure {
            Failure::Unreachable { .. } => true,
            // Fewer texts are answered sooner; one alone is asked for again as it is.
            Failure::Late(_) => texts.len() == 1,
            Failure::Refused(_) | Failure::Blocked(_) | Failure::Answer(_) => false,
        })
        .adjust(|failure, wait| match failure {
            Failure::Unreachable { retry_after: Some(after), .. } => wait.map(|wait| wait.max(*after)),
            _ => wait,
        })
        .notify(|failure, wait| warn!(%failure, ?wait, "the translator cannot be reached, retrying"))
        .await
    }

    fn generation(&self, body: &Value) -> reqwest::RequestBuilder {
        let mut url = self.inner.url.clone();
        url.set_path(&format!("{}:generateContent", url.path()));
        self.inner.http.post(url).json(body)
    }

    /// The body of a good answer, asked for in a client's span by OpenTelemetry's conventions for HTTP.
    async fn sent(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, Failure> {
        let request = request.build().map_err(|error| Failure::unreachable(with_causes(&error.without_url())))?;
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
        let answer = self.answer(request).instrument(span.clone()).await;
        if let Err(failure) = &answer {
            span.record("error.type", failure.code());
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", "the translator gave no translation");
        }
        answer
    }

    async fn answer(&self, request: reqwest::Request) -> Result<Vec<u8>, Failure> {
        let lost = |error: reqwest::Error| {
            let late = error.is_timeout() && !error.is_connect();
            let message = with_causes(&error.without_url());
            if late { Failure::Late(message) } else { Failure::unreachable(message) }
        };
        let mut response = self.inner.http.execute(request).await.map_err(lost)?;
        let status = response.status().as_u16();
        Span::current().record("http.response.status_code", status);
        let retry_after = wire::retry_after(response.headers());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(Failure::Answer(format!("the answer is longer than {MAX_BODY_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status == 200 {
            return Ok(body.to_vec());
        }
        // Google repeats a suspended key in full.
        let body = String::from_utf8_lossy(&body).replace(self.inner.api_key.expose_secret(), "***");
        Err(Failure::from_status(status, body.as_bytes(), retry_after))
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
