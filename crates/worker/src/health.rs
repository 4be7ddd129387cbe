//! Health of the worker, for `/livez`, `/readyz` and the gauges.
//!
//! The state of broker connection, consumer loop and jobs is reported by the code that runs them; database, storage and
//! API key are checked. Concurrent requests share the checks: each dependency is checked at most once per interval.

mod checks;
mod gauges;
mod queue;
mod server;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use domain::money::MicroUsd;
use serde::Serialize;
use tokio::time::Instant;

use crate::gate::{AccountGate, GateReason};
use checks::HealthChecks;
pub(crate) use checks::HealthDependencies;
pub(crate) use queue::{QUEUE_INTERVAL, QueueCounts, QueueStats};
pub(crate) use server::ProbeServer;

/// A worker is stuck if its consumer loop has recorded no heartbeat for this long; normally it records one every 5 s.
///
/// Longer than every wait of the loop: 15 s for a response of the broker, a minute between attempts to connect to it.
const STUCK_AFTER: Duration = Duration::from_mins(2);

/// What a worker needs to be ready.
const DEPENDENCIES: [&str; 3] = ["broker", "database", "storage"];

/// The health of the worker. Clones share its state.
#[derive(Clone)]
pub struct Health {
    state: Arc<HealthState>,
}

struct HealthState {
    /// Whether the process can do nothing without the broker: a worker cannot, the server of the HTTP API can.
    needs_broker: bool,
    started: Instant,
    /// Milliseconds from `started` to the last heartbeat.
    last_heartbeat_ms: AtomicU64,
    broker_connected: AtomicBool,
    publishing_blocked: AtomicBool,
    /// For each of [`DEPENDENCIES`] whether the last check found it available.
    available: Mutex<[Option<bool>; DEPENDENCIES.len()]>,
    /// Number of applied migrations that this version does not know.
    unknown_migrations: OnceLock<usize>,
    stopping: AtomicBool,
    ready: AtomicBool,
    jobs_in_flight: AtomicUsize,
    checks: OnceLock<HealthChecks>,
    queue: Mutex<QueueStats>,
    credits: Mutex<Option<f64>>,
    spent_today: Mutex<Option<MicroUsd>>,
    gate: OnceLock<AccountGate>,
}

impl HealthState {
    /// Time since the last heartbeat.
    fn heartbeat_age(&self) -> Duration {
        let beat = Duration::from_millis(self.last_heartbeat_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Health {
    /// The health of the server of the HTTP API, which is ready without the broker.
    pub(crate) fn of_server() -> Self {
        Self::new(false)
    }

    fn new(needs_broker: bool) -> Self {
        let state = HealthState {
            needs_broker,
            started: Instant::now(),
            last_heartbeat_ms: AtomicU64::new(0),
            broker_connected: AtomicBool::new(false),
            publishing_blocked: AtomicBool::new(false),
            available: Mutex::default(),
            unknown_migrations: OnceLock::new(),
            stopping: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            jobs_in_flight: AtomicUsize::new(0),
            checks: OnceLock::new(),
            queue: Mutex::default(),
            credits: Mutex::default(),
            spent_today: Mutex::default(),
            gate: OnceLock::new(),
        };
        Self { state: Arc::new(state) }
    }
}

/// Body of `/readyz`: for each dependency `ok` or the problem.
#[derive(Debug, Serialize)]
struct Readiness {
    status: &'static str,
    broker: String,
    database: String,
    storage: String,
    /// `ok`, or why the last free request with the API key failed; for information only.
    api_key: String,
    /// Why the account gate is closed; for information only.
    gate_closed: Vec<GateReason>,
}

impl Health {
    /// Sets whether commands can be received from the broker.
    pub fn set_broker_connected(&self, connected: bool) {
        self.state.broker_connected.store(connected, Ordering::Relaxed);
        if connected {
            // A new connection is blocked only when it publishes.
            self.set_publishing_blocked(false);
        }
    }

    /// Reports that a dependency could not be opened at start, or not be reached again.
    pub(crate) fn set_unavailable(&self, dependency: &'static str) {
        if let Some(position) = DEPENDENCIES.iter().position(|known| *known == dependency) {
            self.state.available.lock().unwrap_or_else(PoisonError::into_inner)[position] = Some(false);
        }
    }

    /// Sets whether the broker blocks publishing because it is low on memory or disk space.
    pub(crate) fn set_publishing_blocked(&self, blocked: bool) {
        self.state.publishing_blocked.store(blocked, Ordering::Relaxed);
    }

    /// Marks the worker as shutting down: `/readyz` answers 503 from now on.
    pub fn set_stopping(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
    }

    /// Sets the number of commands that are being handled.
    pub(crate) fn set_jobs_in_flight(&self, jobs: usize) {
        self.state.jobs_in_flight.store(jobs, Ordering::Relaxed);
    }

    /// The number of commands that are being handled.
    pub(crate) fn jobs_in_flight(&self) -> usize {
        self.state.jobs_in_flight.load(Ordering::Relaxed)
    }

    /// Records a heartbeat of the consumer loop.
    pub(crate) fn record_heartbeat(&self) {
        let elapsed_ms = u64::try_from(self.state.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.state.last_heartbeat_ms.store(elapsed_ms, Ordering::Relaxed);
    }

    /// The time since the last heartbeat, if the loop is stuck.
    fn stuck_for(&self) -> Option<Duration> {
        Some(self.state.heartbeat_age()).filter(|silence| *silence > STUCK_AFTER)
    }

    /// Sets the dependencies to check: database, storage and API client.
    pub(crate) fn set_dependencies(&self, parts: HealthDependencies) {
        // Called once, when the worker has opened them.
        let _ = self.state.checks.set(HealthChecks::new(parts));
    }

    /// Sets the account gate, to report why it is closed.
    pub(crate) fn set_gate(&self, gate: AccountGate) {
        // Called once, when the worker has opened the database.
        let _ = self.state.gate.set(gate);
    }

    /// Sets the number of applied migrations that this version does not know: a newer version has applied them.
    pub(crate) fn set_unknown_migrations(&self, count: usize) {
        // Called once, when the worker has opened the database.
        let _ = self.state.unknown_migrations.set(count);
    }

    /// The credits of the account, as last read.
    pub(crate) fn credits(&self) -> Option<f64> {
        *self.state.credits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or updates the statistics of the command queue.
    pub(crate) fn with_queue<T>(&self, update: impl FnOnce(&mut QueueStats) -> T) -> T {
        update(&mut self.state.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn check_readiness(&self) -> Readiness {
        let missing = || Err("not opened yet".to_owned());
        let (database, storage, key) = match self.state.checks.get() {
            Some(looks) => tokio::join!(looks.check_database(), looks.check_storage(), looks.check_key()),
            None => (missing(), missing(), Ok(())),
        };
        let broker = if !self.state.broker_connected.load(Ordering::Relaxed) {
            Err("not connected".to_owned())
        } else if self.state.publishing_blocked.load(Ordering::Relaxed) {
            Err("publishing is blocked: the broker is low on memory or disk space".to_owned())
        } else {
            Ok(())
        };
        let stopping = self.state.stopping.load(Ordering::Relaxed);
        // A refused key does not make the worker unready: a rollout must be able to repair it.
        let available = [&broker, &database, &storage].map(Result::is_ok);
        if self.state.checks.get().is_some() {
            *self.state.available.lock().unwrap_or_else(PoisonError::into_inner) = available.map(Some);
        }
        let [broker_available, database_available, storage_available] = available;
        let broker_suffices = broker_available || !self.state.needs_broker;
        let ready = !stopping && broker_suffices && database_available && storage_available;
        self.state.ready.store(ready, Ordering::Relaxed);
        let status = if ready {
            "ok"
        } else if stopping {
            "stopping"
        } else {
            "not ready"
        };
        let shown = |part: Result<(), String>| part.map_or_else(|error| error, |()| "ok".to_owned());
        Readiness {
            status,
            broker: shown(broker),
            database: shown(database),
            storage: shown(storage),
            api_key: shown(key),
            gate_closed: self.state.gate.get().map(AccountGate::reasons).unwrap_or_default(),
        }
    }

    /// Runs all checks periodically, for the gauges. Never returns; dropping the future stops it.
    pub(crate) async fn poll_for_gauges(&self) -> Infallible {
        let mut interval = tokio::time::interval(checks::GAUGE_INTERVAL);
        loop {
            interval.tick().await;
            self.check_readiness().await;
            if let Some(looks) = self.state.checks.get() {
                *self.state.credits.lock().unwrap_or_else(PoisonError::into_inner) = looks.credits().await;
                *self.state.spent_today.lock().unwrap_or_else(PoisonError::into_inner) = looks.read_spent_today().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn loop_without_heartbeat_for_two_minutes_is_stuck() {
        let health = Health::default();
        health.record_heartbeat();
        tokio::time::advance(STUCK_AFTER).await;
        assert_eq!(health.stuck_for(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(health.stuck_for().is_some_and(|silence| silence > STUCK_AFTER));
        health.record_heartbeat();
        assert_eq!(health.stuck_for(), None);
    }
}
