//! Making a client.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::{Client, Inner};
use crate::api_key::ApiKey;
use crate::http::{Http, HttpSettings};
use crate::options::AnswerForm;
use crate::quota::{GovernorQuota, Quota};
use crate::retry::{Observer, RetryPolicy};
use crate::turns::Turns;

/// The public API.
const BASE_URL: &str = "https://api.stability.ai/";

/// Makes a [`Client`]. Everything but the key has a default.
#[must_use]
pub struct ClientBuilder {
    http: HttpSettings,
    quota: Arc<dyn Quota>,
    max_in_flight: NonZeroUsize,
    retries: RetryPolicy,
    lockout: Duration,
    answers: AnswerForm,
    observers: Vec<Arc<dyn Observer>>,
}

/// The client could not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot make the client: {0}")]
pub struct BuildError(String);

impl Client {
    /// Starts a client with this key.
    pub fn builder(api_key: impl Into<ApiKey>) -> ClientBuilder {
        ClientBuilder {
            http: HttpSettings {
                api_key: api_key.into(),
                base_url: Url::parse(BASE_URL).expect("a URL"),
                connect_timeout: Duration::from_secs(10),
                request_timeout: Duration::from_mins(1),
                user_agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned(),
                headers: Vec::new(),
                proxy: None,
                root_certificates: Vec::new(),
            },
            quota: Arc::new(GovernorQuota::default()),
            max_in_flight: NonZeroUsize::new(4).expect("not 0"),
            retries: RetryPolicy::default(),
            lockout: Duration::from_mins(1),
            answers: AnswerForm::default(),
            observers: Vec::new(),
        }
    }
}

impl ClientBuilder {
    /// Where the API is; the public one unless set.
    pub fn base_url(mut self, base_url: Url) -> Self {
        self.http.base_url = base_url;
        self
    }

    /// The bound on one request, from sending it to the last byte of its answer; 60 s unless set.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.http.request_timeout = timeout;
        self
    }

    /// The bound on making a connection; 10 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.http.connect_timeout = timeout;
        self
    }

    /// The `User-Agent` header; name and version of this crate unless set.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.http.user_agent = user_agent.into();
        self
    }

    /// The organization that pays, where the account has several: the `Organization` header.
    pub fn organization(mut self, id: impl Into<String>) -> Self {
        self.http.headers.push(("organization", id.into()));
        self
    }

    /// Who calls, for Stability's support: the `Stability-Client-ID` and `Stability-Client-Version` headers.
    pub fn client_id(mut self, id: impl Into<String>, version: impl Into<String>) -> Self {
        self.http.headers.push(("stability-client-id", id.into()));
        self.http.headers.push(("stability-client-version", version.into()));
        self
    }

    /// The proxy of every request; that of the environment unless set.
    pub fn proxy(mut self, proxy: Url) -> Self {
        self.http.proxy = Some(proxy);
        self
    }

    /// Certificates in PEM, one or several, that are trusted besides the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.http.root_certificates.push(pem.into());
        self
    }

    /// Who says when a request may be sent; a [`GovernorQuota`] of 150 a minute unless set.
    pub fn quota(mut self, quota: Arc<dyn Quota>) -> Self {
        self.quota = quota;
        self
    }

    /// A quota of this process alone: `per_minute` requests, of which at most 10 come at once.
    pub fn rate_limit(self, per_minute: NonZeroU32) -> Self {
        let burst = per_minute.min(NonZeroU32::new(10).expect("not 0"));
        self.quota(Arc::new(GovernorQuota::new(per_minute, burst)))
    }

    /// How many requests may be in flight at once; 4 unless set. The parties that wait
    /// take turns ([`crate::CallOptions::party`]); within a party, the call that waits longest is next.
    pub fn max_in_flight(mut self, max_in_flight: NonZeroUsize) -> Self {
        self.max_in_flight = max_in_flight;
        self
    }

    /// When a failed request is sent again.
    pub fn retries(mut self, retries: RetryPolicy) -> Self {
        self.retries = retries;
        self
    }

    /// How long nobody sends after a 429 that names no wait; 60 s unless set, the length of the account's lock-out. With zero the
    /// retry delays stand alone.
    pub fn lockout(mut self, lockout: Duration) -> Self {
        self.lockout = lockout;
        self
    }

    /// How the API is asked to send pictures; as images unless set.
    pub fn answers(mut self, form: AnswerForm) -> Self {
        self.answers = form;
        self
    }

    /// Notifies this observer too, of requests, retries and pauses. Each call adds one.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Makes the client; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where the key or another header holds what a header cannot carry, a certificate is not PEM, the proxy is of no
    /// use, or the TLS set-up fails. It never repeats the key.
    pub fn build(self) -> Result<Client, BuildError> {
        let inner = Inner {
            transport: Box::new(Http::new(self.http).map_err(BuildError)?),
            quota: self.quota,
            turns: Turns::new(self.max_in_flight),
            retries: self.retries,
            lockout: self.lockout,
            answers: self.answers,
            observers: self.observers,
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}
