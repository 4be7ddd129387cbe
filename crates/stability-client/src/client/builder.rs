//! The builder of a client.

use std::env::VarError;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use super::{Client, Inner};
use crate::api_key::ApiKey;
use crate::fair_scheduler::FairScheduler;
use crate::http::{self, Connection, Http, HttpSettings};
use crate::options::ResponseFormat;
use crate::quota::{GovernorQuota, Quota};
use crate::retry::{Observer, RetryPolicy};

const DEFAULT_BASE_URL: &str = "https://api.stability.ai/";

/// Builds a [`Client`]. Every setting except the API key has a default.
#[must_use]
pub struct ClientBuilder {
    api_key: ApiKey,
    base_url: String,
    request_timeout: Duration,
    user_agent: String,
    headers: Vec<(&'static str, String)>,
    http_client: Option<reqwest::Client>,
    connect_timeout: Duration,
    proxy: Option<String>,
    root_certificates: Vec<Vec<u8>>,
    quota: Arc<dyn Quota>,
    max_in_flight: NonZeroUsize,
    retry_policy: RetryPolicy,
    lockout: Duration,
    response_format: ResponseFormat,
    log_refused_prompts: bool,
    observers: Vec<Arc<dyn Observer>>,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("retry_policy", &self.retry_policy).finish_non_exhaustive()
    }
}

/// The client could not be built from its settings.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot build the client: {0}")]
pub struct BuildError(String);

impl BuildError {
    pub(super) fn new(cause: String) -> Self {
        Self(cause)
    }
}

impl Client {
    /// Returns a builder of a client that uses this API key.
    pub fn builder(api_key: impl Into<ApiKey>) -> ClientBuilder {
        ClientBuilder {
            api_key: api_key.into(),
            base_url: DEFAULT_BASE_URL.to_owned(),
            request_timeout: Duration::from_mins(1),
            user_agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned(),
            headers: Vec::new(),
            http_client: None,
            connect_timeout: Duration::from_secs(10),
            proxy: None,
            root_certificates: Vec::new(),
            quota: Arc::new(GovernorQuota::default()),
            max_in_flight: NonZeroUsize::new(4).expect("not 0"),
            retry_policy: RetryPolicy::default(),
            lockout: Duration::from_mins(1),
            response_format: ResponseFormat::default(),
            log_refused_prompts: false,
            observers: Vec::new(),
        }
    }

    /// Builds a client from the environment: [`ClientBuilder::from_env`] with all other defaults.
    ///
    /// ```no_run
    /// let client = stability_client::Client::from_env()?;
    /// # Ok::<_, stability_client::BuildError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::from_env`] and [`ClientBuilder::build`].
    pub fn from_env() -> Result<Self, BuildError> {
        ClientBuilder::from_env()?.build()
    }
}

impl ClientBuilder {
    /// Returns a builder with the API key in `STABILITY_API_KEY` and, if it is set, the base URL in
    /// `STABILITY_BASE_URL`.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if `STABILITY_API_KEY` is not set or empty, or a variable is not UTF-8.
    #[expect(clippy::disallowed_methods, reason = "a program that has a config module of its own does not call this")]
    pub fn from_env() -> Result<Self, BuildError> {
        let read = |name: &str| match std::env::var(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => Err(BuildError(format!("{name} is not UTF-8"))),
        };
        let key = read("STABILITY_API_KEY")?.ok_or_else(|| BuildError("STABILITY_API_KEY is not set".to_owned()))?;
        let builder = Client::builder(key);
        Ok(match read("STABILITY_BASE_URL")? {
            Some(base_url) => builder.base_url(base_url),
            None => builder,
        })
    }

    /// Sets the base URL of the API, such as a proxy of your own. Default: `https://api.stability.ai/`.
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Sends all requests with this HTTP client, for example one that other parts of the program share.
    ///
    /// Its own connect timeout, proxy and TLS settings apply instead of [`connect_timeout`](Self::connect_timeout),
    /// [`proxy`](Self::proxy) and [`root_certificates`](Self::root_certificates). Begin with
    /// [`http_client_builder`](Self::http_client_builder), unless the program sets up TLS itself.
    ///
    /// ```
    /// use std::time::Duration;
    /// use stability_client::{Client, ClientBuilder};
    ///
    /// let http = ClientBuilder::http_client_builder()?.pool_idle_timeout(Duration::from_secs(5)).build()?;
    /// let client = Client::builder("sk-1").http_client(http).build()?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http_client = Some(client);
        self
    }

    /// Returns a builder of an HTTP client with TLS as the features of this crate choose it, which follows no redirects
    /// and does not retry: the API has no redirects, and retries of the HTTP client would be neither counted nor paid
    /// for from the [`Budget`](crate::Budget).
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the system's root certificates cannot be read.
    pub fn http_client_builder() -> Result<reqwest::ClientBuilder, BuildError> {
        http::client_builder(&[]).map_err(BuildError)
    }

    /// Sets the time limit of one request, up to the last byte of its response. Default: 60 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the time limit for establishing a connection. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the `User-Agent` header. Default: name and version of this crate.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Sets the organization that is charged, if the account has several: the `Organization` header.
    pub fn organization(mut self, id: impl Into<String>) -> Self {
        self.headers.push(("organization", id.into()));
        self
    }

    /// Identifies the calling application to Stability's support.
    ///
    /// Sets the headers `Stability-Client-ID` and `Stability-Client-Version`.
    pub fn client_id(mut self, id: impl Into<String>, version: impl Into<String>) -> Self {
        self.headers.push(("stability-client-id", id.into()));
        self.headers.push(("stability-client-version", version.into()));
        self
    }

    /// Sets the proxy of all requests. Default: the proxy set in the environment.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Adds root certificates (PEM, one or several) that are trusted in addition to the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates.push(pem.into());
        self
    }

    /// Sets the quota that all image requests wait for. Default: a [`GovernorQuota`] of 150 requests per minute.
    pub fn quota(mut self, quota: Arc<dyn Quota>) -> Self {
        self.quota = quota;
        self
    }

    /// Sets a quota local to this client: `per_minute` requests per minute, at most 10 of them in a burst.
    pub fn rate_limit(self, per_minute: NonZeroU32) -> Self {
        let burst = per_minute.min(NonZeroU32::new(10).expect("not 0"));
        self.quota(Arc::new(GovernorQuota::new(per_minute, burst)))
    }

    /// Sets the maximum number of requests in flight. Default: 4.
    ///
    /// Waiting tenants ([`crate::CallOptions::tenant`]) are served in turn; within a tenant, the call that has waited
    /// longest is next.
    pub fn max_in_flight(mut self, max_in_flight: NonZeroUsize) -> Self {
        self.max_in_flight = max_in_flight;
        self
    }

    /// Sets when and how often failed requests are retried.
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry_policy = policy;
        self
    }

    /// Sets the rate-limit pause after a 429 response without `Retry-After`. Default: 60 s, as long as the API locks an
    /// account out.
    ///
    /// With zero, such a response does not pause other requests; it is retried by the [`RetryPolicy`].
    pub fn lockout(mut self, lockout: Duration) -> Self {
        self.lockout = lockout;
        self
    }

    /// Sets the format in which images are requested from the API. Default: [`ResponseFormat::Image`].
    pub fn response_format(mut self, format: ResponseFormat) -> Self {
        self.response_format = format;
        self
    }

    /// Logs the full prompt, at WARN, when content policy refuses it. Default: off; prompts are then never logged.
    pub fn log_refused_prompts(mut self, enabled: bool) -> Self {
        self.log_refused_prompts = enabled;
        self
    }

    /// Adds an observer of requests, retries and rate-limit pauses. May be called several times.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Builds the client; no request is sent.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the API key or another header value contains characters that are not allowed in a header, a
    /// root certificate is not PEM, the base URL is not an HTTP URL, the proxy URL is invalid, or the TLS setup fails.
    /// Its text never contains the API key.
    pub fn build(self) -> Result<Client, BuildError> {
        let connection = match self.http_client {
            Some(client) => Connection::Custom(client),
            None => Connection::Own {
                connect_timeout: self.connect_timeout,
                proxy: self.proxy,
                root_certificates: self.root_certificates,
            },
        };
        let http = HttpSettings {
            api_key: self.api_key,
            base_url: self.base_url,
            request_timeout: self.request_timeout,
            user_agent: self.user_agent,
            headers: self.headers,
            connection,
        };
        let inner = Inner {
            transport: Box::new(Http::new(http).map_err(BuildError)?),
            quota: self.quota,
            scheduler: FairScheduler::new(self.max_in_flight),
            retry_policy: self.retry_policy,
            lockout: self.lockout,
            response_format: self.response_format,
            log_refused_prompts: self.log_refused_prompts,
            observers: self.observers,
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}

#[cfg(all(test, feature = "rustls"))]
mod tests {
    use super::*;

    #[test]
    fn client_installs_no_crypto_provider_for_the_process() {
        Client::builder("sk-1").build().expect("a client");
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    }
}
