//! What is counted and measured, and under which names.
//!
//! Names, units and attributes follow OpenTelemetry's conventions; attributes come from closed sets. Metrics that an OpenTelemetry convention defines
//! have its name. `docs/telemetry.md` lists them all, and a test compares it.

pub(crate) mod names;
mod outcomes;
mod scrape;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::Origin;
use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider};
use stability_client::{Exchange, Finished, Observer, PROVIDER, Retry};
use tokio::time::Instant;
use tracing::{Instrument, info_span};

pub(crate) use outcomes::{BROKEN, Coded, DeadLetterReason, Stage};
pub use scrape::Scrape;

use super::{SCOPE, trace};
use names::{Kind, Spec};

/// The instruments. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Instruments>,
}

struct Instruments {
    meter: Meter,
    /// Host and port of the API.
    api: OnceLock<(String, u16)>,
    jobs: Counter<u64>,
    job_duration: Histogram<f64>,
    success_rate: Histogram<f64>,
    images: Counter<u64>,
    stages: Histogram<f64>,
    requests: Counter<u64>,
    retries: Counter<u64>,
    rate_limited: Counter<u64>,
    quota_wait: Histogram<f64>,
    cost: Counter<f64>,
    lease_losses: Counter<u64>,
    dead_letters: Counter<u64>,
    events: Counter<u64>,
    reconnects: Counter<u64>,
    http: Histogram<f64>,
    gen_ai: Histogram<f64>,
    messaging: Histogram<f64>,
}

impl Default for Metrics {
    /// Counts for nobody.
    fn default() -> Self {
        Self::new(&NoopMeterProvider::new())
    }
}

impl Metrics {
    /// Instruments of this provider.
    pub fn new(provider: &impl MeterProvider) -> Self {
        let meter = provider.meter(SCOPE);
        let counter =
            |spec: &Spec| meter.u64_counter(spec.name).with_unit(spec.unit).with_description(spec.description).build();
        let histogram = |spec: &Spec| {
            let Kind::Histogram(boundaries) = spec.kind else { unreachable!("{} is no histogram", spec.name) };
            let histogram = meter.f64_histogram(spec.name).with_unit(spec.unit).with_description(spec.description);
            histogram.with_boundaries(boundaries.to_vec()).build()
        };
        let cost = &names::COST;
        let instruments = Instruments {
            jobs: counter(&names::JOBS),
            job_duration: histogram(&names::JOB_DURATION),
            success_rate: histogram(&names::SUCCESS_RATE),
            images: counter(&names::IMAGES),
            stages: histogram(&names::STAGE_DURATION),
            requests: counter(&names::REQUESTS),
            retries: counter(&names::RETRIES),
            rate_limited: counter(&names::RATE_LIMITED),
            quota_wait: histogram(&names::QUOTA_WAIT),
            cost: meter.f64_counter(cost.name).with_unit(cost.unit).with_description(cost.description).build(),
            lease_losses: counter(&names::LEASE_LOSSES),
            dead_letters: counter(&names::DEAD_LETTERS),
            events: counter(&names::EVENTS),
            reconnects: counter(&names::RECONNECTS),
            http: histogram(&names::HTTP_DURATION),
            gen_ai: histogram(&names::GEN_AI_DURATION),
            messaging: histogram(&names::PROCESS_DURATION),
            api: OnceLock::new(),
            meter,
        };
        let metrics = Self { inner: Arc::new(instruments) };
        metrics.begin();
        metrics.gauge(&names::BUILD_INFO, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))], || Some(1.0));
        metrics
    }

    /// Lets every series that may be alarming exist from the start: a rate cannot be told of one whose first value is not 0.
    fn begin(&self) {
        let Instruments { jobs, images, dead_letters, events, .. } = &*self.inner;
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

    /// Where requests go.
    pub(crate) fn set_api(&self, host: &str, port: u16) {
        // Set once, by whoever makes the client.
        let _ = self.inner.api.set((host.to_owned(), port));
    }

    /// Lets a value be read whenever metrics are collected; where there is none, nothing is shown.
    pub(crate) fn gauge(
        &self,
        spec: &Spec,
        attributes: &[KeyValue],
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let attributes = attributes.to_vec();
        let gauge = self.inner.meter.f64_observable_gauge(spec.name);
        // The provider keeps what it reads.
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

    /// Does a part of a job's way in a span of its own, and times it.
    pub(crate) async fn stage<T, E: Coded>(
        &self,
        stage: Stage,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = info_span!("stage", otel.name = stage.as_str());
        let begun = Instant::now();
        let done = work.instrument(span.clone()).await;
        let error = done.as_ref().err().map_or_else(no_error, |error| error_type(error.code()));
        let attributes = [KeyValue::new("stage", stage.as_str()), error];
        self.inner.stages.record(begun.elapsed().as_secs_f64(), &attributes);
        if let Err(error) = &done {
            trace::failed_in(&span, error.code(), &error.to_string());
        }
        done
    }

    /// A delivery has ended with this outcome. Its job has failed with `job_error`, its handling with `error`; each may be empty.
    pub(crate) fn delivery(&self, outcome: &'static str, job_error: &'static str, error: &'static str, took: Duration) {
        self.inner.jobs.add(1, &[KeyValue::new("outcome", outcome), error_type(job_error)]);
        let attributes = [
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.destination.name", broker::CONSUMED),
            error_type(error),
        ];
        self.inner.messaging.record(took.as_secs_f64(), &attributes);
    }

    /// A job has ended.
    pub(crate) fn job_ended(&self, succeeded: u32, total: u32, took: Duration, completed: bool) {
        let outcome = if completed { "completed" } else { "failed" };
        self.inner.job_duration.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
        if total > 0 {
            self.inner.success_rate.record(f64::from(succeeded) / f64::from(total), &[]);
        }
    }

    /// An image is completed.
    pub(crate) fn image_completed(&self, origin: Origin) {
        let origin = KeyValue::new("origin", origin.as_str());
        self.inner.images.add(1, &[KeyValue::new("outcome", "completed"), origin, no_error()]);
    }

    /// An image has failed, for now or for good.
    pub(crate) fn image_failed(&self, code: ImageFailureCode) {
        self.inner.images.add(1, &[KeyValue::new("outcome", "failed"), no_origin(), error_type(code.as_str())]);
    }

    /// A request had its end, and was charged or may have been.
    pub(crate) fn spent(&self, usd: f64) {
        self.inner.cost.add(usd, &[]);
    }

    /// Somebody else has claimed a job that this worker held.
    pub(crate) fn lease_lost(&self) {
        self.inner.lease_losses.add(1, &[]);
    }

    /// A message went to the dead letters.
    pub(crate) fn dead_letter(&self, reason: DeadLetterReason) {
        self.inner.dead_letters.add(1, &[KeyValue::new("reason", reason.as_str())]);
    }

    /// A terminal event was published, no queue was bound for it, or it could not be published.
    pub(crate) fn terminal_event(&self, outcome: &'static str) {
        self.inner.events.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A broker that was lost was found again.
    pub(crate) fn reconnected(&self) {
        self.inner.reconnects.add(1, &[]);
    }
}

impl Observer for Metrics {
    fn retrying(&self, retry: &Retry) {
        self.inner.retries.add(1, &[KeyValue::new("cause", retry.cause)]);
    }

    fn admitted(&self, wait: Duration) {
        self.inner.quota_wait.record(wait.as_secs_f64(), &[]);
    }

    fn answered(&self, exchange: &Exchange) {
        let Exchange { engine, failure, status, took } = *exchange;
        let outcome = KeyValue::new("outcome", failure.unwrap_or("ok"));
        self.inner.requests.add(1, &[KeyValue::new("engine", engine.id()), outcome]);
        if status == Some(429) {
            self.inner.rate_limited.add(1, &[]);
        }
        let mut attributes = vec![KeyValue::new("http.request.method", "POST")];
        if let Some((host, port)) = self.inner.api.get() {
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
        self.inner.http.record(took.as_secs_f64(), &attributes);
    }

    fn finished(&self, call: &Finished) {
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "generate_content"),
            KeyValue::new("gen_ai.provider.name", PROVIDER),
            KeyValue::new("gen_ai.request.model", call.engine.id()),
        ];
        attributes.extend(call.failure.map(error_type));
        self.inner.gen_ai.record(call.took.as_secs_f64(), &attributes);
    }
}

/// In place of an attribute that does not apply: a series whose attributes come and go cannot be summed well.
const NONE: &str = "";

fn no_error() -> KeyValue {
    error_type(NONE)
}

fn no_origin() -> KeyValue {
    KeyValue::new("origin", NONE)
}

fn error_type(code: &'static str) -> KeyValue {
    KeyValue::new("error.type", code)
}
