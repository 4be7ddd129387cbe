//! The HTTP side: text-to-image of v1 and v2beta, balance, engines, and the control endpoints below `/_sandbox`.

mod account;
mod artwork;
mod control;
mod generate;

use std::net::SocketAddr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, header};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::Settings;
use crate::faults::{FaultOrder, Faults};
use crate::ledger::{Arrival, Ledger};
use crate::limiter::Limiter;
use crate::reply::Refusal;

/// A running sandbox; it stops when this is dropped.
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    settings: Settings,
    state: Mutex<Inner>,
    seeds: AtomicU32,
}

struct Inner {
    ledger: Ledger,
    arrivals: Vec<Arrival>,
    faults: Faults,
    limiter: Limiter,
    credits: f64,
    latency: Duration,
    sketch: bool,
    balance_status: Option<u16>,
}

impl Inner {
    fn new(settings: &Settings) -> Self {
        Self {
            ledger: Ledger::default(),
            arrivals: Vec::new(),
            faults: Faults::default(),
            limiter: Limiter::new(settings.limit, settings.window, settings.lockout),
            credits: settings.credits,
            latency: settings.latency,
            sketch: settings.sketch,
            balance_status: None,
        }
    }
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
        let state = Mutex::new(Inner::new(&settings));
        let shared = Arc::new(Shared { settings, state, seeds: AtomicU32::new(1) });
        let router = router(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the sandbox stopped");
            }
        });
        Ok(Self { address, shared, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL that a client is given.
    pub fn base_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What it was asked so far.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().ledger.clone()
    }

    /// Every request for pictures, in the order they came.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.lock().arrivals.clone()
    }

    /// Lets requests meet a fault.
    ///
    /// # Errors
    ///
    /// A sentence, where the fault is not known.
    pub fn order(&self, order: FaultOrder) -> Result<(), String> {
        self.shared.lock().faults.order(order)
    }

    /// Lets every request be well again, but for the faults in prompts.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Sets how long painting takes at least.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.lock().latency = latency;
    }

    /// Lets pictures be sketches, or scenes again.
    pub fn set_sketch(&self, sketch: bool) {
        self.shared.lock().sketch = sketch;
    }

    /// Lets the balance be answered with this status, or well again.
    pub fn set_balance_status(&self, status: Option<u16>) {
        self.shared.lock().balance_status = status;
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

    /// The key must be one of the account's.
    fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let key = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match key {
            Some(key) if self.settings.keys.iter().any(|known| known == key) => Ok(()),
            _ => Err(Refusal::of_status(401)),
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/generation/{engine}/text-to-image", post(generate::v1))
        .route("/v2beta/stable-image/generate/{service}", post(generate::v2beta))
        .route("/v1/user/balance", get(account::balance))
        .route("/v1/engines/list", get(account::engines))
        .route("/_sandbox/ledger", get(control::ledger))
        .route("/_sandbox/faults", post(control::order_fault).delete(control::clear_faults))
        .fallback(|| async { Refusal::new(404, "not_found", "no such path") })
        .method_not_allowed_fallback(|| async { Refusal::of_status(405) })
        .layer(DefaultBodyLimit::max(1024 * 1024))
        .with_state(shared)
}
