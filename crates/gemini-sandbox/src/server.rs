//! The HTTP side.

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

use crate::answer;
use crate::faults::{self, Fault};
use crate::rules::{self, Numbered, Refusal};

/// Longer than any client waits.
const SLOW: Duration = Duration::from_mins(10);

/// How the sandbox behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The key that is accepted.
    pub key: String,
    /// Models that it knows.
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

/// What the sandbox was asked since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Requests for translations, refused ones included.
    pub requests: u32,
    /// The texts of each request that was understood.
    pub texts: Vec<Vec<String>>,
}

/// A running sandbox; it stops when this is dropped.
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
    /// What the next requests meet, and how many of them.
    ordered: Option<(Fault, u32)>,
}

impl Sandbox {
    /// Starts a sandbox in the background of this runtime.
    ///
    /// # Errors
    ///
    /// Where it cannot listen on the address.
    #[expect(clippy::disallowed_methods, reason = "the task is kept, and ended when the sandbox is dropped")]
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { settings, state: Mutex::default() });
        let router = Router::new()
            .route("/v1beta/models/{call}", get(model).post(generate))
            .fallback(|| async { Refusal::of_status(404) })
            .with_state(shared.clone());
        let server = tokio::spawn(async move {
            // It ends with the runtime, or when it is dropped.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, server })
    }

    /// The base URL that a client is given.
    pub fn base_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What it was asked so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().ledger.clone()
    }

    /// Lets the next requests meet a fault.
    pub fn order(&self, fault: Fault, times: u32) {
        self.shared.lock().ordered = Some((fault, times));
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

    fn check_model(&self, model: &str) -> Result<(), Refusal> {
        if self.settings.models.iter().any(|known| known == model) { Ok(()) } else { Err(Refusal::of_status(404)) }
    }
}

impl Inner {
    /// What was ordered comes before what stands in a text.
    fn next_fault(&mut self, texts: &[Numbered]) -> Result<Option<Fault>, String> {
        if let Some((fault, times @ 1..)) = self.ordered {
            self.ordered = Some((fault, times - 1));
            return Ok(Some(fault));
        }
        faults::in_texts(texts.iter().map(|numbered| numbered.text.as_str()))
    }
}

async fn model(
    State(shared): State<Arc<Shared>>,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    rules::check_key(&headers, query.as_deref(), &shared.settings.key)?;
    shared.check_model(&model)?;
    let methods = json!(["generateContent", "countTokens"]);
    Ok(Json(json!({"name": format!("models/{model}"), "supportedGenerationMethods": methods})))
}

async fn generate(
    State(shared): State<Arc<Shared>>,
    Path(call): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: String,
) -> Result<Response, Refusal> {
    shared.lock().ledger.requests += 1;
    rules::check_key(&headers, query.as_deref(), &shared.settings.key)?;
    let Some((model, "generateContent")) = call.split_once(':') else { return Err(Refusal::of_status(404)) };
    shared.check_model(model)?;
    let body: Value = serde_json::from_str(&body).map_err(|_| Refusal::of_status(400))?;
    let texts = rules::texts(&body)?;
    let fault = {
        let mut state = shared.lock();
        state.ledger.texts.push(texts.iter().map(|numbered| numbered.text.clone()).collect());
        state.next_fault(&texts).map_err(|message| Refusal { message, ..Refusal::of_status(400) })?
    };
    match fault {
        Some(Fault::Status(status)) => return Err(Refusal::of_status(status)),
        Some(Fault::Suspended) => {
            let message = format!("Permission denied: Consumer 'api_key:{}' has been suspended.", shared.settings.key);
            return Err(Refusal { message, ..Refusal::of_status(403) });
        }
        Some(Fault::Slow) => tokio::time::sleep(SLOW).await,
        Some(Fault::Html) => {
            return Ok(([(header::CONTENT_TYPE, "text/html")], "<html>please wait</html>").into_response());
        }
        _ => {}
    }
    Ok(Json(answer::body(&texts, model, fault)).into_response())
}
