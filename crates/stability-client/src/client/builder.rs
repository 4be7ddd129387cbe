//! The builder of a client.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::{Client, Inner};
use crate::api_key::ApiKey;
use crate::fair_scheduler::FairScheduler;
use crate::http::{Http, HttpSettings};
use crate::options::ResponseFormat;
use crate::quota::{GovernorQuota, Quota};
use crate::retry::{Observer, RetryPolicy};

const DEFAULT_BASE_URL: &str = "https://api.stability.ai/";

/// Builds a [`Client`]. Every setting except the API key has a default.
#[must_use]
pub struct ClientBuilder {
    http: HttpSettings,
    quota: Arc<dyn Quota>,
    max_in_flight: NonZeroUsize,
    retry_policy: RetryPolicy,
    lockout: Duration,
    response_format: ResponseFormat,
    observers: Vec<Arc<dyn Observer>>,
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
            http: HttpSettings {
                api_key: api_key.into(),
                base_url: Url::parse(DEFAULT_BASE_URL).expect("the default base URL is valid"),
                connect_timeout: Duration::from_secs(10),
                request_timeout: Duration::from_mins(1),
                user_agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned(),
                headers: Vec::new(),
                proxy: None,
                root_certificates: Vec::new(),
            },
            quota: Arc::new(GovernorQuota::default()),
            max_in_flight: NonZeroUsize::new(4).expect("not 0"),
            retry_policy: RetryPolicy::default(),
            lockout: Duration::from_mins(1),
            response_format: ResponseFormat::default(),
            observers: Vec::new(),
        }
    }
}

impl ClientBuilder {
    /// Sets the base URL of the API. Default: `https://api.stability.ai/`.
    pub fn base_url(mut self, base_url: Url) -> Self {
        self.http.base_url = base_url;
        self
    }

    /// Sets the time limit of one request, up to the last byte of its response. Default: 60 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.http.request_timeout = timeout;
        self
    }

    /// Sets the time limit for establishing a connection. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.http.connect_timeout = timeout;
        self
    }

    /// Sets the `User-Agent` header. Default: name and version of this crate.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.http.user_agent = user_agent.into();
        self
    }

    /// Sets the organization that is charged, if the account has several: the `Organization` header.
    pub fn organization(mut self, id: impl Into<String>) -> Self {
        self.http.headers.push(("organization", id.into()));
        self
    }

    /// Identifies the calling application to Stability's support.
    ///
    /// Sets the headers `Stability-Client-ID` and `Stability-Client-Version`.
    pub fn client_id(mut self, id: impl Into<String>, version: impl Into<String>) -> Self {
        self.http.headers.push(("stability-client-id", id.into()));
        self.http.headers.push(("stability-client-version", version.into()));
        self
    }

    /// Sets the proxy of all requests. Default: the proxy set in the environment.
    pub fn proxy(mut self, proxy: Url) -> Self {
        self.http.proxy = Some(proxy);
        self
    }

    /// Adds root certificates (PEM, one or several) that are trusted in addition to the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.http.root_certificates.push(pem.into());
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
    pub fn retry_policy(mut self, retries: RetryPolicy) -> Self {
        self.retry_policy = retries;
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
    pub fn response_format(mut self, form: ResponseFormat) -> Self {
        self.response_format = form;
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
    /// root certificate is not PEM, the base URL is not an HTTP URL, the proxy URL is invalid, or the TLS setup fails. Its text never contains the API
    /// key.
    pub fn build(self) -> Result<Client, BuildError> {
        let inner = Inner {
            transport: Box::new(Http::new(self.http).map_err(BuildError)?),
            quota: self.quota,
            scheduler: FairScheduler::new(self.max_in_flight),
            retry_policy: self.retry_policy,
            lockout: self.lockout,
            response_format: self.response_format,
            observers: self.observers,
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}
