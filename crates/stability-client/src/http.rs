//! HTTP transport.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response, Url};

use crate::api_key::ApiKey;
use crate::error::Error;
use crate::tls;
use crate::trace::RequestSpan;
use crate::wire::{FormValue, HttpBody, HttpRequest, HttpResponse, MAX_BODY_BYTES};

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
    pub(crate) base_url: String,
    pub(crate) request_timeout: Duration,
    pub(crate) user_agent: String,
    /// Optional headers of the API: `Organization`, `Stability-Client-ID`, `Stability-Client-Version`.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) connection: Connection,
}

/// How connections are made.
pub(crate) enum Connection {
    /// By a client of the caller.
    Custom(reqwest::Client),
    /// By a client that is built from these settings.
    Own { connect_timeout: Duration, proxy: Option<String>, root_certificates: Vec<Vec<u8>> },
}

pub(crate) struct Http {
    client: reqwest::Client,
    base_url: Url,
    request_timeout: Duration,
    /// Headers of every request.
    headers: HeaderMap,
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
        let client = match settings.connection {
            Connection::Custom(client) => client,
            Connection::Own { connect_timeout, proxy, root_certificates } => {
                build_client(connect_timeout, proxy.as_deref(), &root_certificates)?
            }
        };
        let base_url = parse_base_url(&settings.base_url)?;
        Ok(Self { client, base_url, request_timeout: settings.request_timeout, headers, credentials })
    }
}

/// TLS, redirects and retries as this client needs them.
pub(crate) fn client_builder(root_certificates: &[Vec<u8>]) -> Result<reqwest::ClientBuilder, String> {
    let builder = tls::configure(reqwest::Client::builder(), root_certificates)?;
    // The API key must not be sent to the target of a redirect. Retries are done by `Call`: reqwest's own would be
    // neither logged nor counted.
    Ok(builder.redirect(reqwest::redirect::Policy::none()).retry(reqwest::retry::never()))
}

fn build_client(
    connect_timeout: Duration,
    proxy: Option<&str>,
    root_certificates: &[Vec<u8>],
) -> Result<reqwest::Client, String> {
    let mut builder = client_builder(root_certificates)?.connect_timeout(connect_timeout);
    if let Some(proxy) = proxy {
        // The text omits the URL, which may contain a password.
        builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| "the proxy URL is invalid".to_owned())?);
    }
    builder.build().map_err(|error| error.without_url().to_string())
}

/// Parses the base URL and appends a slash to its path if it has none.
fn parse_base_url(text: &str) -> Result<Url, String> {
    let refuse = |what: &str| format!("base URL: {what:?} is not allowed; an http:// or https:// URL");
    // A URL may contain a password: only its scheme is shown.
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let mut url = Url::parse(text).map_err(|_| refuse(scheme))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse(url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("base URL: a user, password, query or fragment is not allowed".to_owned());
    }
    tls::check(&url)?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error> {
        let url = self.base_url.join(&request.path).map_err(|error| Error::Connect(error.to_string()))?;
        let span = RequestSpan::new(&request, &url);
        let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        let exchange = async {
            match self.build_request(request, url, &credentials).send().await {
                Ok(response) => read_response(response, &credentials).await,
                Err(error) => Err(convert_error(error)),
            }
        };
        let result = span.run(exchange).await;
        span.record_result(&result);
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

impl Http {
    fn build_request(&self, request: HttpRequest, url: Url, credentials: &Credentials) -> RequestBuilder {
        let builder = match request.body {
            HttpBody::None => self.client.get(url),
            HttpBody::Json(body) => self.client.post(url).json(&body),
            HttpBody::Form(fields) => {
                let form = fields.into_iter().fold(Form::new(), |form, (name, value)| match value {
                    FormValue::Text(text) => form.text(name, text),
                    FormValue::File { bytes, media_type } => form.part(name, file_part(bytes, media_type)),
                });
                self.client.post(url).multipart(form)
            }
        };
        builder
            .timeout(self.request_timeout)
            .headers(self.headers.clone())
            .header(ACCEPT, request.accept)
            .header(AUTHORIZATION, credentials.authorization.clone())
    }
}

fn file_part(bytes: Bytes, media_type: &'static str) -> Part {
    let part = Part::stream(bytes).file_name("image");
    part.mime_str(media_type).expect("the media type of an image is valid")
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
