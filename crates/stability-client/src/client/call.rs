//! One call: waits for a turn and the quota, sends requests and retries them. The only retry loop of the client.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{GenerateError, Generation, Inner, error_for_status};
use crate::call_options::CallOptions;
use crate::error::{Error, UnusableImage};
use crate::fair_scheduler::Turn;
use crate::quota::QuotaUnavailable;
use crate::request::ApiRequest;
use crate::response::{self, DecodedImages};
use crate::retry::{CallOutcome, Observer, RequestOutcome, Retry};
use crate::trace::{self, CallSpan};
use crate::usage::Usage;
use crate::wire::HttpRequest;

/// State of one call.
pub(super) struct Call<'a> {
    client: &'a Inner,
    request: ApiRequest<'a>,
    options: &'a CallOptions<'a>,
    usage: Usage,
    /// Latest end of any wait in this call; set when its first request gets its turn.
    deadline: Option<Instant>,
    /// Whether the one extra request for an unusable image was used.
    regenerated: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(client: &'a Inner, request: ApiRequest<'a>, options: &'a CallOptions<'a>) -> Self {
        Self { client, request, options, usage: Usage::default(), deadline: None, regenerated: false }
    }

    /// Sends requests until one succeeds and `accept` takes its images, or until a failure is final.
    pub(super) async fn run<T, F>(mut self, accept: impl Fn(Generation) -> F + Send) -> Result<T, GenerateError>
    where
        F: Future<Output = Result<T, UnusableImage>> + Send,
    {
        let (started, mut accept_time) = (Instant::now(), Duration::ZERO);
        let span = CallSpan::new(&self.request, self.client.transport.server_address().as_ref());
        let result = loop {
            let error = match span.run(self.attempt()).await {
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
            let Some(wait) = span.in_scope(|| self.decide_retry(&error)) else { break Err(error) };
            // If `stop` ends the wait, the next attempt returns `Stopped` without sending.
            let _ = self.options.stop.run_until_cancelled(sleep(wait)).await;
        };
        let error_kind = result.as_ref().err().map(Error::kind);
        let duration = started.elapsed().saturating_sub(accept_time);
        let ApiRequest { operation, model, prompt, .. } = self.request;
        self.notify_observers(|observer| {
            observer.on_call_end(&CallOutcome { operation, model, error_kind, duration });
        });
        span.record_requests(self.usage.requests);
        result.map_err(|error| {
            span.record_failure(&error);
            let refused = matches!(error, Error::ContentPolicy(_) | Error::Filtered);
            if let Some(prompt) = prompt.filter(|_| refused && self.client.log_refused_prompts) {
                span.log_refused_prompt(prompt, &error);
            }
            GenerateError { error, usage: self.usage }
        })
    }

    /// Sends one request: waits for a turn and the quota, reserves, sends, commits or refunds, and counts the usage.
    async fn attempt(&mut self) -> Result<Generation, Error> {
        let turn = trace::in_quota_span(self.admit()).await?;
        let CallOptions { stop, budget, tenant: _ } = self.options;
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let reservation = match budget.reserve().await {
            Ok(reservation) => reservation,
            // The budget may have waited for a refund until the call was stopped.
            Err(_) if stop.is_cancelled() => return Err(Error::Stopped),
            Err(error) => return Err(error.into()),
        };
        trace::log_sending(self.usage.requests + 1);
        let sent_at = Instant::now();
        let http = HttpRequest { resend_count: self.usage.requests, ..self.request.http.clone() };
        let response = self.client.transport.send(http).await;
        let status = response.as_ref().ok().map(|response| response.status);
        let response = response.and_then(error_for_status);
        let error_kind = response.as_ref().err().map(Error::kind);
        let ApiRequest { operation, model, api_version, images, .. } = self.request;
        let outcome = RequestOutcome { operation, model, error_kind, status, duration: sent_at.elapsed() };
        self.notify_observers(|observer| observer.on_request_end(&outcome));
        // A 200 response is charged, even if its body is unusable.
        let charged = response.as_ref().err().is_none_or(|error| error.class().possibly_charged);
        self.usage.count_request(charged, images);
        if charged {
            budget.commit(reservation).await;
        } else {
            budget.refund(reservation).await;
        }
        if let Some(pause) = response.as_ref().err().and_then(|error| self.rate_limit_pause(error)) {
            self.client.quota.pause(Instant::now() + pause).await;
            self.notify_observers(|observer| observer.on_pause(pause));
        }
        drop(turn);
        let DecodedImages { images, withheld } = response::decode(api_version, &response?)?;
        Ok(Generation { images, withheld, usage: self.usage })
    }

    /// Waits for a turn, then for the quota. The first turn sets the deadline of the call.
    async fn admit(&mut self) -> Result<Turn, Error> {
        let queued_at = Instant::now();
        let CallOptions { stop, budget: _, tenant } = self.options;
        let total_timeout = self.client.retry_policy.total_timeout;
        let admitted = match stop.run_until_cancelled(self.client.scheduler.acquire(*tenant)).await {
            None => Err(Error::Stopped),
            Some(turn) => {
                let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + total_timeout);
                match stop.run_until_cancelled(timeout_at(deadline, self.client.quota.acquire())).await {
                    None => Err(Error::Stopped),
                    Some(Ok(permit)) => permit.map(|()| turn).map_err(Error::from),
                    Some(Err(_)) => Err(QuotaUnavailable(format!("no permit within {total_timeout:?}")).into()),
                }
            }
        };
        let wait = queued_at.elapsed();
        self.notify_observers(|observer| observer.on_admission_wait(wait));
        admitted
    }

    /// Returns how long to wait before the next request; `None` ends the call.
    fn decide_retry(&mut self, error: &Error) -> Option<Duration> {
        let lockout = self.lockout_wait(error);
        let retry_policy = &self.client.retry_policy;
        let wait = match error {
            // Quota and budget failures are not retried within a call.
            Error::Quota(_) | Error::Budget(_) => return None,
            Error::RateLimited { .. } if lockout.is_some() => lockout?,
            Error::Unusable(UnusableImage { damaged: false, .. }) if self.request.repeats_result => return None,
            Error::Damaged { .. } | Error::Unusable(_) => {
                // Requested once more, if a retry is left.
                retry_policy.delay(self.usage.retries).filter(|_| !self.regenerated)?;
                self.regenerated = true;
                Duration::ZERO
            }
            error if error.class().retryable => {
                let delay = retry_policy.delay(self.usage.retries)?;
                delay.max(error.retry_after().unwrap_or_default())
            }
            _ => return None,
        };
        if self.deadline.is_some_and(|deadline| Instant::now() + wait > deadline) {
            return None;
        }
        let attempt = self.usage.requests;
        if lockout.is_some() {
            trace::log_lockout(attempt, wait);
            // No sleep here: `Quota::acquire` waits until the pause is over.
            return Some(Duration::ZERO);
        }
        self.usage.retries += 1;
        let error_kind = error.kind();
        self.notify_observers(|observer| observer.on_retry(&Retry { attempt, error_kind, wait }));
        trace::log_retry(attempt, wait, error);
        Some(wait)
    }

    fn notify_observers(&self, notify: impl Fn(&dyn Observer)) {
        self.client.observers.iter().for_each(|observer| notify(observer.as_ref()));
    }

    /// How long the account is locked out after this failure. Such a wait uses no retry.
    ///
    /// A 429 response with a shorter `Retry-After` is no lock-out, and with a lock-out of zero none is.
    fn lockout_wait(&self, failure: &Error) -> Option<Duration> {
        let lockout = self.client.lockout;
        self.rate_limit_pause(failure).filter(|pause| !lockout.is_zero() && *pause >= lockout)
    }

    /// How long all requests are paused after this failure.
    fn rate_limit_pause(&self, failure: &Error) -> Option<Duration> {
        match failure {
            Error::RateLimited { retry_after, .. } => {
                Some(retry_after.unwrap_or(self.client.lockout)).filter(|pause| !pause.is_zero())
            }
            _ => None,
        }
    }
}
