//! `/livez`, `/readyz` and `/metrics`, and nothing else.
//!
//! Each connection answers one request and is closed, at the latest after a few seconds; only so many are open at once, and a new one takes the place of the oldest. Whoever is slow, or many, takes
//! nothing from the work.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Health;
use crate::telemetry::Scrape;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long one may last: a look at a part that does not answer takes two seconds.
const CONNECTION: Duration = Duration::from_secs(8);
/// How long a request's headers are waited for.
const HEADERS: Duration = Duration::from_secs(2);
/// The longest request's head, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// After a connection that could not be taken, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The text format of Prometheus.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is served.
#[derive(Clone)]
pub(crate) struct Probes {
    pub(crate) health: Health,
    pub(crate) scrape: Scrape,
}

impl Probes {
    /// Serves until `stop`.
    ///
    /// # Errors
    ///
    /// Where the address cannot be listened on.
    pub(crate) async fn serve(self, address: SocketAddr, stop: CancellationToken) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "probes are served at /livez, /readyz and /metrics");
        let router = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self);
        let mut connections = JoinSet::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let service = TowerToHyperService::new(router.clone());
            open.retain(|connection| !connection.is_finished());
            if open.len() >= CONNECTIONS {
                // Whoever has been there longest is slow: an answer takes milliseconds.
                open.pop_front().inspect(AbortHandle::abort);
            }
            open.push_back(connections.spawn(async move {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS)
                    .max_buf_size(HEAD_BYTES)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                // Whoever does not wait for the answer needs none.
                let _ = tokio::time::timeout(CONNECTION, connection).await;
            }));
        }
    }
}

async fn live(State(Probes { health, .. }): State<Probes>) -> impl IntoResponse {
    match health.stuck_for() {
        None => (StatusCode::OK, Json(json!({"status": "ok"}))),
        Some(silence) => {
            let body = json!({"status": "stuck", "silent_s": silence.as_secs()});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

async fn ready(State(Probes { health, .. }): State<Probes>) -> impl IntoResponse {
    let readiness = health.readiness().await;
    let status = if readiness.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(Probes { scrape, .. }): State<Probes>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, EXPOSITION)], scrape.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_whose_loop_is_stuck_is_not_alive() {
        let health = Health::default();
        let status = async || {
            let probes = Probes { health: health.clone(), scrape: Scrape::default() };
            live(State(probes)).await.into_response().status()
        };
        assert_eq!(status().await, 200);
        tokio::time::advance(Duration::from_mins(3)).await;
        assert_eq!(status().await, 503);
        health.beat();
        assert_eq!(status().await, 200);
    }
}
