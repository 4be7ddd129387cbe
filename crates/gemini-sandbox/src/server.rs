//! The HTTP server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::faults::{self, Fault};
use crate::response;
use crate::rules::{self, ApiError, NumberedText};

/// Longer than the timeout of any client.
const SLOW_DELAY: Duration = Duration::from_mins(10);

/// Settings of the sandbox.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address to listen on; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// The accepted API key.
    pub key: String,
    /// Names of the models that it serves, without `models/`.
    pub models: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            key: "gm-sandbox".to_owned(),
            models: vec!["gemini-flash-latest".to_owned()],
        }
    }
}

/// Translation requests since the sandbox started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Number of translation requests, including rejected ones.
    pub requests: u32,
    /// The texts of each valid request.
    pub texts: Vec<Vec<String>>,
}

/// A running sandbox, which stops when this value is dropped.
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    settings: Settings,
    state: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ledger: Ledger,
    /// The injected fault, and the number of requests that it still applies to.
    injected: Option<(Fault, u32)>,
}

impl Sandbox {
    /// Starts a sandbox as a background task of the current runtime.
    ///
    /// # Errors
    ///
    /// If it cannot listen on the address.
    #[expect(clippy::disallowed_methods, reason = "the handle is kept; dropping the sandbox aborts the task")]
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { settings, state: Mutex::default() });
        let router = Router::new()
            .route("/v1beta/models/{call}", get(get_model).post(generate_content))
            .fallback(|| async { ApiError::from_status(404) })
            .with_state(shared.clone());
        let server = tokio::spawn(async move {
            // Ends with the runtime, or when the sandbox is dropped.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, server })
    }

    /// The base URL for clients, with a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// A copy of the requests so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().ledger.clone()
    }

    /// Injects a fault into the next `times` requests, replacing the previous one.
    pub fn inject_fault(&self, fault: Fault, times: u32) {
        self.shared.lock().injected = Some((fault, times));
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_model(&self, model: &str) -> Result<(), ApiError> {
        if self.settings.models.iter().any(|known| known == model) { Ok(()) } else { Err(ApiError::from_status(404)) }
    }
}

impl Inner {
    /// The fault for a request with these texts, if any. An injected fault has precedence over markers.
    fn next_fault(&mut self, texts: &[NumberedText]) -> Result<Option<Fault>, String> {
        if let Some((fault, times @ 1..)) = self.injected {
            self.injected = Some((fault, times - 1));
            return Ok(Some(fault));
        }
        faults::find_in_texts(texts.iter().map(|numbered| numbered.text.as_str()))
    }
}

async fn get_model(
    State(shared): State<Arc<Shared>>,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    rules::check_key(&headers, query.as_deref(), &shared.settings.key)?;
    shared.check_model(&model)?;
    let methods = json!(["generateContent", "countTokens"]);
    Ok(Json(json!({"name": format!("models/{model}"), "supportedGenerationMethods": methods})))
}

async fn generate_content(
    State(shared): State<Arc<Shared>>,
    Path(call): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: String,
) -> Result<Response, ApiError> {
    shared.lock().ledger.requests += 1;
    rules::check_key(&headers, query.as_deref(), &shared.settings.key)?;
    let Some((model, "generateContent")) = call.split_once(':') else { return Err(ApiError::from_status(404)) };
    shared.check_model(model)?;
    let body: Value = serde_json::from_str(&body).map_err(|_| ApiError::from_status(400))?;
    let texts = rules::parse_texts(&body)?;
    let fault = {
        let mut state = shared.lock();
        state.ledger.texts.push(texts.iter().map(|numbered| numbered.text.clone()).collect());
        state.next_fault(&texts).map_err(|message| ApiError { message, ..ApiError::from_status(400) })?
    };
    match fault {
        Some(Fault::Status(status)) => return Err(ApiError::from_status(status)),
        Some(Fault::Suspended) => {
            let message = format!("Permission denied: Consumer 'api_key:{}' has been suspended.", shared.settings.key);
            return Err(ApiError { message, ..ApiError::from_status(403) });
        }
        Some(Fault::Slow) => tokio::time::sleep(SLOW_DELAY).await,
        Some(Fault::Html) => {
            return Ok(([(header::CONTENT_TYPE, "text/html")], "<html>please wait</html>").into_response());
        }
        _ => {}
    }
    Ok(Json(response::build_body(&texts, model, fault)).into_response())
}
