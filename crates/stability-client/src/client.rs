//! The client and its results.

mod builder;
mod call;
mod check;

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::account::{Balance, EngineListing};
use crate::api_key::ApiKey;
use crate::call_options::CallOptions;
use crate::error::{ApiFailure, Error, UnusableImage};
use crate::fair_scheduler::FairScheduler;
use crate::http::Transport;
use crate::options::ResponseFormat;
use crate::quota::Quota;
use crate::request::TextToImage;
use crate::response::GeneratedImage;
use crate::retry::{Observer, RetryPolicy};
use crate::upscale::FastUpscale;
use crate::usage::Usage;
use crate::wire::{HttpBody, HttpRequest, HttpResponse};
use call::Call;

pub use builder::{BuildError, ClientBuilder};
pub use check::AccountStatus;

/// The images that one request returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generation {
    /// At least one image, in the order of the response.
    pub images: Vec<GeneratedImage>,
    /// Number of further images that cannot be used: filtered by content policy, not finished, or damaged.
    pub withheld: u32,
    /// What the call has used so far, retries included.
    pub usage: Usage,
}

impl Generation {
    /// The images of a response, for tests of a function that takes a generation.
    pub fn new(images: Vec<GeneratedImage>) -> Self {
        Self { images, withheld: 0, usage: Usage::default() }
    }

    /// Returns the first image. It is the only one unless [`TextToImage::samples`] was set.
    pub fn into_first(self) -> GeneratedImage {
        self.images.into_iter().next().expect("a generation has at least one image")
    }
}

/// A failed call: its last failure, and what it used.
#[derive(Debug, thiserror::Error)]
#[error("{error} (requests sent: {})", .usage.requests)]
#[non_exhaustive]
pub struct GenerateError {
    /// The last failure. The text of this error contains its text.
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

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.inner.transport.server_address()).finish_non_exhaustive()
    }
}

struct Inner {
    transport: Box<dyn Transport>,
    quota: Arc<dyn Quota>,
    scheduler: FairScheduler,
    retry_policy: RetryPolicy,
    lockout: Duration,
    response_format: ResponseFormat,
    log_refused_prompts: bool,
    observers: Vec<Arc<dyn Observer>>,
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
    /// ```no_run
    /// # async fn example(client: stability_client::Client, request: stability_client::TextToImage)
    /// # -> Result<(), stability_client::GenerateError> {
    /// use stability_client::{CallOptions, Generation, UnusableImage};
    ///
    /// let accept = async |generated: Generation| {
    ///     let image = generated.into_first();
    ///     let is_small = image.bytes.len() < 50_000;
    ///     if is_small { Err(UnusableImage::rejected("suspiciously small")) } else { Ok(image.bytes) }
    /// };
    /// let bytes = client.generate_with(&request, &CallOptions::default(), |generated| accept(generated)).await?;
    /// # Ok(())
    /// # }
    /// ```
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
        let request = request.to_api_request(self.inner.response_format);
        Call::new(&self.inner, request, options).run(accept).await
    }

    /// Upscales an image: [`Client::upscale_with`] with default options, accepting every complete image.
    ///
    /// # Errors
    ///
    /// As [`Client::generate`].
    pub async fn upscale(&self, request: &FastUpscale) -> Result<Generation, GenerateError> {
        self.upscale_with(request, &CallOptions::default(), |upscaled| ready(Ok(upscaled))).await
    }

    /// Upscales an image, passes it to `accept`, and returns what `accept` returned.
    ///
    /// Quota, turns, budget and retries are those of [`Client::generate_with`]. An undamaged image that `accept`
    /// rejects is not requested again: the same image is upscaled to the same result.
    ///
    /// # Errors
    ///
    /// As [`Client::generate_with`].
    pub async fn upscale_with<T, F>(
        &self,
        request: &FastUpscale,
        options: &CallOptions<'_>,
        accept: impl Fn(Generation) -> F + Send,
    ) -> Result<T, GenerateError>
    where
        F: Future<Output = Result<T, UnusableImage>> + Send,
    {
        let request = request.to_api_request(self.inner.response_format);
        Call::new(&self.inner, request, options).run(accept).await
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

pub(crate) fn error_for_status(response: HttpResponse) -> Result<HttpResponse, Error> {
    if response.status == 200 {
        return Ok(response);
    }
    Err(Error::from_api_failure(ApiFailure::parse(response.status, &response.body), response.retry_after))
}

#[cfg(test)]
mod tests;
