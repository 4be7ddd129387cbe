//! `run`: connects, and supervises one session with the broker after another. A lost broker ends a session, not the worker.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use broker::{Broker, BrokerError, QueueState, Topology};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bootstrap::{self, BootstrapError};
use crate::delivery_limit::handle_dead_lettered;
use crate::error_chain::error_chain;
use crate::handler::CommandHandler;
use crate::health::{self, Health, Looked, Probes, QueueWatch};
use crate::job::JobRunner;
use crate::session::{BEAT, Ended, Session};
use crate::settings::{SettingError, Settings};
use crate::telemetry::{Metrics, Telemetry};

/// A session that lasted this long was a good one.
const HEALTHY: Duration = Duration::from_secs(30);

/// Why the worker could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting is missing or cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Database or storage cannot be opened.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The probes cannot be served.
    #[error("HTTP_ADDR: {address} cannot be listened on ({source})")]
    Probes {
        /// As set.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the worker until `stop` is cancelled; then what is in flight has the grace to finish.
///
/// # Errors
///
/// [`RunError`] at the start. Later nothing that a message says, and no loss of broker or database, ends it.
pub async fn run(settings: &Settings, telemetry: &Telemetry, stop: &CancellationToken) -> Result<(), RunError> {
    settings.require_api_key()?;
    let health = Health::default();
    health.show(&telemetry.metrics, settings);
    let served = Probes { health: health.clone(), scrape: telemetry.scrape.clone() };
    let probes_stop = CancellationToken::new();
    let mut probes = JoinSet::new();
    probes.spawn(served.serve(settings.http_addr, probes_stop.clone()));
    let worked = tokio::select! {
        // Probes are served until they are told to stop, so that this is their failure.
        Some(served) = probes.join_next() => Err(RunError::Probes {
            address: settings.http_addr,
            source: served.map_err(std::io::Error::other).and_then(|served| served).err().unwrap_or_else(|| std::io::ErrorKind::Other.into()),
        }),
        worked = work(settings, &telemetry.metrics, &health, stop) => worked,
        never = health.watch() => match never {},
    };
    probes_stop.cancel();
    probes.shutdown().await;
    worked
}

async fn work(
    settings: &Settings,
    metrics: &Metrics,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let retryable = |error: &BootstrapError| matches!(error, BootstrapError::Store(_));
    let opened = retry_until_stopped(stop, "database", health, retryable, || bootstrap::open(settings)).await?;
    let Some((store, storage)) = opened else { return Ok(()) };
    let observer = Arc::new(health.clone());
    let runner = bootstrap::job_runner(settings, store.clone(), storage.clone(), metrics, Some(observer))?;
    let budget = settings.jobs.daily_budget_usd.is_some();
    health.set_parts(Looked { store, storage, client: runner.client().clone(), budget });
    supervise(settings, &runner, health, stop).await;
    Ok(())
}

/// Connects, works, and connects again, until `stop`.
async fn supervise(settings: &Settings, runner: &JobRunner, health: &Health, stop: &CancellationToken) {
    let topology = Topology::new(settings.jobs.queue_delays());
    let mut pauses = backoff();
    let mut lost_before = false;
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let connect = || Broker::connect(&settings.amqp_url, &topology);
        let connected = retry_until_stopped(stop, "broker", health, |_| true, connect).await;
        let Ok(Some(broker)) = connected else { return };
        if lost_before {
            runner.metrics().reconnected();
        }
        lost_before = true;
        let ended = match session(settings, runner, &broker, health, stop).await {
            Ok(ended) => ended,
            Err(error) => Ended::Lost(error.to_string()),
        };
        health.set_broker(false);
        health.queue(QueueWatch::lost);
        match ended {
            Ended::Stopped => info!("stopped"),
            Ended::Lost(cause) => warn!(cause, "the broker was lost; connecting again"),
        }
        broker.close().await;
        // A broker that takes us and throws us out at once is left alone longer and longer.
        if begun.elapsed() > HEALTHY {
            pauses = backoff();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = beating(health, tokio::time::sleep(pauses.next().unwrap_or_default())) => {}
        }
    }
}

async fn session(
    settings: &Settings,
    runner: &JobRunner,
    broker: &Broker,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Ended, BrokerError> {
    let prefetch = u16::try_from(settings.jobs.max_in_flight.get()).unwrap_or(u16::MAX);
    let commands = broker.commands(prefetch).await?;
    let publisher = broker.publisher().await?;
    let handler = CommandHandler::new(runner.clone(), publisher, bootstrap::rules(), &settings.jobs);
    health.set_broker(true);
    info!(prefetch, "taking commands");
    // Boxed, as it goes into all that waits for this.
    let dead_lettered = Box::pin(handle_dead_lettered(broker.dead_lettered().await?, handler.clone()));
    let watched = Box::pin(watch_queue(broker, health));
    let session = Session::new(commands, handler, settings.shutdown_grace, stop, health).serve(stop, dead_lettered);
    tokio::select! {
        ended = session => Ok(ended),
        never = watched => match never {},
    }
}

/// Looks at the queues for the gauges, for as long as it is let; what is not seen is not shown.
async fn watch_queue(broker: &Broker, health: &Health) -> Infallible {
    let mut every = tokio::time::interval(health::QUEUE_INTERVAL);
    loop {
        every.tick().await;
        let Ok(gauge) = broker.gauge().await else { continue };
        while let Ok((QueueState::There { messages, consumers }, QueueState::There { messages: dead, .. })) =
            gauge.read().await
        {
            health.queue(|queue| queue.saw(messages, consumers, dead));
            every.tick().await;
        }
        // Its channel is of no use any more; another one may be.
        health.queue(QueueWatch::lost);
    }
}

/// From a quarter of a second to half a minute, and up to as much again by chance, without end.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter()
        .build()
}

/// Repeats an operation until it succeeds, at longer and longer intervals up to a minute. `None` where `stop` was cancelled before.
///
/// # Errors
///
/// An error that is not `retryable`.
async fn retry_until_stopped<T, E: std::error::Error, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    what: &'static str,
    health: &Health,
    retryable: impl Fn(&E) -> bool,
    operation: impl Fn() -> F,
) -> Result<Option<T>, E> {
    for delay in backoff() {
        let tried = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            // However long it takes, as a migration may.
            tried = beating(health, operation()) => tried,
        };
        match tried {
            Ok(value) => return Ok(Some(value)),
            Err(error) if !retryable(&error) => return Err(error),
            Err(error) => warn!(error = error_chain(&error), ?delay, "waiting for the {what}"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = beating(health, tokio::time::sleep(delay)) => {}
        }
    }
    Ok(None)
}

/// Waits for something that is waited for in order, so that the loop is not taken to be stuck.
async fn beating<T>(health: &Health, wait: impl Future<Output = T>) -> T {
    let mut wait = pin!(wait);
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            over = &mut wait => return over,
            _ = beat.tick() => health.beat(),
        }
    }
}
