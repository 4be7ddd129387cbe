//! Metrics of the worker.
//!
//! Names, units and attributes follow OpenTelemetry's semantic conventions; a metric that a convention defines has its
//! name. Attribute values come from closed sets. `docs/telemetry.md` lists all metrics, and a test compares the list
//! with the code.

mod labels;
pub(crate) mod names;
mod prometheus_registry;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::Origin;
use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider};
use stability_client::{CallOutcome, GEN_AI_PROVIDER_NAME, Observer, RequestOutcome, Retry};
use tokio::time::Instant;
use tracing::{Instrument, info_span};

pub(crate) use labels::{DeadLetterReason, ErrorCode, OUTCOME_ERROR, Stage};
pub use prometheus_registry::PrometheusRegistry;

use super::{INSTRUMENTATION_SCOPE, trace};
use names::{InstrumentKind, MetricSpec};

/// The instruments of the worker. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Instruments>,
}

struct Instruments {
    meter: Meter,
    /// Host and port of the API.
    api_address: OnceLock<(String, u16)>,
    jobs: Counter<u64>,
    job_duration: Histogram<f64>,
    success_rate: Histogram<f64>,
    images: Counter<u64>,
    stage_duration: Histogram<f64>,
    requests: Counter<u64>,
    retries: Counter<u64>,
    rate_limited: Counter<u64>,
    quota_wait: Histogram<f64>,
    cost: Counter<f64>,
    lease_losses: Counter<u64>,
    dead_letters: Counter<u64>,
    terminal_events: Counter<u64>,
    reconnects: Counter<u64>,
    http_duration: Histogram<f64>,
    http_server_duration: Histogram<f64>,
    gen_ai_duration: Histogram<f64>,
    process_duration: Histogram<f64>,
}

impl Default for Metrics {
    /// Instruments that record nothing.
    fn default() -> Self {
        Self::new(&NoopMeterProvider::new())
    }
}

impl Metrics {
    /// Creates the instruments with this provider.
    pub fn new(provider: &impl MeterProvider) -> Self {
        let meter = provider.meter(INSTRUMENTATION_SCOPE);
        let counter = |spec: &MetricSpec| {
            meter.u64_counter(spec.name).with_unit(spec.unit).with_description(spec.description).build()
        };
        let histogram = |spec: &MetricSpec| {
            let InstrumentKind::Histogram(boundaries) = spec.kind else {
                unreachable!("{} is not a histogram", spec.name)
            };
            let histogram = meter.f64_histogram(spec.name).with_unit(spec.unit).with_description(spec.description);
            histogram.with_boundaries(boundaries.to_vec()).build()
        };
        let cost = &names::COST;
        let instruments = Instruments {
            jobs: counter(&names::JOBS),
            job_duration: histogram(&names::JOB_DURATION),
            success_rate: histogram(&names::SUCCESS_RATE),
            images: counter(&names::IMAGES),
            stage_duration: histogram(&names::STAGE_DURATION),
            requests: counter(&names::REQUESTS),
            retries: counter(&names::RETRIES),
            rate_limited: counter(&names::RATE_LIMITED),
            quota_wait: histogram(&names::QUOTA_WAIT),
            cost: meter.f64_counter(cost.name).with_unit(cost.unit).with_description(cost.description).build(),
            lease_losses: counter(&names::LEASE_LOSSES),
            dead_letters: counter(&names::DEAD_LETTERS),
            terminal_events: counter(&names::TERMINAL_EVENTS),
            reconnects: counter(&names::RECONNECTS),
            http_duration: histogram(&names::HTTP_DURATION),
            http_server_duration: histogram(&names::HTTP_SERVER_DURATION),
            gen_ai_duration: histogram(&names::GEN_AI_DURATION),
            process_duration: histogram(&names::PROCESS_DURATION),
            api_address: OnceLock::new(),
            meter,
        };
        let metrics = Self { inner: Arc::new(instruments) };
        metrics.init_series();
        metrics
            .register_gauge(&names::BUILD_INFO, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))], || Some(1.0));
        metrics
    }

    /// Creates the series that alerts use with the value 0: for a series that begins with another value, Prometheus
    /// cannot compute the first increase.
    fn init_series(&self) {
        let Instruments { jobs, images, dead_letters, terminal_events: events, .. } = &*self.inner;
        jobs.add(0, &[KeyValue::new("outcome", "completed"), no_error()]);
        for code in JobFailureCode::ALL {
            jobs.add(0, &[KeyValue::new("outcome", "failed"), error_type(code.as_str())]);
        }
        for origin in [Origin::Generated, Origin::Cache] {
            images
                .add(0, &[KeyValue::new("outcome", "completed"), KeyValue::new("origin", origin.as_str()), no_error()]);
        }
        for code in ImageFailureCode::ALL {
            images.add(0, &[KeyValue::new("outcome", "failed"), no_origin(), error_type(code.as_str())]);
        }
        for reason in DeadLetterReason::ALL {
            dead_letters.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
        for outcome in ["published", "unrouted", "failed"] {
            events.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        self.inner.rate_limited.add(0, &[]);
        self.inner.lease_losses.add(0, &[]);
        self.inner.reconnects.add(0, &[]);
        self.inner.cost.add(0.0, &[]);
    }

    /// Sets host and port of the API, for the attributes of its requests.
    pub(crate) fn set_api_address(&self, host: &str, port: u16) {
        // Called once, when the client is created.
        let _ = self.inner.api_address.set((host.to_owned(), port));
    }

    /// Registers a gauge whose value is read whenever metrics are collected. While it is `None`, the series is absent.
    pub(crate) fn register_gauge(
        &self,
        spec: &MetricSpec,
        attributes: &[KeyValue],
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let attributes = attributes.to_vec();
        let gauge = self.inner.meter.f64_observable_gauge(spec.name);
        // The provider keeps the callback; the returned handle is not needed.
        let _ = gauge
            .with_unit(spec.unit)
            .with_description(spec.description)
            .with_callback(move |observer| {
                if let Some(value) = read() {
                    observer.observe(value, &attributes);
                }
            })
            .build();
    }

    /// Runs a stage of a job in its own span and records its duration and its error.
    pub(crate) async fn run_stage<T, E: ErrorCode>(
        &self,
        stage: Stage,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = info_span!("stage", otel.name = stage.as_str());
        let started = Instant::now();
        let result = work.instrument(span.clone()).await;
        let error = result.as_ref().err().map_or_else(no_error, |error| error_type(error.code()));
        let attributes = [KeyValue::new("stage", stage.as_str()), error];
        self.inner.stage_duration.record(started.elapsed().as_secs_f64(), &attributes);
        if let Err(error) = &result {
            trace::set_error_on(&span, error.code(), &error.to_string());
        }
        result
    }

    /// Records the end of a delivery. `job_error` is the code with which its job failed, `error` the code with which
    /// its handling failed; each is empty if it does not apply.
    pub(crate) fn record_delivery(
        &self,
        outcome: &'static str,
        job_error: &'static str,
        error: &'static str,
        duration: Duration,
    ) {
        self.inner.jobs.add(1, &[KeyValue::new("outcome", outcome), error_type(job_error)]);
        let attributes = [
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.destination.name", broker::CONSUME_DESTINATION),
            error_type(error),
        ];
        self.inner.process_duration.record(duration.as_secs_f64(), &attributes);
    }

    /// Records the end of a job, with the time since its first claim.
    pub(crate) fn record_job_end(&self, succeeded: u32, total: u32, duration: Duration, completed: bool) {
        let outcome = if completed { "completed" } else { "failed" };
        self.inner.job_duration.record(duration.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
        if total > 0 {
            self.inner.success_rate.record(f64::from(succeeded) / f64::from(total), &[]);
        }
    }

    /// Counts a completed image.
    pub(crate) fn record_image_completed(&self, origin: Origin) {
        let origin = KeyValue::new("origin", origin.as_str());
        self.inner.images.add(1, &[KeyValue::new("outcome", "completed"), origin, no_error()]);
    }

    /// Counts a failed image, also if it will be tried again.
    pub(crate) fn record_image_failed(&self, code: ImageFailureCode) {
        self.inner.images.add(1, &[KeyValue::new("outcome", "failed"), no_origin(), error_type(code.as_str())]);
    }

    /// Adds the cost of a finished request that was or may have been charged, in US dollars.
    pub(crate) fn record_cost(&self, usd: f64) {
        self.inner.cost.add(usd, &[]);
    }

    /// Counts a job that another worker claimed while this worker was running it.
    pub(crate) fn record_lease_loss(&self) {
        self.inner.lease_losses.add(1, &[]);
    }

    /// Counts a dead-lettered message.
    pub(crate) fn record_dead_letter(&self, reason: DeadLetterReason) {
        self.inner.dead_letters.add(1, &[KeyValue::new("reason", reason.as_str())]);
    }

    /// Counts a job that a sweep has ended; `code` is that of its failure.
    pub(crate) fn record_swept_job(&self, code: Option<JobFailureCode>) {
        let code = code.map_or("", JobFailureCode::as_str);
        self.inner
            .jobs
            .add(1, &[KeyValue::new("outcome", if code.is_empty() { "completed" } else { code }), error_type(code)]);
    }

    /// Counts a terminal event; `outcome` is `published`, `unrouted` (no queue is bound for it) or `failed`.
    pub(crate) fn record_terminal_event(&self, outcome: &'static str) {
        self.inner.terminal_events.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Counts a connection to the broker after a lost one.
    pub(crate) fn record_reconnect(&self) {
        self.inner.reconnects.add(1, &[]);
    }

    /// Records a call of the HTTP API; `route` is the template of its path, if there is one.
    pub(crate) fn record_http_call(&self, method: &Method, route: Option<&str>, status: StatusCode, took: Duration) {
        // Other methods share a value, so that a client cannot create series.
        let known = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE, Method::OPTIONS];
        let method = known.iter().find(|known| *known == method).map_or("_OTHER", Method::as_str);
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
        self.inner.http_server_duration.record(took.as_secs_f64(), &attributes);
    }
}

impl Observer for Metrics {
    fn on_retry(&self, retry: &Retry) {
        self.inner.retries.add(1, &[KeyValue::new("cause", retry.error_kind)]);
    }

    fn on_admission_wait(&self, wait: Duration) {
        self.inner.quota_wait.record(wait.as_secs_f64(), &[]);
    }

    fn on_request_end(&self, exchange: &RequestOutcome<'_>) {
        let RequestOutcome { model, error_kind: failure, status, duration: took, .. } = *exchange;
        let outcome = KeyValue::new("outcome", failure.unwrap_or("ok"));
        self.inner.requests.add(1, &[KeyValue::new("engine", model.to_owned()), outcome]);
        if status == Some(429) {
            self.inner.rate_limited.add(1, &[]);
        }
        let mut attributes = vec![KeyValue::new("http.request.method", "POST")];
        if let Some((host, port)) = self.inner.api_address.get() {
            attributes.push(KeyValue::new("server.address", host.clone()));
            attributes.push(KeyValue::new("server.port", i64::from(*port)));
        }
        match status {
            Some(status) => {
                attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
                attributes.extend((status != 200).then(|| KeyValue::new("error.type", status.to_string())));
            }
            None => attributes.extend(failure.map(error_type)),
        }
        self.inner.http_duration.record(took.as_secs_f64(), &attributes);
    }

    fn on_call_end(&self, call: &CallOutcome<'_>) {
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", call.operation.as_str()),
            KeyValue::new("gen_ai.provider.name", GEN_AI_PROVIDER_NAME),
            KeyValue::new("gen_ai.request.model", call.model.to_owned()),
        ];
        attributes.extend(call.error_kind.map(error_type));
        self.inner.gen_ai_duration.record(call.duration.as_secs_f64(), &attributes);
    }
}

/// Value of an attribute that does not apply: all series of a metric need the same attributes to be summed.
const NOT_APPLICABLE: &str = "";

fn no_error() -> KeyValue {
    error_type(NOT_APPLICABLE)
}

fn no_origin() -> KeyValue {
    KeyValue::new("origin", NOT_APPLICABLE)
}

fn error_type(code: &'static str) -> KeyValue {
    KeyValue::new("error.type", code)
}
