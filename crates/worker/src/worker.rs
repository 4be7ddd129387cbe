//! `run`: connects to the broker and supervises consecutive sessions. A lost broker ends a session, not the worker.

use broker::{Broker, BrokerError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::bootstrap;
use crate::cancel_queue::handle_cancel_queue;
use crate::celery_node::CeleryNode;
use crate::consumer::CommandConsumer;
use crate::delivery_limit::handle_delivery_limit_queue;
use crate::handler::CommandHandler;
use crate::health::{Health, HealthDependencies, ProbeServer};
use crate::job::JobRunner;
use crate::presence::Presence;
use crate::purge::purge_hourly;
use crate::session::{Session, SessionEnd};
use crate::settings::{SettingError, Settings};
use crate::supervise::{self, MAX_PUBLISH_BLOCKED, update_queue_gauges, watch_publisher};
use crate::sweep::sweep;
use crate::telemetry::{Metrics, Telemetry};

/// Why the worker could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting is missing or invalid.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The probes could not be served.
    #[error("HTTP_ADDR: cannot listen on {address} ({source})")]
    Probes {
        /// The address from the settings.
        address: std::net::SocketAddr,
        /// The error of the probe server.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the worker until `stop` is cancelled; jobs in flight then have the grace period to finish.
///
/// # Errors
///
/// [`RunError`] if the worker cannot start or its probe server fails. Neither an invalid message nor a lost broker or
/// database ends a running worker.
pub async fn run(settings: &Settings, telemetry: &Telemetry, stop: &CancellationToken) -> Result<(), RunError> {
    settings.require_api_key()?;
    let health = Health::default();
    health.register_gauges(&telemetry.metrics, settings);
    let server = ProbeServer { health: health.clone(), prometheus: telemetry.prometheus.clone() };
    let probes_stop = CancellationToken::new();
    let mut probes = JoinSet::new();
    probes.spawn(server.serve(settings.http_addr, probes_stop.clone()));
    let result = tokio::select! {
        // The probe server runs until `probes_stop` is cancelled, so ending here means that it failed.
        Some(server) = probes.join_next() => Err(RunError::Probes {
            address: settings.http_addr,
            source: server.map_err(std::io::Error::other).and_then(|server| server).err().unwrap_or_else(|| std::io::ErrorKind::Other.into()),
        }),
        result = open_and_supervise(settings, &telemetry.metrics, &health, stop) => result,
        never = health.poll_for_gauges() => match never {},
    };
    probes_stop.cancel();
    probes.shutdown().await;
    result
}

async fn open_and_supervise(
    settings: &Settings,
    metrics: &Metrics,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let Some((store, storage)) = supervise::open(settings, health, stop).await? else { return Ok(()) };
    let runner = bootstrap::build_job_runner(settings, store.clone(), storage.clone(), metrics)?;
    bootstrap::register_concurrency_gauges(metrics, &runner, settings);
    let has_daily_budget = settings.jobs.daily_budget_usd.is_some();
    let purging = Box::pin(purge_hourly(settings, store.clone(), storage.clone()));
    let presence = Presence::new(store.clone());
    health.set_dependencies(HealthDependencies { store, storage, client: runner.client().clone(), has_daily_budget });
    health.set_gate(runner.gate().clone());
    // The first session starts with the stored state.
    runner.gate().refresh().await;
    let celery_node = CeleryNode::new(settings);
    let run_session = async |broker: &Broker| run_session(settings, &runner, &celery_node, broker, health, stop).await;
    let ended = CancellationToken::new();
    let working = async {
        tokio::select! {
            () = supervise::run_sessions_until_stopped(settings, metrics, health, stop, run_session) => {}
            never = runner.gate().poll() => match never {},
            never = purging => match never {},
        }
        ended.cancel();
    };
    tokio::join!(working, presence.run(health, &ended));
    Ok(())
}

async fn run_session(
    settings: &Settings,
    runner: &JobRunner,
    celery_node: &CeleryNode,
    broker: &Broker,
    health: &Health,
    stop: &CancellationToken,
) -> Result<SessionEnd, BrokerError> {
    let prefetch = u16::try_from(settings.jobs.max_in_flight.get()).unwrap_or(u16::MAX);
    let consumer = CommandConsumer::new(broker.open_command_stream().await?, prefetch);
    let publisher = broker.create_publisher(MAX_PUBLISH_BLOCKED).await?;
    let handler =
        CommandHandler::new(runner.clone(), publisher.clone(), bootstrap::rules(), celery_node.clone(), settings);
    // Boxed to keep this future, and those that contain it, small.
    let dead_lettered =
        Box::pin(handle_delivery_limit_queue(broker.consume_delivery_limit_queue().await?, handler.clone()));
    let cancelled = Box::pin(handle_cancel_queue(
        broker.consume_cancel_queue().await?,
        runner.store().clone(),
        publisher.clone(),
        runner.metrics().clone(),
    ));
    // Ready only with all consumers.
    health.set_broker_connected(true);
    info!(prefetch, "connected to the broker; consuming commands while the account gate is open");
    let sweeping = Box::pin(sweep(runner.clone(), publisher.clone(), celery_node.clone()));
    let lost = async {
        tokio::select! {
            () = cancelled => "the consumer of cancellations ended".to_owned(),
            () = dead_lettered => "the consumer of dead-lettered messages ended".to_owned(),
            cause = watch_publisher(&publisher, health) => cause,
        }
    };
    let queue_watch = Box::pin(update_queue_gauges(broker, health));
    let session = Session::new(consumer, runner.gate(), handler, settings.shutdown_grace, stop, health);
    let node = Box::pin(celery_node.run(broker, &publisher, runner.store()));
    let ended = tokio::select! {
        ended = Box::pin(session.serve(stop, lost)) => ended,
        never = node => match never {},
        never = queue_watch => match never {},
        never = sweeping => match never {},
    };
    if let SessionEnd::Stopped = ended {
        celery_node.stop(&publisher).await;
    }
    Ok(ended)
}
