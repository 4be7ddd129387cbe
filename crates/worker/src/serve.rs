//! `serve`: the pages, the HTTP API, and the sweep for jobs that no worker runs.

use broker::{Broker, BrokerError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api::{self, Api, ApiState};
use crate::bootstrap;
use crate::celery_node::CeleryNode;
use crate::health::{Health, HealthDependencies, ProbeServer};
use crate::http_server;
use crate::job::JobRunner;
use crate::pages;
use crate::session::SessionEnd;
use crate::settings::{SettingError, Settings};
use crate::supervise::{self, MAX_PUBLISH_BLOCKED, update_queue_gauges, watch_publisher, with_heartbeat};
use crate::sweep::sweep;
use crate::telemetry::{Metrics, Telemetry};

/// Why the API could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// A setting is missing or invalid.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The address cannot be used.
    #[error("API_ADDR: cannot listen on {address} ({cause})")]
    Listen {
        /// The address from the settings.
        address: std::net::SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
}

/// Serves the API until `stop` is cancelled; calls in progress then have some time to finish.
pub(crate) async fn serve(
    settings: &Settings,
    telemetry: &Telemetry,
    stop: &CancellationToken,
) -> Result<(), ServeError> {
    settings.api.require_token()?;
    settings.require_api_key()?;
    let address = settings.api.addr;
    let listener = TcpListener::bind(address).await.map_err(|cause| ServeError::Listen { address, cause })?;
    let address = listener.local_addr().unwrap_or(address);
    info!(%address, "serving the pages, the HTTP API, /livez, /readyz and /metrics");
    let health = Health::of_server();
    health.register_api_gauges(&telemetry.metrics);
    let state = ApiState::new(settings, &telemetry.metrics);
    let probes = ProbeServer { health: health.clone(), prometheus: telemetry.prometheus.clone() };
    let router = probes.router().merge(pages::router(state.clone())).merge(api::router(state.clone(), settings));
    let server = http_server::serve(listener, router, api::LIMITS, stop);
    let working = async {
        let result = tokio::select! {
            result = open_and_run(settings, &telemetry.metrics, &health, &state, stop) => result,
            never = health.poll_for_gauges() => match never {},
        };
        // It ends before the stop only with an error, which stops the server too.
        stop.cancel();
        result
    };
    let stopping = async {
        stop.cancelled().await;
        health.set_stopping();
    };
    let ((), (), result) = tokio::join!(server, stopping, working);
    Ok(result?)
}

async fn open_and_run(
    settings: &Settings,
    metrics: &Metrics,
    health: &Health,
    state: &ApiState,
    stop: &CancellationToken,
) -> Result<(), SettingError> {
    let Some((store, storage)) = supervise::open(settings, health, stop).await? else { return Ok(()) };
    let runner = bootstrap::build_job_runner(settings, store.clone(), storage.clone(), metrics)?;
    let has_daily_budget = settings.jobs.daily_budget_usd.is_some();
    let client = runner.client().clone();
    health.set_dependencies(HealthDependencies {
        store: store.clone(),
        storage: storage.clone(),
        client,
        has_daily_budget,
    });
    health.set_gate(runner.gate().clone());
    let api = Api::new(settings, &runner, storage, health.clone(), stop.clone()).await;
    api.register_gauges(metrics);
    state.open(api.clone());
    let celery_node = CeleryNode::new(settings);
    let run_session = async |broker: &Broker| run_session(&api, &runner, &celery_node, broker, health, stop).await;
    tokio::select! {
        () = supervise::run_sessions_until_stopped(settings, metrics, health, stop, run_session) => {}
        never = runner.gate().poll() => match never {},
        never = api.poll_ended_jobs() => match never {},
        never = api.measure_request_rate() => match never {},
    }
    Ok(())
}

/// Publishes, sweeps and receives events over one connection to the broker, until it is lost or the program stops.
async fn run_session(
    api: &Api,
    runner: &JobRunner,
    celery_node: &CeleryNode,
    broker: &Broker,
    health: &Health,
    stop: &CancellationToken,
) -> Result<SessionEnd, BrokerError> {
    let publisher = broker.create_publisher(MAX_PUBLISH_BLOCKED).await?;
    let events = broker.watch_progress().await?;
    api.broker().set(Some((publisher.clone(), broker.dead_letter_queue())));
    health.set_broker_connected(true);
    info!("connected to the broker");
    let sweeping = Box::pin(sweep(runner.clone(), publisher.clone(), celery_node.clone()));
    let queue_watch = Box::pin(update_queue_gauges(broker, health));
    let ended = with_heartbeat(health, async {
        tokio::select! {
            () = stop.cancelled() => SessionEnd::Stopped,
            cause = watch_publisher(&publisher, health) => SessionEnd::BrokerLost(cause),
            lost = api.feed_events(events) => SessionEnd::BrokerLost(lost.to_string()),
            never = queue_watch => match never {},
            never = sweeping => match never {},
        }
    })
    .await;
    if let SessionEnd::Stopped = ended {
        api.finish_tasks().await;
    }
    api.broker().set(None);
    Ok(ended)
}
