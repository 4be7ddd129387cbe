//! The client: quota, requests in flight, retries.

mod builder;
mod check;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::Retryable;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span, warn};

use crate::account::{Balance, EngineListing};
use crate::answer::{self, AnswerForm, Picture, Pictures};
use crate::engine::Engine;
use crate::error::{ApiFailure, Error};
use crate::quota::{Quota, QuotaUnavailable};
use crate::request::TextToImage;
use crate::retry::{Exchange, Finished, Observer, Retry, RetryPolicy};
use crate::spent::{Meter, Spent};
use crate::terms::Terms;
use crate::transport::{Answer, Body, Call, Transport};
use crate::turns::{Turn, Turns};

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
    /// What it cost, retries included.
    pub spent: Spent,
}

impl Generated {
    /// The first picture; of most requests the only one.
    pub fn into_first(self) -> Picture {
        self.pictures.into_iter().next().expect("there is at least one")
    }
}

/// Why there is no picture, and what that cost.
#[derive(Debug, thiserror::Error)]
#[error("no picture after {} requests", .spent.requests)]
pub struct GenerateError {
    /// Why the last request failed.
    #[source]
    pub error: Error,
    /// What it cost, retries included.
    pub spent: Spent,
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
    observer: Arc<dyn Observer>,
}

impl Client {
    /// Makes pictures, retrying what passes.
    ///
    /// A 429 pauses every request of this client, for as long as the API asks or for the lock-out; that uses up no retry.
    /// Dropping the future drops the request in flight, which may be charged all the same.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] with the last failure; its [`crate::Fate`] says what it means.
    pub async fn generate(&self, request: &TextToImage) -> Result<Generated, GenerateError> {
        self.generate_on(&Terms::default(), request).await
    }

    /// As [`Client::generate`], on terms that the caller sets.
    ///
    /// # Errors
    ///
    /// [`GenerateError`]; its error is [`Error::Stopped`] where the terms' `stop` was cancelled, and [`Error::Budget`] where a request could
    /// not be paid for.
    pub async fn generate_on(&self, terms: &Terms<'_>, request: &TextToImage) -> Result<Generated, GenerateError> {
        let engine = request.engine();
        let begun = Instant::now();
        let span = self.span(request);
        let generated = self.generated(terms, request).instrument(span.clone()).await;
        let failure = generated.as_ref().err().map(|failure| failure.error.kind());
        self.inner.observer.finished(&Finished { engine, failure, took: begun.elapsed() });
        match &generated {
            Ok(generated) => {
                span.record("stability.requests", generated.spent.requests);
            }
            Err(failure) => {
                span.record("stability.requests", failure.spent.requests);
                span.record("error.type", failure.error.kind());
                if !matches!(failure.error, Error::Stopped) {
                    span.record("otel.status_code", "ERROR");
                    span.record("otel.status_description", failure.error.to_string());
                }
            }
        }
        generated
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

    async fn generated(&self, terms: &Terms<'_>, request: &TextToImage) -> Result<Generated, GenerateError> {
        let call = request.call(self.inner.answers);
        let family = request.engine().family();
        let meter = Meter::default();
        let deadline = OnceLock::new();
        let stop = terms.stop.clone();
        let engine = request.engine();
        let outcome = (|| async {
            let answer = self.attempt(terms, engine, &call, &meter, &deadline).await?;
            answer::decode(family, &answer)
        })
        .retry(self.inner.retries.after(terms.retries_used))
        .sleep(move |wait| {
            let stop = stop.clone();
            // A wait that is cut short leads to the next attempt, which sends nothing.
            async move { stop.run_until_cancelled(sleep(wait)).await.unwrap_or_default() }
        })
        .when(|error| self.is_retried(error))
        .adjust(|error, wait| {
            let wait = wait?.max(error.retry_after().unwrap_or_default());
            let end = Instant::now() + wait;
            (end <= *deadline.get().unwrap_or(&end)).then_some(wait)
        })
        .notify(|error, wait| {
            meter.count_retry();
            let retry = Retry { attempt: meter.requests(), cause: error.kind(), wait };
            self.inner.observer.retrying(&retry);
            let Retry { attempt, cause, wait } = retry;
            if matches!(error, Error::RateLimited { .. }) {
                warn!(attempt, cause, ?wait, "rate limit exceeded, retrying");
            } else {
                warn!(attempt, cause, ?wait, %error, "request failed, retrying");
            }
        })
        .await;
        match outcome {
            Ok(Pictures { pictures, withheld }) => Ok(Generated { pictures, withheld, spent: meter.spent() }),
            Err(error) => {
                if matches!(error, Error::ContentPolicy(_) | Error::Filtered) {
                    // In full, so that people can see what is refused; nowhere else is a prompt logged.
                    warn!(prompt = request.prompt(), %error, "content policy refused a prompt");
                }
                Err(GenerateError { error, spent: meter.spent() })
            }
        }
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
        let call = Call { path: path.to_owned(), body: Body::None, accept: "application/json", resends: 0 };
        let answer = checked(self.inner.transport.send(call).await?)?;
        serde_json::from_slice(&answer.body).map_err(|error| Error::Undecodable(error.to_string()))
    }

    /// One request that counts as an attempt: lock-outs met on the way are waited out.
    async fn attempt(
        &self,
        terms: &Terms<'_>,
        engine: Engine,
        call: &Call,
        meter: &Meter,
        deadline: &OnceLock<Instant>,
    ) -> Result<Answer, Error> {
        loop {
            let waiting = info_span!("quota wait");
            let (turn, deadline) = self.admitted(terms, deadline).instrument(waiting).await?;
            if terms.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let receipt = match terms.budget.charge().await {
                Ok(receipt) => receipt,
                // It may have waited for money until it was not wanted any more.
                Err(_) if terms.stop.is_cancelled() => return Err(Error::Stopped),
                Err(error) => return Err(error.into()),
            };
            debug!(attempt = meter.requests() + 1, "sending a request");
            let sent = Instant::now();
            let answer = self.inner.transport.send(Call { resends: meter.requests(), ..call.clone() }).await;
            let status = answer.as_ref().ok().map(|answer| answer.status);
            let answer = answer.and_then(checked);
            let failure = answer.as_ref().err().map(Error::kind);
            self.inner.observer.answered(&Exchange { engine, failure, status, took: sent.elapsed() });
            let failure = match answer {
                Ok(answer) => {
                    meter.count(true);
                    terms.budget.settle(receipt, true).await;
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let maybe_charged = failure.fate().maybe_charged;
            meter.count(maybe_charged);
            terms.budget.settle(receipt, maybe_charged).await;
            let Some(pause) = self.pause_after(&failure) else { return Err(failure) };
            let until = Instant::now() + pause;
            self.inner.quota.pause(until).await;
            self.inner.observer.paused(pause);
            drop(turn);
            if until > deadline {
                return Err(failure);
            }
            warn!(attempt = meter.requests(), ?pause, "rate limit exceeded, retrying when the pause is over");
        }
    }

    /// A turn and a place in the quota, and when waits must be over.
    async fn admitted(&self, terms: &Terms<'_>, deadline: &OnceLock<Instant>) -> Result<(Turn, Instant), Error> {
        let asked = Instant::now();
        let admitted = self.waited(terms, deadline).await;
        self.inner.observer.admitted(asked.elapsed());
        admitted
    }

    async fn waited(&self, terms: &Terms<'_>, deadline: &OnceLock<Instant>) -> Result<(Turn, Instant), Error> {
        let turn = terms.stop.run_until_cancelled(self.inner.turns.next(terms.party)).await;
        let turn = turn.ok_or(Error::Stopped)?;
        let deadline = *deadline.get_or_init(|| Instant::now() + self.inner.retries.total);
        let permitted = terms.stop.run_until_cancelled(timeout_at(deadline, self.inner.quota.acquire())).await;
        let Ok(permitted) = permitted.ok_or(Error::Stopped)? else {
            return Err(QuotaUnavailable(format!("no permit within {:?}", self.inner.retries.total)).into());
        };
        permitted?;
        Ok((turn, deadline))
    }

    /// Whether a failure is met by another request. What quota and budget cannot tell now is not asked again at once, and a pause was waited
    /// out already.
    fn is_retried(&self, error: &Error) -> bool {
        match error {
            Error::Quota(_) | Error::Budget(_) => false,
            Error::Damaged { .. } => self.inner.retries.damaged,
            _ => error.fate().retry && self.pause_after(error).is_none(),
        }
    }

    /// How long nobody may send after this failure. A failure with a pause is waited out, or given up; it is no retry.
    fn pause_after(&self, failure: &Error) -> Option<Duration> {
        match failure {
            Error::RateLimited { retry_after, .. } => {
                Some(retry_after.unwrap_or(self.inner.lockout)).filter(|pause| !pause.is_zero())
            }
            _ => None,
        }
    }
}

pub(crate) fn checked(answer: Answer) -> Result<Answer, Error> {
    if answer.status == 200 {
        return Ok(answer);
    }
    Err(Error::from_status(ApiFailure::read(answer.status, &answer.body), answer.retry_after))
}

#[cfg(test)]
mod tests;
