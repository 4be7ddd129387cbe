//! Supervision: opens what a process needs, and reconnects to the broker until the process is stopped.

use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use broker::{Broker, BrokerError, Publisher, PublisherState, QueueState, Topology};
use store::{SchemaState, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bootstrap;
use crate::error_chain::error_chain;
use crate::health::{self, Health, QueueStats};
use crate::session::{HEARTBEAT_INTERVAL, SessionEnd};
use crate::settings::{SettingError, Settings, StorageRoot};
use crate::storage::{Storage, StorageError};
use crate::telemetry::Metrics;

/// A session that lasts longer than this resets the reconnect backoff.
const MIN_HEALTHY_SESSION: Duration = Duration::from_secs(30);
/// How long a message waits for the broker to unblock publishing. Then the session ends: a delivery must not be held
/// until the broker takes it back, after 30 minutes.
pub(crate) const MAX_PUBLISH_BLOCKED: Duration = Duration::from_mins(1);
/// Interval at which the state of the publisher is read.
const PUBLISHER_INTERVAL: Duration = Duration::from_secs(1);

/// Opens the storage and the database, and applies pending migrations. Repeats what fails until `stop` is cancelled;
/// then it returns `None`.
///
/// # Errors
///
/// [`SettingError`] if the settings of a bucket cannot be used.
pub(crate) async fn open(
    settings: &Settings,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<(Store, Storage)>, SettingError> {
    let open_storage = || ready(Storage::open(&settings.storage_root));
    let storage = match &settings.storage_root {
        StorageRoot::Folder(_) => retry_until_stopped(stop, "storage", health, open_storage).await,
        // Opening a bucket sends no request, so an error is one of the settings.
        StorageRoot::Bucket { .. } => {
            let unusable = |error: StorageError| SettingError::unusable("ASSET_STORAGE_URL", error_chain(&error));
            Some(open_storage().await.map_err(unusable)?)
        }
    };
    let Some(storage) = storage else { return Ok(None) };
    let open_database = || bootstrap::open_database(settings);
    let Some(store) = retry_until_stopped(stop, "database", health, open_database).await else { return Ok(None) };
    report_unknown_migrations(&store, health).await;
    Ok(Some((store, storage)))
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
pub(crate) async fn run_sessions_until_stopped(
    settings: &Settings,
    metrics: &Metrics,
    health: &Health,
    stop: &CancellationToken,
    run_session: impl AsyncFn(&Broker) -> Result<SessionEnd, BrokerError>,
) {
    let topology = Topology::new(settings.jobs.queue_delays());
    let mut delays = backoff();
    let mut connected_before = false;
    while !stop.is_cancelled() {
        let started_at = Instant::now();
        let connect = || Broker::connect(&settings.amqp_url, &topology);
        let Some(broker) = retry_until_stopped(stop, "broker", health, connect).await else { return };
        if connected_before {
            metrics.record_reconnect();
        }
        connected_before = true;
        let ended = match run_session(&broker).await {
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

/// Reports whether the broker blocks publishing. Returns the cause when the publisher cannot be used any more.
pub(crate) async fn watch_publisher(publisher: &Publisher, health: &Health) -> String {
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
pub(crate) async fn update_queue_gauges(broker: &Broker, health: &Health) -> Infallible {
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
pub(crate) async fn with_heartbeat<T>(health: &Health, wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        tokio::select! {
            output = &mut wait => return output,
            _ = heartbeat.tick() => health.record_heartbeat(),
        }
    }
}
