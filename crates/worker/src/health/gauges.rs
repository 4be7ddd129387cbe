//! Gauges that show the health and the limits of the worker.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use domain::money::MicroUsd;
use opentelemetry::KeyValue;

use super::{DEPENDENCIES, Health, HealthState, QueueStats};
use crate::gate::GateReason;
use crate::settings::Settings;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::names;

impl Health {
    /// Registers the gauge that shows whether the server of the HTTP API is ready. The gauges of a worker are not its own.
    pub(crate) fn register_api_gauges(&self, metrics: &Metrics) {
        let state = self.state.clone();
        metrics.register_gauge(&names::HTTP_API_READY, &[], move || {
            Some(f64::from(u8::from(state.ready.load(Ordering::Relaxed))))
        });
    }

    /// Registers the gauges that show the health and the limits of the worker.
    pub(crate) fn register_gauges(&self, metrics: &Metrics, settings: &Settings) {
        let state = |read: fn(&HealthState) -> Option<f64>| {
            let state = self.state.clone();
            move || read(&state)
        };
        let constant = |value: f64| move || Some(value);
        metrics.register_gauge(
            &names::READY,
            &[],
            state(|state| Some(f64::from(u8::from(state.ready.load(Ordering::Relaxed))))),
        );
        for (position, dependency) in DEPENDENCIES.into_iter().enumerate() {
            let state = self.state.clone();
            metrics.register_gauge(
                &names::DEPENDENCY_AVAILABLE,
                &[KeyValue::new("dependency", dependency)],
                move || {
                    let available = state.available.lock().unwrap_or_else(PoisonError::into_inner);
                    Some(f64::from(u8::from(available[position]?)))
                },
            );
        }
        metrics.register_gauge(
            &names::UNKNOWN_MIGRATIONS,
            &[],
            state(|state| state.unknown_migrations.get().copied().map(count_to_f64)),
        );
        metrics.register_gauge(
            &names::PUBLISHING_BLOCKED,
            &[],
            state(|state| Some(f64::from(u8::from(state.publishing_blocked.load(Ordering::Relaxed))))),
        );
        metrics.register_gauge(
            &names::JOBS_IN_FLIGHT,
            &[],
            state(|state| Some(count_to_f64(state.jobs_in_flight.load(Ordering::Relaxed)))),
        );
        metrics.register_gauge(&names::HEARTBEAT_AGE, &[], state(|state| Some(state.heartbeat_age().as_secs_f64())));
        metrics.register_gauge(&names::JOBS_LIMIT, &[], constant(count_to_f64(settings.jobs.max_in_flight.get())));
        metrics.register_gauge(&names::QUOTA_LIMIT, &[], constant(f64::from(settings.stability.rate_limit.get())));
        let queue_value = |state: &HealthState, read: fn(&QueueStats) -> Option<f64>| {
            read(&state.queue.lock().unwrap_or_else(PoisonError::into_inner))
        };
        for (queue, read) in [
            ("assets.generate", QueueStats::waiting as fn(&QueueStats) -> Option<f64>),
            ("assets.generate.dead", QueueStats::dead_letters),
        ] {
            let state = self.state.clone();
            metrics.register_gauge(&names::QUEUE_MESSAGES, &[KeyValue::new("queue", queue)], move || {
                queue_value(&state, read)
            });
        }
        for (spec, read) in [
            (names::QUEUE_CONSUMERS, QueueStats::consumers as fn(&QueueStats) -> Option<f64>),
            (names::OLDEST_MESSAGE_AGE, QueueStats::oldest_age_seconds),
        ] {
            let state = self.state.clone();
            metrics.register_gauge(&spec, &[], move || queue_value(&state, read));
        }
        for reason in GateReason::NAMES {
            let state = self.state.clone();
            metrics.register_gauge(&names::GATE_CLOSED, &[KeyValue::new("reason", reason)], move || {
                let reasons = state.gate.get()?.reasons();
                Some(f64::from(u8::from(reasons.iter().any(|closed| closed.name() == reason))))
            });
        }
        let state = self.state.clone();
        metrics.register_gauge(&names::CREDITS, &[], move || {
            *state.credits.lock().unwrap_or_else(PoisonError::into_inner)
        });
        if let Some(limit) = settings.jobs.daily_budget_usd {
            metrics.register_gauge(&names::BUDGET_LIMIT, &[], constant(limit));
            let state = self.state.clone();
            let spent = move || state.spent_today.lock().unwrap_or_else(PoisonError::into_inner).map(MicroUsd::usd);
            metrics.register_gauge(&names::BUDGET_SPENT, &[], spent);
        }
    }
}

/// Converts a count; values above `u32::MAX` do not occur.
fn count_to_f64(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
