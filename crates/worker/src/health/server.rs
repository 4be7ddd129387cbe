//! HTTP server of `/livez`, `/readyz` and `/metrics`.
//!
//! Each connection serves one request and is closed after 8 seconds at the latest. At most 64 connections are open; a
//! further connection replaces the oldest one. Slow or numerous clients therefore do not affect the jobs.

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
use crate::telemetry::PrometheusRegistry;

/// Maximum number of open connections.
const MAX_CONNECTIONS: usize = 64;
/// Maximum duration of a connection; a check of a dependency that does not respond takes two seconds.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(8);
/// Timeout for the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the request line and headers, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Delay after a failed `accept`, for example if no file descriptor is free.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Content type of the Prometheus text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The HTTP server of the probes and metrics.
#[derive(Clone)]
pub(crate) struct ProbeServer {
    pub(crate) health: Health,
    pub(crate) prometheus: PrometheusRegistry,
}

impl ProbeServer {
    /// Serves requests until `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// If the server cannot listen on the address.
    pub(crate) async fn serve(self, address: SocketAddr, stop: CancellationToken) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "serving /livez, /readyz and /metrics");
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
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
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            };
            let service = TowerToHyperService::new(router.clone());
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MAX_CONNECTIONS {
                // The oldest connection is slow: a response takes milliseconds.
                open.pop_front().inspect(AbortHandle::abort);
            }
            open.push_back(connections.spawn(async move {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .max_buf_size(MAX_HEAD_BYTES)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                // Errors and timeouts concern only the client, which has disconnected or is too slow.
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            }));
        }
    }
}

async fn livez(State(ProbeServer { health, .. }): State<ProbeServer>) -> impl IntoResponse {
    match health.stuck_for() {
        None => (StatusCode::OK, Json(json!({"status": "ok"}))),
        Some(heartbeat_age) => {
            let body = json!({"status": "stuck", "silent_s": heartbeat_age.as_secs()});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

async fn readyz(State(ProbeServer { health, .. }): State<ProbeServer>) -> impl IntoResponse {
    let readiness = health.check_readiness().await;
    let status = if readiness.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(ProbeServer { prometheus: scrape, .. }): State<ProbeServer>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], scrape.render().await.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn livez_fails_while_loop_is_stuck() {
        let health = Health::default();
        let status = async || {
            let probes = ProbeServer { health: health.clone(), prometheus: PrometheusRegistry::default() };
            livez(State(probes)).await.into_response().status()
        };
        assert_eq!(status().await, 200);
        tokio::time::advance(Duration::from_mins(3)).await;
        assert_eq!(status().await, 503);
        health.record_heartbeat();
        assert_eq!(status().await, 200);
    }
}
