//! The client: quota, requests in flight, retries.

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
use crate::answer::{self, Picture, Pictures};
use crate::call_options::CallOptions;
use crate::error::{ApiFailure, Error, UnusablePicture};
use crate::http::Transport;
use crate::options::AnswerForm;
use crate::quota::{Quota, QuotaUnavailable};
use crate::request::TextToImage;
use crate::retry::{Exchange, Finished, Observer, Retry, RetryPolicy};
use crate::turns::{Turn, Turns};
use crate::usage::Usage;
use crate::wire::{HttpBody, HttpRequest, HttpResponse};

pub use builder::{BuildError, ClientBuilder};
pub use check::Checked;

/// What Stability is called in OpenTelemetry's attribute `gen_ai.provider.name`.
pub const PROVIDER: &str = "stability_ai";

/// Pictures as the API made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// At least one, in the order of the API.
    pub pictures: Vec<Picture>,
    /// How many more were asked for and filtered by content policy, or not finished.
    pub withheld: u32,
    /// What the call has used, retries included.
    pub usage: Usage,
}

impl Generated {
    /// The first picture; of most requests the only one.
    pub fn into_first(self) -> Picture {
        self.pictures.into_iter().next().expect("there is at least one")
    }
}

/// Why there is no picture, and what that used.
#[derive(Debug, thiserror::Error)]
#[error("no picture after {} requests", .usage.requests)]
pub struct GenerateError {
    /// Why the last request failed.
    #[source]
    pub error: Error,
    /// What the call has used, retries included.
    pub usage: Usage,
}

/// A client of Stability's API. Clones share the quota and the bound on requests in flight.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Box<dyn Transport>,
    quota: Arc<dyn Quota>,
    turns: Turns,
    retries: RetryPolicy,
    lockout: Duration,
    answers: AnswerForm,
    observers: Vec<Arc<dyn Observer>>,
}

/// One call of [`Client::generate_with`], as far as it has come.
struct Call<'a> {
    request: &'a TextToImage,
    http: HttpRequest,
    options: &'a CallOptions<'a>,
    usage: Usage,
    /// The latest end of any wait of this call; set when its first request gets its turn.
    deadline: Option<Instant>,
    /// Whether the one extra generation for an unusable picture was used.
    regenerated: bool,
}

impl Client {
    /// Makes pictures and retries what can be retried: [`Client::generate_with`] with default options, accepting every whole picture.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] with the last failure; its [`crate::ErrorClass`] says what it means.
    pub async fn generate(&self, request: &TextToImage) -> Result<Generated, GenerateError> {
        self.generate_with(request, &CallOptions::default(), |generated| ready(Ok(generated))).await
    }

    /// Makes pictures that `accept` can use, and returns what it made of them.
    ///
    /// - One loop sends, waits and retries, within [`RetryPolicy::total`]; time spent in `accept` counts.
    /// - `accept` runs after the request has given up its turn and its payment is committed, so that other requests go on meanwhile.
    /// - A picture that is damaged or not accepted is generated once more, which uses up a retry. An undamaged picture of a given seed is not: the same
    ///   seed would repeat it.
    /// - A 429 pauses every request of this client, for as long as the API asks or for the lock-out; that uses up no retry.
    ///
    /// Dropping the future drops the request in flight, which may be charged all the same.
    ///
    /// # Errors
    ///
    /// [`GenerateError`]; its error is [`Error::Stopped`] where `options.stop` was cancelled, [`Error::Budget`] where a request was not paid
    /// for, and [`Error::Unusable`] where `accept` refused the last picture.
    pub async fn generate_with<T, F>(
        &self,
        request: &TextToImage,
        options: &CallOptions<'_>,
        accept: impl Fn(Generated) -> F + Send,
    ) -> Result<T, GenerateError>
    where
        F: Future<Output = Result<T, UnusablePicture>> + Send,
    {
        let (begun, mut accepting) = (Instant::now(), Duration::ZERO);
        let span = self.span(request);
        let http = request.to_http(self.inner.answers);
        let mut call = Call { request, http, options, usage: Usage::default(), deadline: None, regenerated: false };
        let result = loop {
            let error = match self.attempt(&mut call).instrument(span.clone()).await {
                Ok(generated) => {
                    let arrived = Instant::now();
                    let accepted = accept(generated).await;
                    accepting += arrived.elapsed();
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
        let took = begun.elapsed().saturating_sub(accepting);
        self.observe(|observer| observer.finished(&Finished { engine: request.engine(), failure, took }));
        span.record("stability.requests", call.usage.requests);
        result.map_err(|error| {
            note_failure(&span, request, &error);
            GenerateError { error, usage: call.usage }
        })
    }

    /// Makes one request: waits for turn and quota, reserves its payment, sends, commits or refunds, and counts its usage.
    async fn attempt(&self, call: &mut Call<'_>) -> Result<Generated, Error> {
        let turn = self.admit(call).instrument(info_span!("quota wait")).await?;
        let CallOptions { stop, budget, party: _ } = call.options;
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let reservation = match budget.reserve().await {
            Ok(reservation) => reservation,
            // It may have waited for a refund until the call was stopped.
            Err(_) if stop.is_cancelled() => return Err(Error::Stopped),
            Err(error) => return Err(error.into()),
        };
        debug!(attempt = call.usage.requests + 1, "sending a request");
        let sent = Instant::now();
        let http = HttpRequest { resends: call.usage.requests, ..call.http.clone() };
        let response = self.inner.transport.send(http).await;
        let status = response.as_ref().ok().map(|response| response.status);
        let response = response.and_then(checked);
        let failure = response.as_ref().err().map(Error::kind);
        let engine = call.request.engine();
        let exchange = Exchange { engine, failure, status, took: sent.elapsed() };
        self.observe(|observer| observer.answered(&exchange));
        // A good status was charged, even if its body is unusable.
        let charged = response.as_ref().err().is_none_or(|error| error.class().possibly_charged);
        call.usage.count_request(charged);
        if charged {
            budget.commit(reservation).await;
        } else {
            budget.refund(reservation).await;
        }
        if let Some(pause) = response.as_ref().err().and_then(|error| self.pause_after(error)) {
            self.inner.quota.pause(Instant::now() + pause).await;
            self.observe(|observer| observer.paused(pause));
        }
        drop(turn);
        let Pictures { pictures, withheld } = answer::decode(engine.family(), &response?)?;
        Ok(Generated { pictures, withheld, usage: call.usage })
    }

    /// Waits for a turn and for the quota, and sets the deadline of the call.
    async fn admit(&self, call: &mut Call<'_>) -> Result<Turn, Error> {
        let asked = Instant::now();
        let CallOptions { stop, budget: _, party } = call.options;
        let admitted = match stop.run_until_cancelled(self.inner.turns.next(*party)).await {
            None => Err(Error::Stopped),
            Some(turn) => {
                let deadline = *call.deadline.get_or_insert_with(|| Instant::now() + self.inner.retries.total);
                match stop.run_until_cancelled(timeout_at(deadline, self.inner.quota.acquire())).await {
                    None => Err(Error::Stopped),
                    Some(Ok(permitted)) => permitted.map(|()| turn).map_err(Error::from),
                    Some(Err(_)) => {
                        Err(QuotaUnavailable(format!("no permit within {:?}", self.inner.retries.total)).into())
                    }
                }
            }
        };
        let wait = asked.elapsed();
        self.observe(|observer| observer.admitted(wait));
        admitted
    }

    /// Decides whether to retry after a failure, and how long to wait first; `None` ends the call.
    fn decide_retry(&self, call: &mut Call<'_>, error: &Error) -> Option<Duration> {
        let pause = self.pause_after(error);
        let wait = match error {
            // Failures of quota and budget are not retried in this call.
            Error::Quota(_) | Error::Budget(_) => return None,
            Error::RateLimited { .. } if pause.is_some() => pause?,
            Error::Unusable(UnusablePicture { damaged: false, .. }) if call.request.asked_seed().is_some() => {
                return None;
            }
            Error::Damaged { .. } | Error::Unusable(_) => {
                // Asked for once more, if a retry is left.
                self.inner.retries.delay(call.usage.retries).filter(|_| !call.regenerated)?;
                call.regenerated = true;
                Duration::ZERO
            }
            error if error.class().retryable => {
                let delay = self.inner.retries.delay(call.usage.retries)?;
                delay.max(error.retry_after().unwrap_or_default())
            }
            _ => return None,
        };
        if call.deadline.is_some_and(|deadline| Instant::now() + wait > deadline) {
            return None;
        }
        let attempt = call.usage.requests;
        if pause.is_some() {
            warn!(attempt, pause = ?wait, "rate limit exceeded, retrying when the pause is over");
            // No sleep here: the quota waits until the pause is over.
            return Some(Duration::ZERO);
        }
        call.usage.retries += 1;
        let cause = error.kind();
        self.observe(|observer| observer.retrying(&Retry { attempt, cause, wait }));
        match error {
            Error::RateLimited { .. } => warn!(attempt, cause, ?wait, "rate limit exceeded, retrying"),
            Error::Damaged { .. } | Error::Unusable(_) => {
                warn!(attempt, cause, %error, "picture unusable, generating once more");
            }
            error => warn!(attempt, cause, ?wait, %error, "request failed, retrying"),
        }
        Some(wait)
    }

    fn observe(&self, notify: impl Fn(&dyn Observer)) {
        self.inner.observers.iter().for_each(|observer| notify(observer.as_ref()));
    }

    /// How long the account must not send after this failure.
    fn pause_after(&self, failure: &Error) -> Option<Duration> {
        match failure {
            Error::RateLimited { retry_after, .. } => {
                Some(retry_after.unwrap_or(self.inner.lockout)).filter(|pause| !pause.is_zero())
            }
            _ => None,
        }
    }

    /// A client's span by OpenTelemetry's conventions for generative AI.
    fn span(&self, request: &TextToImage) -> Span {
        let engine = request.engine().id();
        let server = self.inner.transport.server();
        info_span!(
            "generate_content",
            otel.name = format!("generate_content {engine}"),
            otel.kind = "client",
            gen_ai.operation.name = "generate_content",
            gen_ai.provider.name = PROVIDER,
            gen_ai.request.model = engine,
            "gen_ai.output.type" = "image",
            gen_ai.request.seed = request.asked_seed(),
            server.address = server.as_ref().map(|(host, _)| host),
            server.port = server.as_ref().map(|(_, port)| port),
            stability.requests = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        )
    }

    /// Calls that have their turn: they wait for the quota, or are in flight.
    pub fn in_flight(&self) -> usize {
        self.inner.turns.out()
    }

    /// The account's credits.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is retried.
    pub async fn balance(&self) -> Result<Balance, Error> {
        self.get("v1/user/balance").await
    }

    /// The engines of the v1 API that the account may use.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is retried.
    pub async fn engines(&self) -> Result<Vec<EngineListing>, Error> {
        self.get("v1/engines/list").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let http = HttpRequest { path: path.to_owned(), body: HttpBody::None, accept: "application/json", resends: 0 };
        let response = checked(self.inner.transport.send(http).await?)?;
        serde_json::from_slice(&response.body).map_err(|error| Error::Undecodable(error.to_string()))
    }
}

/// Notes the failure of a call on its span, and logs the prompt where content policy refused it.
fn note_failure(span: &Span, request: &TextToImage, error: &Error) {
    span.record("error.type", error.kind());
    if !matches!(error, Error::Stopped) {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", error.to_string());
    }
    if matches!(error, Error::ContentPolicy(_) | Error::Filtered) {
        // In full, so that people can see what is refused; nowhere else is a prompt logged.
        span.in_scope(|| warn!(prompt = request.prompt(), %error, "content policy refused a prompt"));
    }
}

pub(crate) fn checked(response: HttpResponse) -> Result<HttpResponse, Error> {
    if response.status == 200 {
        return Ok(response);
    }
    Err(Error::from_status(ApiFailure::read(response.status, &response.body), response.retry_after))
}

#[cfg(test)]
mod tests;
