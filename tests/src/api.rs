//! The HTTP API of `asset-worker serve`, as a client sees it.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::{TestEnv, WAIT_TIMEOUT, Worker};

/// A running `asset-worker serve`, with a client of it; dropping it stops the process.
pub struct ApiServer {
    server: Worker,
    client: ApiClient,
}

impl Deref for ApiServer {
    type Target = ApiClient;

    fn deref(&self) -> &ApiClient {
        &self.client
    }
}

impl DerefMut for ApiServer {
    fn deref_mut(&mut self) -> &mut ApiClient {
        &mut self.client
    }
}

impl ApiServer {
    /// The process.
    pub fn process(&mut self) -> &mut Worker {
        &mut self.server
    }
}

/// Calls the API at one address with one token, or none.
#[derive(Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    address: String,
    token: Option<String>,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; panics if it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The status, and the fields that the answer says are not allowed.
    pub fn invalid_fields(&self) -> (u16, Vec<String>) {
        let errors = self.json()["errors"].as_array().cloned().unwrap_or_default();
        let fields = errors.iter().map(|error| error["field"].as_str().unwrap_or_default().to_owned());
        (self.status, fields.collect())
    }
}

impl ApiClient {
    /// The same API with another token.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// The same API, without a token, for a client that does not follow redirects.
    pub fn without_redirects(&self) -> Result<Self> {
        let http = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build()?;
        Ok(Self { http, address: self.address.clone(), token: None })
    }

    /// Host and port of the API.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Begins a request.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("http://{}{path}", self.address)).timeout(WAIT_TIMEOUT);
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request and reads the answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    }

    /// Gets a path.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends JSON with this method.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Answer> {
        let request = self.request(method, path).header("content-type", "application/json");
        self.send(request.body(body.to_string())).await
    }

    /// Puts JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.call(Method::PUT, path, body).await
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.call(Method::POST, path, body).await
    }

    /// Begins to receive the events of a job.
    pub async fn watch(&self, job_id: &str, last_event_id: Option<&str>) -> Result<ServerEvents> {
        let mut request = self.request(Method::GET, &format!("/v1/jobs/{job_id}/events"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        Ok(ServerEvents { response, received: String::new(), status })
    }
}

/// A stream of server-sent events.
pub struct ServerEvents {
    response: Response,
    received: String,
    /// The status of the answer.
    pub status: u16,
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEvent {
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Its data.
    pub data: String,
}

impl ServerEvent {
    /// The data as JSON; panics if it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).expect("the data is JSON")
    }
}

impl ServerEvents {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<ServerEvent>> {
        loop {
            if let Some((block, rest)) = self.received.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.received = rest;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                // Comments keep the connection open.
                let Some(data) = field("data") else { continue };
                return Ok(Some(ServerEvent {
                    id: field("id").context("an id")?.to_owned(),
                    kind: field("event").context("a type")?.to_owned(),
                    data: data.to_owned(),
                }));
            }
            let Some(chunk) = self.response.chunk().await? else { return Ok(None) };
            self.received += std::str::from_utf8(&chunk)?;
        }
    }

    /// All events until the stream ends.
    pub async fn rest(mut self) -> Result<Vec<ServerEvent>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

impl TestEnv {
    /// Starts the HTTP API and waits until it is ready. The client has the token `API_TOKEN` of the environment.
    pub async fn start_api(&self) -> Result<ApiServer> {
        let mut server = self.start(&["serve"])?;
        server.wait_until_ready().await?;
        // It is ready without the broker, but it has not declared the queues yet.
        server.wait_for_log("connected to the broker").await?;
        let client = ApiClient {
            http: dev_services::http_client()?,
            address: server.address()?,
            token: self.setting("API_TOKEN").map(str::to_owned),
        };
        Ok(ApiServer { server, client })
    }
}
