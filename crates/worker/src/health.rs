//! `/livez` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::causes;
use crate::storage::Storage;
use crate::store::Store;

/// A probe waits no longer than this for a part to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether files can be stored is tried no more often than this, however often probes ask: it writes one.
const STORAGE_INTERVAL: Duration = Duration::from_secs(5);

/// What the probes look at. Clones share it.
#[derive(Clone, Default)]
pub struct Health {
    state: Arc<Parts>,
}

#[derive(Default)]
struct Parts {
    broker: AtomicBool,
    stopping: AtomicBool,
    database: tokio::sync::OnceCell<(Store, Storage)>,
    storage: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Health {
    /// Whether commands can be taken from the broker.
    pub fn set_broker(&self, connected: bool) {
        self.state.broker.store(connected, Ordering::Relaxed);
    }

    /// No further command is taken.
    pub fn set_stopping(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
    }

    /// Database and storage are open.
    pub fn set_parts(&self, store: Store, storage: Storage) {
        // Set once, when the worker has them.
        let _ = self.state.database.set((store, storage));
    }

    /// Serves the probes until `stop`.
    ///
    /// # Errors
    ///
    /// Where the address cannot be listened on.
    pub async fn serve(self, address: SocketAddr, stop: CancellationToken) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "probes are served at /livez and /readyz");
        let router = Router::new()
            .route("/livez", get(|| async { Json(json!({"status": "ok"})) }))
            .route("/readyz", get(ready))
            .with_state(self);
        axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
    }

    async fn database(&self) -> Result<(), String> {
        let Some((store, _)) = self.state.database.get() else { return Err("not connected yet".to_owned()) };
        in_time(store.ping()).await
    }

    async fn storage(&self) -> Result<(), String> {
        let Some((_, storage)) = self.state.database.get() else { return Err("not opened yet".to_owned()) };
        let mut known = self.state.storage.lock().await;
        match &*known {
            Some((looked, found)) if looked.elapsed() < STORAGE_INTERVAL => found.clone(),
            _ => {
                let found = in_time(storage.check()).await;
                *known = Some((Instant::now(), found.clone()));
                found
            }
        }
    }
}

async fn in_time<T, E: std::error::Error>(probe: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(PROBE_TIMEOUT, probe).await {
        Ok(result) => result.map_err(|error| causes::joined(&error)),
        Err(_) => Err(format!("no answer within {PROBE_TIMEOUT:?}")),
    }
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let broker = if health.state.broker.load(Ordering::Relaxed) { Ok(()) } else { Err("not connected".to_owned()) };
    let stopping = health.state.stopping.load(Ordering::Relaxed);
    let (database, storage) = tokio::join!(health.database(), health.storage());
    let ready = !stopping && broker.is_ok() && database.is_ok() && storage.is_ok();
    let shown = |result: Result<(), String>| result.map_or_else(|error| error, |()| "ok".to_owned());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let said = if ready {
        "ok"
    } else if stopping {
        "stopping"
    } else {
        "not ready"
    };
    let body = json!({"status": said, "broker": shown(broker), "database": shown(database), "storage": shown(storage)});
    (status, Json(body))
}
