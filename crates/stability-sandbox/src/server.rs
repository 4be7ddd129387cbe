//! The HTTP server: text-to-image of v1 and v2beta, the fast upscaler, balance, engines, and control endpoints below
//! `/_sandbox`.

mod account;
mod control;
mod generate;
mod output;
mod upscale;

use std::net::SocketAddr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, header};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::Settings;
use crate::api_error::ApiError;
use crate::faults::{FaultSpec, Faults};
use crate::ledger::{Ledger, RequestRecord};
use crate::limiter::Limiter;

/// The longest request to upscale an image: the largest allowed image fits uncompressed.
const MAX_UPLOAD_BYTES: usize = 10 * 1024 * 1024;

/// A running sandbox, which stops when this value is dropped.
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    state: Mutex<Inner>,
    next_seed: AtomicU32,
}

struct Inner {
    ledger: Ledger,
    request_log: Vec<RequestRecord>,
    faults: Faults,
    limiter: Limiter,
    keys: Vec<String>,
    credits: f64,
    latency: Duration,
    sketch: bool,
    prepared_images: Vec<Bytes>,
    balance_status: Option<u16>,
}

impl Inner {
    fn new(settings: &Settings) -> Self {
        Self {
            ledger: Ledger::default(),
            request_log: Vec::new(),
            faults: Faults::default(),
            limiter: Limiter::new(settings.limit, settings.window, settings.lockout),
            keys: settings.keys.clone(),
            credits: settings.credits,
            latency: settings.latency,
            sketch: settings.sketch,
            prepared_images: Vec::new(),
            balance_status: None,
        }
    }
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
        let state = Mutex::new(Inner::new(&settings));
        let shared = Arc::new(Shared { state, next_seed: AtomicU32::new(1) });
        let router = router(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "sandbox server failed");
            }
        });
        Ok(Self { address, shared, server })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL for clients, with a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// A copy of the counts so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().ledger.clone()
    }

    /// All image requests, in order of arrival.
    pub fn request_log(&self) -> Vec<RequestRecord> {
        self.shared.lock().request_log.clone()
    }

    /// Injects a fault into matching requests.
    ///
    /// # Errors
    ///
    /// A message that lists the known faults, if the fault is unknown.
    pub fn inject_fault(&self, spec: FaultSpec) -> Result<(), String> {
        self.shared.lock().faults.inject(spec)
    }

    /// Removes all injected faults; markers in prompts keep their effect.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Sets the minimum duration of a generation.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.lock().latency = latency;
    }

    /// Sets whether images are sketches or scenes.
    pub fn set_sketch(&self, sketch: bool) {
        self.shared.lock().sketch = sketch;
    }

    /// Returns these PNG files in turn instead of painting images, which takes no CPU time. None: images are painted.
    pub fn set_prepared_images(&self, images: Vec<Bytes>) {
        self.shared.lock().prepared_images = images;
    }

    /// Makes balance requests fail with this status, or succeed if `None`.
    pub fn set_balance_status(&self, status: Option<u16>) {
        self.shared.lock().balance_status = status;
    }

    /// Sets the accepted API keys.
    pub fn set_keys(&self, keys: &[&str]) {
        self.shared.lock().keys = keys.iter().map(ToString::to_string).collect();
    }

    /// Sets the account's credits.
    pub fn set_credits(&self, credits: f64) {
        self.shared.lock().credits = credits;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Checks that the bearer token is one of the account's keys.
    fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let key = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match key {
            Some(key) if self.lock().keys.iter().any(|known| known == key) => Ok(()),
            _ => Err(ApiError::from_status(401)),
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/generation/{engine}/text-to-image", post(generate::v1))
        .route("/v2beta/stable-image/generate/{service}", post(generate::v2beta))
        .route("/v2beta/stable-image/upscale/fast", post(upscale::fast).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .route("/v1/user/balance", get(account::balance))
        .route("/v1/engines/list", get(account::engines))
        .route("/_sandbox/ledger", get(control::ledger))
        .route("/_sandbox/faults", post(control::inject_fault).delete(control::clear_faults))
        .fallback(|| async { ApiError::new(404, "not_found", "no such path") })
        .method_not_allowed_fallback(|| async { ApiError::from_status(405) })
        .layer(DefaultBodyLimit::max(1024 * 1024))
        .with_state(shared)
}
