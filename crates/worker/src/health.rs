//! Whether the worker is well: what `/livez`, `/readyz` and the gauges say.
//!
//! Broker, loop and jobs tell it how they are; database, storage and key are looked at. Looking is shared: however many ask, each part is asked at most
//! once in its interval.

mod looks;
mod queue;
mod server;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use domain::money::MicroUsd;
use opentelemetry::KeyValue;
use serde::Serialize;
use stability_client::{Exchange, Observer};
use tokio::time::Instant;

use crate::settings::Settings;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::names;
pub(crate) use looks::Looked;
use looks::Looks;
pub(crate) use queue::{INTERVAL as QUEUE_INTERVAL, QueueWatch};
pub(crate) use server::Probes;

/// The loop tells that it goes on every few seconds; a worker that has not for so long is stuck. Longer than each wait between two beats: 15 s for an
/// answer of the broker, a minute between tries to reach it.
const STUCK: Duration = Duration::from_mins(2);

/// How the worker is. Clones share it.
#[derive(Clone)]
pub struct Health {
    state: Arc<State>,
}

struct State {
    origin: Instant,
    /// Milliseconds from the origin to the last beat.
    beat: AtomicU64,
    broker: AtomicBool,
    stopping: AtomicBool,
    ready: AtomicBool,
    jobs: AtomicUsize,
    looks: OnceLock<Looks>,
    queue: Mutex<QueueWatch>,
    credits: Mutex<Option<f64>>,
    spent_today: Mutex<Option<MicroUsd>>,
}

impl State {
    /// Since the last beat.
    fn silence(&self) -> Duration {
        let beat = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        self.origin.elapsed().saturating_sub(beat)
    }
}

impl Default for Health {
    fn default() -> Self {
        let state = State {
            origin: Instant::now(),
            beat: AtomicU64::new(0),
            broker: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            jobs: AtomicUsize::new(0),
            looks: OnceLock::new(),
            queue: Mutex::default(),
            credits: Mutex::default(),
            spent_today: Mutex::default(),
        };
        Self { state: Arc::new(state) }
    }
}

/// What `/readyz` says: `ok` where a part is well, else what is wrong with it.
#[derive(Debug, Serialize)]
struct Readiness {
    status: &'static str,
    broker: String,
    database: String,
    storage: String,
    api_key: String,
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

    /// So many commands are held.
    pub(crate) fn set_jobs(&self, jobs: usize) {
        self.state.jobs.store(jobs, Ordering::Relaxed);
    }

    /// The loop goes on.
    pub(crate) fn beat(&self) {
        let since = u64::try_from(self.state.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.state.beat.store(since, Ordering::Relaxed);
    }

    /// For how long the loop has not been heard of, where that is too long.
    fn stuck_for(&self) -> Option<Duration> {
        Some(self.state.silence()).filter(|silence| *silence > STUCK)
    }

    /// Database, storage and API can be looked at.
    pub(crate) fn set_parts(&self, parts: Looked) {
        // Set once, when the worker has them.
        let _ = self.state.looks.set(Looks::new(parts));
    }

    /// The API took the key, or refused it: what a request found is known without another look.
    pub(crate) fn note_key(&self, accepted: bool) {
        if let Some(looks) = self.state.looks.get() {
            looks.note_key(accepted);
        }
    }

    /// What is known of the queue of commands.
    pub(crate) fn queue<T>(&self, tell: impl FnOnce(&mut QueueWatch) -> T) -> T {
        tell(&mut self.state.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn readiness(&self) -> Readiness {
        let missing = || Err("not opened yet".to_owned());
        let (database, storage, key) = match self.state.looks.get() {
            Some(looks) => tokio::join!(looks.database(), looks.storage(), looks.key()),
            None => (missing(), missing(), Ok(())),
        };
        let broker = if self.state.broker.load(Ordering::Relaxed) { Ok(()) } else { Err("not connected".to_owned()) };
        let stopping = self.state.stopping.load(Ordering::Relaxed);
        let ready = !stopping && [&broker, &database, &storage, &key].iter().all(|part| part.is_ok());
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
        }
    }

    /// Looks at everything again and again, for the gauges, for as long as it is let.
    pub(crate) async fn watch(&self) -> Infallible {
        let mut every = tokio::time::interval(looks::INTERVAL);
        loop {
            every.tick().await;
            self.readiness().await;
            if let Some(looks) = self.state.looks.get() {
                *self.state.credits.lock().unwrap_or_else(PoisonError::into_inner) = looks.credits();
                *self.state.spent_today.lock().unwrap_or_else(PoisonError::into_inner) = looks.spent_today().await;
            }
        }
    }

    /// Lets the gauges show how the worker is.
    pub(crate) fn show(&self, metrics: &Metrics, settings: &Settings) {
        let state = |read: fn(&State) -> Option<f64>| {
            let state = self.state.clone();
            move || read(&state)
        };
        let fixed = |value: f64| move || Some(value);
        metrics.gauge(
            &names::READY,
            &[],
            state(|state| Some(f64::from(u8::from(state.ready.load(Ordering::Relaxed))))),
        );
        metrics.gauge(&names::JOBS_IN_FLIGHT, &[], state(|state| Some(count(state.jobs.load(Ordering::Relaxed)))));
        metrics.gauge(&names::SILENCE, &[], state(|state| Some(state.silence().as_secs_f64())));
        metrics.gauge(&names::JOBS_LIMIT, &[], fixed(count(settings.jobs.max_in_flight.get())));
        metrics.gauge(&names::QUOTA_LIMIT, &[], fixed(f64::from(settings.stability.rate_limit.get())));
        let known = |state: &State, read: fn(&QueueWatch) -> Option<f64>| {
            read(&state.queue.lock().unwrap_or_else(PoisonError::into_inner))
        };
        for (queue, read) in [
            ("assets.generate", QueueWatch::waiting as fn(&QueueWatch) -> Option<f64>),
            ("assets.generate.dead", QueueWatch::dead),
        ] {
            let state = self.state.clone();
            metrics.gauge(&names::QUEUE_MESSAGES, &[KeyValue::new("queue", queue)], move || known(&state, read));
        }
        for (spec, read) in [
            (names::QUEUE_CONSUMERS, QueueWatch::consumers as fn(&QueueWatch) -> Option<f64>),
            (names::QUEUE_AGE, QueueWatch::oldest_s),
        ] {
            let state = self.state.clone();
            metrics.gauge(&spec, &[], move || known(&state, read));
        }
        let state = self.state.clone();
        metrics.gauge(&names::CREDITS, &[], move || *state.credits.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(limit) = settings.jobs.daily_budget_usd {
            metrics.gauge(&names::BUDGET_LIMIT, &[], fixed(limit));
            let state = self.state.clone();
            let spent = move || state.spent_today.lock().unwrap_or_else(PoisonError::into_inner).map(MicroUsd::usd);
            metrics.gauge(&names::BUDGET_SPENT, &[], spent);
        }
    }
}

/// Counts here are small.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

impl Observer for Health {
    /// Notes what requests show about the key.
    fn answered(&self, exchange: &Exchange) {
        match exchange.failure {
            None => self.note_key(true),
            Some("unauthorized") => self.note_key(false),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_is_not_heard_of_for_two_minutes_is_stuck() {
        let health = Health::default();
        health.beat();
        tokio::time::advance(STUCK).await;
        assert_eq!(health.stuck_for(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(health.stuck_for().is_some_and(|silence| silence > STUCK));
        health.beat();
        assert_eq!(health.stuck_for(), None);
    }
}
