//! `run`: connects to the broker and supervises consecutive sessions. A lost broker ends a session, not the worker.

use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use broker::{Broker, BrokerError, Publisher, PublisherState, QueueState, Topology};
use store::{SchemaState, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bootstrap;
use crate::cancel_queue::handle_cancel_queue;
use crate::celery_node::CeleryNode;
use crate::consumer::CommandConsumer;
use crate::delivery_limit::handle_delivery_limit_queue;
use crate::error_chain::error_chain;
use crate::handler::CommandHandler;
use crate::health::{self, Health, HealthDependencies, ProbeServer, QueueStats};
use crate::job::JobRunner;
use crate::purge::purge_hourly;
use crate::session::{HEARTBEAT_INTERVAL, Session, SessionEnd};
use crate::settings::{SettingError, Settings, StorageRoot};
use crate::storage::{Storage, StorageError};
use crate::sweep::sweep;
use crate::telemetry::{Metrics, Telemetry};

/// A session that lasts longer than this resets the reconnect backoff.
const MIN_HEALTHY_SESSION: Duration = Duration::from_secs(30);

/// How long a message waits for the broker to unblock publishing. Then the session ends: a delivery must not be held
/// until the broker takes it back, after 30 minutes.
const MAX_PUBLISH_BLOCKED: Duration = Duration::from_mins(1);
/// Interval at which the state of the publisher is read.
const PUBLISHER_INTERVAL: Duration = Duration::from_secs(1);

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
    let open_storage = || ready(Storage::open(&settings.storage_root));
    let storage = match &settings.storage_root {
        StorageRoot::Folder(_) => retry_until_stopped(stop, "storage", health, open_storage).await,
        // Opening a bucket sends no request, so an error is one of the settings.
        StorageRoot::Bucket { .. } => {
            let unusable = |error: StorageError| SettingError::unusable("ASSET_STORAGE_URL", error_chain(&error));
            Some(open_storage().await.map_err(unusable)?)
        }
    };
    let Some(storage) = storage else { return Ok(()) };
    let open_database = || bootstrap::open_database(settings);
    let Some(store) = retry_until_stopped(stop, "database", health, open_database).await else { return Ok(()) };
    report_unknown_migrations(&store, health).await;
    let runner = bootstrap::build_job_runner(settings, store.clone(), storage.clone(), metrics)?;
    let has_daily_budget = settings.jobs.daily_budget_usd.is_some();
    let purging = Box::pin(purge_hourly(settings, store.clone(), storage.clone()));
    health.set_dependencies(HealthDependencies { store, storage, client: runner.client().clone(), has_daily_budget });
    health.set_gate(runner.gate().clone());
    // The first session starts with the stored state.
    runner.gate().refresh().await;
    let celery_node = CeleryNode::new(settings);
    tokio::select! {
        () = run_sessions_until_stopped(settings, &runner, &celery_node, health, stop) => Ok(()),
        never = runner.gate().poll() => match never {},
        never = purging => match never {},
    }
}

/// Reports that a newer version has migrated the database, as after a roll-back.
async fn report_unknown_migrations(store: &Store, health: &Health) {
    // An error is ignored: the next operation on the database meets it too.
    let Ok(SchemaState { newer, .. }) = store.read_schema_state().await else { return };
    health.set_unknown_migrations(newer.len());
    if !newer.is_empty() {
        warn!(?newer, "a newer version has migrated the database; its migrations are ignored");
    }
}

/// Repeatedly connects to the broker and runs a session, until `stop` is cancelled.
async fn run_sessions_until_stopped(
    settings: &Settings,
    runner: &JobRunner,
    celery_node: &CeleryNode,
    health: &Health,
    stop: &CancellationToken,
) {
    let topology = Topology::new(settings.jobs.queue_delays());
    let mut delays = backoff();
    let mut connected_before = false;
    while !stop.is_cancelled() {
        let started_at = Instant::now();
        let connect = || Broker::connect(&settings.amqp_url, &topology);
        let Some(broker) = retry_until_stopped(stop, "broker", health, connect).await else { return };
        if connected_before {
            runner.metrics().record_reconnect();
        }
        connected_before = true;
        let ended = match run_session(settings, runner, celery_node, &broker, health, stop).await {
            Ok(ended) => ended,
            Err(error) => SessionEnd::BrokerLost(error.to_string()),
        };
        health.set_broker_connected(false);
        health.with_queue(QueueStats::reset);
        match ended {
            SessionEnd::Stopped => info!("stopped"),
            SessionEnd::BrokerLost(cause) => warn!(cause, "broker connection lost; reconnecting"),
        }
        broker.close().await;
        // The delay keeps growing while the broker accepts connections but drops them at once.
        if started_at.elapsed() > MIN_HEALTHY_SESSION {
            delays = backoff();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = with_heartbeat(health, tokio::time::sleep(delays.next().unwrap_or_default())) => {}
        }
    }
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

/// Reports whether the broker blocks publishing. Returns the cause when the publisher cannot be used any more.
async fn watch_publisher(publisher: &Publisher, health: &Health) -> String {
    let mut ticks = tokio::time::interval(PUBLISHER_INTERVAL);
    let mut was_blocked = false;
    loop {
        ticks.tick().await;
        let is_blocked = match publisher.state() {
            PublisherState::Failed(cause) => return cause,
            PublisherState::Blocked => true,
            PublisherState::Ready => false,
        };
        health.set_publishing_blocked(is_blocked);
        match (was_blocked, is_blocked) {
            (false, true) => warn!("the broker blocks publishing: it is low on memory or disk space; messages wait"),
            (true, false) => info!("the broker does not block publishing any more"),
            (true, true) | (false, false) => {}
        }
        was_blocked = is_blocked;
    }
}

/// Reads the queue lengths periodically for the gauges, which are withdrawn when a read fails. Never returns.
async fn update_queue_gauges(broker: &Broker, health: &Health) -> Infallible {
    let mut ticks = tokio::time::interval(health::QUEUE_INTERVAL);
    loop {
        ticks.tick().await;
        let Ok(gauge) = broker.queue_monitor().await else { continue };
        while let Ok((QueueState::Present { messages, consumers }, QueueState::Present { messages: dead, .. })) =
            gauge.read().await
        {
            health.with_queue(|queue| queue.update(messages, consumers, dead));
            ticks.tick().await;
        }
        // The channel cannot be used after a failed read; the next round opens another one.
        health.with_queue(QueueStats::reset);
    }
}

/// Unlimited exponential backoff from 250 ms to 30 s, plus a random jitter of up to the same length.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter()
        .build()
}

/// Repeats an operation until it succeeds, at growing intervals of up to one minute.
///
/// Returns `None` if `stop` is cancelled first.
async fn retry_until_stopped<T, E: std::error::Error, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    service: &'static str,
    health: &Health,
    operation: impl Fn() -> F,
) -> Option<T> {
    for delay in backoff() {
        let result = tokio::select! {
            () = stop.cancelled() => return None,
            // No time limit: a migration may take long.
            result = with_heartbeat(health, operation()) => result,
        };
        match result {
            Ok(value) => return Some(value),
            Err(error) => {
                health.set_unavailable(service);
                warn!(error = error_chain(&error), ?delay, "cannot reach the {service}; retrying");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = with_heartbeat(health, tokio::time::sleep(delay)) => {}
        }
    }
    None
}

/// Reports liveness while waiting, so that an expected wait is not mistaken for a stuck loop.
async fn with_heartbeat<T>(health: &Health, wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        tokio::select! {
            output = &mut wait => return output,
            _ = heartbeat.tick() => health.record_heartbeat(),
        }
    }
}
