//! `/livez`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Health;
use crate::http_server::{self, HttpLimits};
use crate::telemetry::PrometheusRegistry;

/// Each connection serves one request and is closed after 8 seconds at the latest: a check of a dependency that does not
/// respond takes two.
const LIMITS: HttpLimits = HttpLimits {
    max_connections: 64,
    head_timeout: Duration::from_secs(2),
    write_timeout: Duration::from_secs(8),
    lifetime: Some(Duration::from_secs(8)),
    keep_alive: false,
    grace: Duration::ZERO,
};
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
        http_server::serve(listener, self.router(), LIMITS, &stop).await;
        Ok(())
    }

    /// The routes of the probes.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
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
