//! The client: waits for a turn and the quota, sends requests and retries them.

mod builder;
mod check;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span, warn};

use crate::account::{Balance, EngineListing};
use crate::api_key::ApiKey;
use crate::call_options::CallOptions;
use crate::error::{ApiFailure, Error, UnusableImage};
use crate::fair_scheduler::{FairScheduler, Turn};
use crate::http::Transport;
use crate::options::ResponseFormat;
use crate::quota::{Quota, QuotaUnavailable};
use crate::request::TextToImage;
use crate::response::{self, DecodedImages, GeneratedImage};
use crate::retry::{CallOutcome, Observer, RequestOutcome, Retry, RetryPolicy};
use crate::usage::Usage;
use crate::wire::{HttpBody, HttpRequest, HttpResponse};

pub use builder::{BuildError, ClientBuilder};
pub use check::AccountStatus;

/// Value of the OpenTelemetry attribute `gen_ai.provider.name` for Stability AI.
pub const GEN_AI_PROVIDER_NAME: &str = "stability_ai";

/// The images that one request generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// At least one image, in the order of the response.
    pub images: Vec<GeneratedImage>,
    /// Number of further images that were filtered by content policy or not finished.
    pub withheld: u32,
    /// What the call has used so far, retries included.
    pub usage: Usage,
}

impl Generation {
    /// Returns the first image. It is the only one unless [`TextToImage::samples`] was set.
    pub fn into_first(self) -> GeneratedImage {
        self.images.into_iter().next().expect("a generation has at least one image")
    }
}

/// A failed call: its last failure, and what it used.
#[derive(Debug, thiserror::Error)]
#[error("no image after {} requests", .usage.requests)]
pub struct GenerateError {
    /// The last failure.
    #[source]
    pub error: Error,
    /// What the call used, retries included.
    pub usage: Usage,
}

/// A client of Stability AI's API.
///
/// Clones are cheap and share the quota, rate-limit pauses and the limit on requests in flight.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Box<dyn Transport>,
    quota: Arc<dyn Quota>,
    scheduler: FairScheduler,
    retry_policy: RetryPolicy,
    lockout: Duration,
    response_format: ResponseFormat,
    observers: Vec<Arc<dyn Observer>>,
}

/// State of one call of [`Client::generate_with`].
struct Call<'a> {
    request: &'a TextToImage,
    http_request: HttpRequest,
    options: &'a CallOptions<'a>,
    usage: Usage,
    /// Latest end of any wait in this call; set when its first request gets its turn.
    deadline: Option<Instant>,
    /// Whether the one extra generation for an unusable image was used.
    regenerated: bool,
}

impl Client {
    /// Generates images: [`Client::generate_with`] with default options, accepting every complete image.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] with the last failure, after all retries; [`Error::class`] tells what it means for the caller.
    pub async fn generate(&self, request: &TextToImage) -> Result<Generation, GenerateError> {
        self.generate_with(request, &CallOptions::default(), |generated| ready(Ok(generated))).await
    }

    /// Generates images, passes them to `accept`, and returns what `accept` returned.
    ///
    /// - Retryable failures are retried by the client's [`RetryPolicy`], within its time limit
    ///   [`RetryPolicy::total_timeout`]. Time spent in `accept` counts.
    /// - `accept` runs after the request has released its turn and its reservation is committed, so that it does not
    ///   delay other requests.
    /// - An image that is damaged, or that `accept` rejects, is generated once more without delay, which uses one
    ///   retry. An undamaged image with an explicit seed is not: the same seed would produce the same image.
    /// - A 429 response pauses all requests of this client, for the time in its `Retry-After` header or else for
    ///   [`ClientBuilder::lockout`]. A wait of at least that length uses no retry; a shorter one is a retry, after the
    ///   longer of its delay and `Retry-After`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts the request in flight, which may be charged nevertheless. Cancel
    /// [`CallOptions::stop`] to complete that request and send no further one.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] with the last failure: [`Error::Stopped`] if `options.stop` was cancelled, [`Error::Budget`]
    /// if a request could not be reserved in the budget, [`Error::Unusable`] if `accept` rejected the last image.
    pub async fn generate_with<T, F>(
        &self,
        request: &TextToImage,
        options: &CallOptions<'_>,
        accept: impl Fn(Generation) -> F + Send,
    ) -> Result<T, GenerateError>
    where
        F: Future<Output = Result<T, UnusableImage>> + Send,
    {
        let (started, mut accept_time) = (Instant::now(), Duration::ZERO);
        let span = self.generate_span(request);
        let http = request.to_http_request(self.inner.response_format);
        let mut call =
            Call { request, http_request: http, options, usage: Usage::default(), deadline: None, regenerated: false };
        let result = loop {
            let error = match self.attempt(&mut call).instrument(span.clone()).await {
                Ok(generated) => {
                    let received_at = Instant::now();
                    let accepted = accept(generated).await;
                    accept_time += received_at.elapsed();
                    match accepted {
                        Ok(accepted) => break Ok(accepted),
                        Err(unusable) => Error::Unusable(unusable),
                    }
                }
                Err(error) => error,
            };
            let Some(wait) = span.in_scope(|| self.decide_retry(&mut call, &error)) else { break Err(error) };
            // If `stop` ends the wait, the next attempt returns `Stopped` without sending.
            let _ = options.stop.run_until_cancelled(sleep(wait)).await;
        };
        let failure = result.as_ref().err().map(Error::kind);
        let took = started.elapsed().saturating_sub(accept_time);
        self.notify_observers(|observer| {
            observer.on_call_end(&CallOutcome { engine: request.engine(), error_kind: failure, duration: took });
        });
        span.record("stability.requests", call.usage.requests);
        result.map_err(|error| {
            record_failure(&span, request, &error);
            GenerateError { error, usage: call.usage }
        })
    }

    /// Sends one request: waits for a turn and the quota, reserves, sends, commits or refunds, and counts the usage.
    async fn attempt(&self, call: &mut Call<'_>) -> Result<Generation, Error> {
        let turn = self.admit(call).instrument(info_span!("quota wait")).await?;
        let CallOptions { stop, budget, tenant: _ } = call.options;
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let reservation = match budget.reserve().await {
            Ok(reservation) => reservation,
            // The budget may have waited for a refund until the call was stopped.
            Err(_) if stop.is_cancelled() => return Err(Error::Stopped),
            Err(error) => return Err(error.into()),
        };
        debug!(attempt = call.usage.requests + 1, "sending image request");
        let sent_at = Instant::now();
        let http = HttpRequest { resend_count: call.usage.requests, ..call.http_request.clone() };
        let response = self.inner.transport.send(http).await;
        let status = response.as_ref().ok().map(|response| response.status);
        let response = response.and_then(error_for_status);
        let failure = response.as_ref().err().map(Error::kind);
        let engine = call.request.engine();
        let outcome = RequestOutcome { engine, error_kind: failure, status, duration: sent_at.elapsed() };
        self.notify_observers(|observer| observer.on_request_end(&outcome));
        // A 200 response is charged, even if its body is unusable.
        let charged = response.as_ref().err().is_none_or(|error| error.class().possibly_charged);
        call.usage.count_request(charged);
        if charged {
            budget.commit(reservation).await;
        } else {
            budget.refund(reservation).await;
        }
        if let Some(pause) = response.as_ref().err().and_then(|error| self.rate_limit_pause(error)) {
            self.inner.quota.pause(Instant::now() + pause).await;
            self.notify_observers(|observer| observer.on_pause(pause));
        }
        drop(turn);
        let DecodedImages { images: pictures, withheld } = response::decode(engine.api_version(), &response?)?;
        Ok(Generation { images: pictures, withheld, usage: call.usage })
    }

    /// Waits for a turn, then for the quota. The first turn sets the deadline of the call.
    async fn admit(&self, call: &mut Call<'_>) -> Result<Turn, Error> {
        let queued_at = Instant::now();
        let CallOptions { stop, budget: _, tenant } = call.options;
        let admitted = match stop.run_until_cancelled(self.inner.scheduler.acquire(*tenant)).await {
            None => Err(Error::Stopped),
            Some(turn) => {
                let deadline =
                    *call.deadline.get_or_insert_with(|| Instant::now() + self.inner.retry_policy.total_timeout);
                match stop.run_until_cancelled(timeout_at(deadline, self.inner.quota.acquire())).await {
                    None => Err(Error::Stopped),
                    Some(Ok(permit)) => permit.map(|()| turn).map_err(Error::from),
                    Some(Err(_)) => {
                        Err(QuotaUnavailable(format!("no permit within {:?}", self.inner.retry_policy.total_timeout))
                            .into())
                    }
                }
            }
        };
        let wait = queued_at.elapsed();
        self.notify_observers(|observer| observer.on_admission_wait(wait));
        admitted
    }

    /// Returns how long to wait before the next request; `None` ends the call.
    fn decide_retry(&self, call: &mut Call<'_>, error: &Error) -> Option<Duration> {
        let lockout = self.lockout_wait(error);
        let wait = match error {
            // Quota and budget failures are not retried within a call.
            Error::Quota(_) | Error::Budget(_) => return None,
            Error::RateLimited { .. } if lockout.is_some() => lockout?,
            Error::Unusable(UnusableImage { damaged: false, .. }) if call.request.explicit_seed().is_some() => {
                return None;
            }
            Error::Damaged { .. } | Error::Unusable(_) => {
                // Generated once more, if a retry is left.
                self.inner.retry_policy.delay(call.usage.retries).filter(|_| !call.regenerated)?;
                call.regenerated = true;
                Duration::ZERO
            }
            error if error.class().retryable => {
                let delay = self.inner.retry_policy.delay(call.usage.retries)?;
                delay.max(error.retry_after().unwrap_or_default())
            }
            _ => return None,
        };
        if call.deadline.is_some_and(|deadline| Instant::now() + wait > deadline) {
            return None;
        }
        let attempt = call.usage.requests;
        if lockout.is_some() {
            warn!(attempt, pause = ?wait, "rate limit exceeded, retrying after the rate-limit pause");
            // No sleep here: `Quota::acquire` waits until the pause is over.
            return Some(Duration::ZERO);
        }
        call.usage.retries += 1;
        let cause = error.kind();
        self.notify_observers(|observer| observer.on_retry(&Retry { attempt, error_kind: cause, wait }));
        match error {
            Error::RateLimited { .. } => warn!(attempt, cause, ?wait, "rate limit exceeded, retrying"),
            Error::Damaged { .. } | Error::Unusable(_) => {
                warn!(attempt, cause, %error, "image unusable, generating once more");
            }
            error => warn!(attempt, cause, ?wait, %error, "request failed, retrying"),
        }
        Some(wait)
    }

    fn notify_observers(&self, notify: impl Fn(&dyn Observer)) {
        self.inner.observers.iter().for_each(|observer| notify(observer.as_ref()));
    }

    /// How long the account is locked out after this failure. Such a wait uses no retry.
    ///
    /// A 429 response with a shorter `Retry-After` is no lock-out, and with a lock-out of zero none is.
    fn lockout_wait(&self, failure: &Error) -> Option<Duration> {
        let lockout = self.inner.lockout;
        self.rate_limit_pause(failure).filter(|pause| !lockout.is_zero() && *pause >= lockout)
    }

    /// How long all requests are paused after this failure.
    fn rate_limit_pause(&self, failure: &Error) -> Option<Duration> {
        match failure {
            Error::RateLimited { retry_after, .. } => {
                Some(retry_after.unwrap_or(self.inner.lockout)).filter(|pause| !pause.is_zero())
            }
            _ => None,
        }
    }

    /// A client span by OpenTelemetry's semantic conventions for generative AI.
    fn generate_span(&self, request: &TextToImage) -> Span {
        let engine = request.engine().id();
        let server = self.inner.transport.server_address();
        info_span!(
            "generate_content",
            otel.name = format!("generate_content {engine}"),
            otel.kind = "client",
            gen_ai.operation.name = "generate_content",
            gen_ai.provider.name = GEN_AI_PROVIDER_NAME,
            gen_ai.request.model = engine,
            "gen_ai.output.type" = "image",
            gen_ai.request.seed = request.explicit_seed(),
            server.address = server.as_ref().map(|(host, _)| host),
            server.port = server.as_ref().map(|(_, port)| port),
            stability.requests = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        )
    }

    /// Uses another API key for the requests that are sent from now on, also those of clones and of calls that are
    /// running. Requests in flight keep their key.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the key contains characters that are not allowed in a header; the former key stays.
    pub fn replace_api_key(&self, key: impl Into<ApiKey>) -> Result<(), BuildError> {
        self.inner.transport.replace_api_key(key.into()).map_err(BuildError::new)
    }

    /// Returns the number of calls that hold a turn: those that wait for the quota or have a request in flight.
    pub fn in_flight(&self) -> usize {
        self.inner.scheduler.in_use()
    }

    /// Fetches the account's credits. Free of charge; uses neither the quota nor a turn.
    ///
    /// # Errors
    ///
    /// [`Error`] of the only request; it is not retried.
    pub async fn balance(&self) -> Result<Balance, Error> {
        self.get("v1/user/balance").await
    }

    /// Fetches the v1 engines that the account may use. Free of charge; uses neither the quota nor a turn.
    ///
    /// # Errors
    ///
    /// [`Error`] of the only request; it is not retried.
    pub async fn engines(&self) -> Result<Vec<EngineListing>, Error> {
        self.get("v1/engines/list").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let http =
            HttpRequest { path: path.to_owned(), body: HttpBody::None, accept: "application/json", resend_count: 0 };
        let response = error_for_status(self.inner.transport.send(http).await?)?;
        serde_json::from_slice(&response.body).map_err(|error| Error::Undecodable(error.to_string()))
    }
}

/// Records the failure of a call on its span, and logs the prompt if content policy refused it.
fn record_failure(span: &Span, request: &TextToImage, error: &Error) {
    span.record("error.type", error.kind());
    if !matches!(error, Error::Stopped) {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", error.to_string());
    }
    if matches!(error, Error::ContentPolicy(_) | Error::Filtered) {
        // The full prompt, so that an operator can see what was refused. Prompts are logged nowhere else.
        span.in_scope(|| warn!(prompt = request.prompt(), %error, "prompt refused by content policy"));
    }
}

pub(crate) fn error_for_status(response: HttpResponse) -> Result<HttpResponse, Error> {
    if response.status == 200 {
        return Ok(response);
    }
    Err(Error::from_api_failure(ApiFailure::parse(response.status, &response.body), response.retry_after))
}

#[cfg(test)]
mod tests;
