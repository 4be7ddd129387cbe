//! The client: quota, requests in flight, retries.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::Retryable;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};
use url::Url;

use crate::account::{Balance, EngineListing};
use crate::answer::{self, Picture};
use crate::api_key::ApiKey;
use crate::error::{ApiFailure, Error};
use crate::quota::{GovernorQuota, Quota, QuotaUnavailable};
use crate::request::TextToImage;
use crate::retry::RetryPolicy;
use crate::transport::{Answer, Call, Http, HttpSettings, Transport};

/// The public API.
const BASE_URL: &str = "https://api.stability.ai/";

/// What a picture or a failure cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests that were sent.
    pub requests: u32,
    /// Those of them that the account was or may have been charged for.
    pub maybe_charged: u32,
}

/// A picture as the API made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The encoded picture, not looked at.
    pub image: Bytes,
    /// The seed that was used.
    pub seed: u32,
    /// What it cost, retries included.
    pub spent: Spent,
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
    in_flight: Semaphore,
    retries: RetryPolicy,
    lockout: Duration,
}

/// Makes a [`Client`]. Everything but the key has a default.
pub struct ClientBuilder {
    api_key: ApiKey,
    base_url: Url,
    connect_timeout: Duration,
    request_timeout: Duration,
    quota: Arc<dyn Quota>,
    max_in_flight: NonZeroUsize,
    retries: RetryPolicy,
    lockout: Duration,
}

impl ClientBuilder {
    /// Where the API is; the public one unless set.
    #[must_use]
    pub fn base_url(mut self, base_url: Url) -> Self {
        self.base_url = base_url;
        self
    }

    /// The bound on one request, from sending it to the last byte of its answer; 60 s unless set.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// The bound on making a connection; 10 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Who says when a request may be sent; a [`GovernorQuota`] of 150 a minute unless set.
    #[must_use]
    pub fn quota(mut self, quota: Arc<dyn Quota>) -> Self {
        self.quota = quota;
        self
    }

    /// A quota of this process alone: `per_minute` requests, of which at most 10 come at once.
    #[must_use]
    pub fn rate_limit(self, per_minute: NonZeroU32) -> Self {
        let burst = per_minute.min(NonZeroU32::new(10).expect("not 0"));
        self.quota(Arc::new(GovernorQuota::new(per_minute, burst)))
    }

    /// How many requests may be in flight at once; 4 unless set.
    #[must_use]
    pub fn max_in_flight(mut self, max_in_flight: NonZeroUsize) -> Self {
        self.max_in_flight = max_in_flight;
        self
    }

    /// When a failed request is sent again.
    #[must_use]
    pub fn retries(mut self, retries: RetryPolicy) -> Self {
        self.retries = retries;
        self
    }

    /// How long nobody sends after a 429 that names no wait; 60 s unless set, the length of the account's lock-out. With zero the
    /// retry delays stand alone.
    #[must_use]
    pub fn lockout(mut self, lockout: Duration) -> Self {
        self.lockout = lockout;
        self
    }

    /// Makes the client; nothing is sent.
    ///
    /// # Errors
    ///
    /// A sentence, where the key cannot stand in a header or the TLS set-up fails.
    pub fn build(self) -> Result<Client, BuildError> {
        let transport = Http::new(HttpSettings {
            api_key: self.api_key,
            base_url: self.base_url,
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
        })
        .map_err(BuildError)?;
        Ok(Client {
            inner: Arc::new(Inner {
                transport: Box::new(transport),
                quota: self.quota,
                in_flight: Semaphore::new(self.max_in_flight.get()),
                retries: self.retries,
                lockout: self.lockout,
            }),
        })
    }
}

/// The client could not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot make the client: {0}")]
pub struct BuildError(String);

impl Client {
    /// Starts a client with this key.
    pub fn builder(api_key: impl Into<ApiKey>) -> ClientBuilder {
        ClientBuilder {
            api_key: api_key.into(),
            base_url: Url::parse(BASE_URL).expect("a URL"),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_mins(1),
            quota: Arc::new(GovernorQuota::default()),
            max_in_flight: NonZeroUsize::new(4).expect("not 0"),
            retries: RetryPolicy::default(),
            lockout: Duration::from_mins(1),
        }
    }

    /// Makes one picture, retrying what passes.
    ///
    /// A 429 pauses every request of this client, for as long as the API asks or for the lock-out; that uses up no retry.
    /// Dropping the future drops the request in flight, which may be charged all the same.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] with the last failure; its [`crate::Fate`] says what it means.
    pub async fn generate(&self, request: &TextToImage) -> Result<Generated, GenerateError> {
        let call = Call { path: request.path(), body: Some(request.body()) };
        let meter = Meter::default();
        let policy = self.inner.retries.clone();
        let deadline = OnceLock::new();
        let outcome = (|| async {
            let answer = self.attempt(&call, &meter, &deadline).await?;
            answer::decode(&answer.body)
        })
        .retry(policy)
        .when(|error| error.fate().retry && !matches!(error, Error::Quota(_)) && self.pause_after(error).is_none())
        .adjust(|_, wait| {
            let end = Instant::now() + wait?;
            (end <= *deadline.get().unwrap_or(&end)).then_some(wait?)
        })
        .notify(|error, wait| {
            let attempt = meter.requests();
            let cause = error.kind();
            if matches!(error, Error::RateLimited { .. }) {
                warn!(attempt, cause, ?wait, "rate limit exceeded, retrying");
            } else {
                warn!(attempt, cause, ?wait, %error, "request failed, retrying");
            }
        })
        .await;
        match outcome {
            Ok(Picture { image, seed }) => Ok(Generated { image, seed, spent: meter.spent() }),
            Err(error) => {
                if matches!(error, Error::ContentPolicy(_) | Error::Filtered) {
                    // In full, so that people can see what is refused; nowhere else is a prompt logged.
                    warn!(prompt = request.prompt, %error, "content policy refused a prompt");
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

    /// The engines that the account may use.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is retried.
    pub async fn engines(&self) -> Result<Vec<EngineListing>, Error> {
        self.get("v1/engines/list").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = checked(self.inner.transport.send(Call { path: path.to_owned(), body: None }).await?)?;
        serde_json::from_slice(&answer.body).map_err(|error| Error::Undecodable(error.to_string()))
    }

    /// One request that counts as an attempt: lock-outs met on the way are waited out.
    async fn attempt(&self, call: &Call, meter: &Meter, deadline: &OnceLock<Instant>) -> Result<Answer, Error> {
        loop {
            let _permit = self.inner.in_flight.acquire().await.expect("the semaphore is never closed");
            let deadline = *deadline.get_or_init(|| Instant::now() + self.inner.retries.total);
            let Ok(permitted) = timeout_at(deadline, self.inner.quota.acquire()).await else {
                return Err(QuotaUnavailable(format!("no permit within {:?}", self.inner.retries.total)).into());
            };
            permitted?;
            debug!(attempt = meter.requests() + 1, "sending a request");
            let failure = match self.inner.transport.send(call.clone()).await.and_then(checked) {
                Ok(answer) => {
                    meter.count(true);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            meter.count(failure.fate().maybe_charged);
            let Some(pause) = self.pause_after(&failure) else { return Err(failure) };
            let until = Instant::now() + pause;
            self.inner.quota.pause(until).await;
            if until > deadline {
                return Err(failure);
            }
            warn!(attempt = meter.requests(), ?pause, "rate limit exceeded, retrying when the pause is over");
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

fn checked(answer: Answer) -> Result<Answer, Error> {
    if answer.status == 200 {
        return Ok(answer);
    }
    Err(Error::from_status(ApiFailure::read(answer.status, &answer.body), answer.retry_after))
}

/// Counts the requests of one call.
#[derive(Default)]
struct Meter {
    requests: AtomicU32,
    maybe_charged: AtomicU32,
}

impl Meter {
    /// Counts a request. A good status was charged, whatever its body turns out to be.
    fn count(&self, maybe_charged: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.maybe_charged.fetch_add(u32::from(maybe_charged), Ordering::Relaxed);
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    fn spent(&self) -> Spent {
        Spent { requests: self.requests(), maybe_charged: self.maybe_charged.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests;
