//! Google's Gemini as a translator: one request for all texts. The only module of this crate that names `reqwest`.

mod wire;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backon::Retryable;
use bytes::BytesMut;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use url::Url;

use super::Untranslated;
use crate::settings::{GeminiSettings, SettingError};
use wire::Failure;

/// A connection is there in this time, or the network is in trouble.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait that the API may ask for before a retry.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);
/// The longest answer that is read: 251 texts of a few thousand characters are a fifth of it.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// The most requests for one call, retries aside. An answer that cannot be used is asked for again in halves, so that one text spoils only
/// itself; a job of 200 texts of which one is blocked takes 17.
const MAX_REQUESTS: usize = 64;

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
}

impl Gemini {
    /// Makes a client; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`SettingError`] where the key cannot stand in a header, or no HTTP client can be made. The key is not repeated.
    pub fn new(settings: &GeminiSettings) -> Result<Self, SettingError> {
        let unusable = |why: &str| SettingError::unusable("GEMINI_API_KEY", why);
        // Fails only where the program has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut key = HeaderValue::from_str(settings.api_key.expose_secret())
            .map_err(|_| unusable("it holds characters that a header cannot carry"))?;
        key.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-goog-api-key"), key)]);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("asset-worker/", env!("CARGO_PKG_VERSION")))
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
        let inner = Inner { http, url, model: settings.model.clone(), retry_delays: settings.retry_delays.clone() };
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
        let mut results = vec![Err(Untranslated::Unreachable("it was not asked".to_owned())); texts.len()];
        let mut parts: VecDeque<Range<usize>> = VecDeque::new();
        parts.push_back(0..texts.len());
        let mut requests = 0;
        while let Some(part) = parts.pop_front() {
            requests += 1;
            let asked = stop.run_until_cancelled(self.asked(&texts[part.clone()]));
            let Some(asked) = asked.await else { return results };
            match asked {
                Ok(english) => {
                    for (result, english) in results[part].iter_mut().zip(english) {
                        *result = Ok(english);
                    }
                }
                Err(Failure::Answer(why)) if part.len() > 1 && requests < MAX_REQUESTS => {
                    debug!(why, texts = part.len(), "an answer cannot be used; asking again in halves");
                    let middle = part.start + part.len() / 2;
                    parts.extend([part.start..middle, middle..part.end]);
                }
                Err(Failure::Answer(why)) => {
                    results[part].fill(Err(Failure::Answer(why).into_untranslated()));
                }
                // The rest would fare alike.
                Err(failure) => {
                    let failed = failure.into_untranslated();
                    for rest in parts.drain(..).chain([part]) {
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
            wire::translations(&answer, texts.len())
        })
        .retry(self.inner.retry_delays.clone().into_iter())
        .when(|failure| matches!(failure, Failure::Unreachable { .. }))
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

    /// The body of a good answer.
    async fn sent(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, Failure> {
        let lost = |error: reqwest::Error| Failure::unreachable(crate::causes::joined(&error.without_url()));
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(Failure::Answer(format!("the answer is longer than {MAX_BODY_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status == 200 { Ok(body.to_vec()) } else { Err(Failure::from_status(status, &body)) }
    }
}

#[cfg(test)]
mod tests;
