//! HTTP transport: the only module that uses `reqwest`.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::multipart::Form;
use reqwest::{RequestBuilder, Response};
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};
use url::Url;

use crate::api_key::ApiKey;
use crate::error::Error;
use crate::wire::{HttpBody, HttpRequest, HttpResponse, MAX_BODY_BYTES};

/// Upper bound of the wait taken from a `Retry-After` header.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Sends one request and reads its complete response.
#[async_trait]
pub(crate) trait Transport: Send + Sync {
    /// # Errors
    ///
    /// [`Error::Connect`], [`Error::Timeout`], [`Error::Interrupted`], or [`Error::TooLong`] if the body exceeds
    /// [`MAX_BODY_BYTES`].
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error>;

    /// Uses another key for the requests that are sent from now on.
    ///
    /// # Errors
    ///
    /// Why the key cannot be used; the former one stays.
    fn replace_api_key(&self, _key: ApiKey) -> Result<(), String> {
        Ok(())
    }

    /// Host and port of the server, if known.
    fn server_address(&self) -> Option<(String, u16)> {
        None
    }
}

pub(crate) struct HttpSettings {
    pub(crate) api_key: ApiKey,
    pub(crate) base_url: Url,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) user_agent: String,
    /// Optional headers of the API: `Organization`, `Stability-Client-ID`, `Stability-Client-Version`.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) proxy: Option<Url>,
    /// PEM certificates that are trusted in addition to the system's.
    pub(crate) root_certificates: Vec<Vec<u8>>,
}

pub(crate) struct Http {
    client: reqwest::Client,
    base_url: Url,
    /// The key of requests that are sent from now on. A request in flight keeps its own.
    credentials: RwLock<Arc<Credentials>>,
}

/// An API key and the header that carries it.
struct Credentials {
    api_key: ApiKey,
    authorization: HeaderValue,
}

impl Credentials {
    fn new(api_key: ApiKey) -> Result<Self, String> {
        let mut authorization = HeaderValue::from_str(&api_key.bearer())
            .map_err(|_| "the API key contains characters that are not allowed in a header".to_owned())?;
        authorization.set_sensitive(true);
        Ok(Self { api_key, authorization })
    }

    /// Redacts the API key in the body of an error response, because parts of the body appear in error texts.
    fn redact(&self, body: &[u8]) -> Vec<u8> {
        self.api_key.redact(&String::from_utf8_lossy(body)).into_bytes()
    }
}

impl Http {
    pub(crate) fn new(settings: HttpSettings) -> Result<Self, String> {
        // Fails only if the process has already installed a crypto provider, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let credentials = RwLock::new(Arc::new(Credentials::new(settings.api_key)?));
        let mut headers = HeaderMap::new();
        let value = |name: &str, text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| format!("{name}: {text:?} contains characters that are not allowed in a header"))
        };
        headers.insert(USER_AGENT, value("user agent", &settings.user_agent)?);
        for (name, text) in &settings.headers {
            headers.insert(HeaderName::from_static(name), value(name, text)?);
        }
        let mut builder = reqwest::Client::builder();
        if let Some(proxy) = settings.proxy {
            // The text omits the URL, which may contain a password.
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| "the proxy URL is invalid".to_owned())?);
        }
        for pem in &settings.root_certificates {
            let certificates = reqwest::Certificate::from_pem_bundle(pem);
            let certificates = certificates.map_err(|_| "a root certificate is not PEM".to_owned())?;
            if certificates.is_empty() {
                return Err("a root certificate is not PEM".to_owned());
            }
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder
            .default_headers(headers)
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout)
            // The API key must not be sent to the target of a redirect.
            .redirect(reqwest::redirect::Policy::none())
            // Retries are done by `Client`: reqwest's own would be neither logged nor counted.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| error.without_url().to_string())?;
        let mut base_url = settings.base_url;
        if !matches!(base_url.scheme(), "http" | "https") {
            return Err(format!("base URL: {:?} is not allowed; an http:// or https:// URL", base_url.scheme()));
        }
        if !base_url.path().ends_with('/') {
            base_url.set_path(&format!("{}/", base_url.path()));
        }
        Ok(Self { client, base_url, credentials })
    }
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error> {
        let url = self.base_url.join(&request.path).map_err(|error| Error::Connect(error.to_string()))?;
        let span = request_span(&request, &url);
        let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        let sending = self.build_request(request, url, &credentials).send().instrument(span.clone());
        let result = match sending.await {
            Ok(response) => read_response(response, &credentials).instrument(span.clone()).await,
            Err(error) => Err(convert_error(error)),
        };
        match &result {
            Ok(response) => {
                span.record("http.response.status_code", response.status);
                if response.status != 200 {
                    span.record("error.type", response.status.to_string());
                    span.record("otel.status_code", "ERROR");
                }
            }
            Err(error) => {
                span.record("error.type", error.kind());
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", error.to_string());
            }
        }
        result
    }

    fn replace_api_key(&self, key: ApiKey) -> Result<(), String> {
        let credentials = Arc::new(Credentials::new(key)?);
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
        Ok(())
    }

    fn server_address(&self) -> Option<(String, u16)> {
        Some((self.base_url.host_str()?.to_owned(), self.base_url.port_or_known_default()?))
    }
}

/// A client span by OpenTelemetry's semantic conventions for HTTP.
fn request_span(request: &HttpRequest, url: &Url) -> Span {
    let method = match request.body {
        HttpBody::None => "GET",
        HttpBody::Json(_) | HttpBody::Form(_) => "POST",
    };
    info_span!(
        "http request",
        otel.name = method,
        otel.kind = "client",
        http.request.method = method,
        http.request.resend_count = (request.resend_count > 0).then_some(request.resend_count),
        http.response.status_code = Empty,
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
        url.full = url.as_str(),
        "error.type" = Empty,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

impl Http {
    fn build_request(&self, request: HttpRequest, url: Url, credentials: &Credentials) -> RequestBuilder {
        let builder = match request.body {
            HttpBody::None => self.client.get(url),
            HttpBody::Json(body) => self.client.post(url).json(&body),
            HttpBody::Form(fields) => {
                let form = fields.into_iter().fold(Form::new(), |form, (name, value)| form.text(name, value));
                self.client.post(url).multipart(form)
            }
        };
        builder.header(ACCEPT, request.accept).header(AUTHORIZATION, credentials.authorization.clone())
    }
}

async fn read_response(mut response: Response, credentials: &Credentials) -> Result<HttpResponse, Error> {
    let mut read = parse_head(response.status().as_u16(), response.headers());
    // With its length known, the body is copied once and never moved.
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let mut body = BytesMut::with_capacity(announced.min(MAX_BODY_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(convert_error)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(Error::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    read.body = if read.status == 200 { body.freeze() } else { credentials.redact(&body).into() };
    Ok(read)
}

/// Parses status and headers; the body is left empty.
pub(crate) fn parse_head(status: u16, headers: &HeaderMap) -> HttpResponse {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    HttpResponse {
        status,
        retry_after: text("retry-after")
            .and_then(|value| retry_after::parse(value, SystemTime::now(), MAX_RETRY_AFTER)),
        content_type: text("content-type")
            .and_then(|value| value.split(';').next())
            .map(|kind| kind.trim().to_lowercase()),
        finish_reason: text("finish-reason").map(str::to_owned),
        seed: text("seed").and_then(|value| value.parse().ok()),
        body: Bytes::new(),
    }
}

fn convert_error(error: reqwest::Error) -> Error {
    let timeout = error.is_timeout();
    let connect = error.is_connect();
    let cause = root_cause(&error.without_url());
    match (timeout, connect) {
        (_, true) => Error::Connect(cause),
        (true, false) => Error::Timeout,
        (false, false) => Error::Interrupted(cause),
    }
}

/// Text of the innermost source: it names the cause, while the layers above it only say "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
