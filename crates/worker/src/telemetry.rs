//! What an operator sees of the worker: spans, metrics and log lines.
//!
//! The rest of the program makes spans and lines by `tracing`, and counts by [`Metrics`]; where they go is decided here. Nothing is exported unless the
//! settings name an OTLP endpoint. Exporting happens on threads of its own with bounded queues: a collector that is slow or away costs what it does not
//! take, and nothing else.

mod export;
mod lines;
pub mod metrics;
pub(crate) mod trace;

use std::sync::mpsc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::{OpenTelemetryTracingBridge, TracingSpanAttributes};
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Metadata;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{SettingError, Settings, TelemetrySettings};
pub(crate) use export::check;
pub use metrics::{Metrics, Scrape};

/// What the instruments' scope is called.
const SCOPE: &str = "asset-worker";
/// What is left at the end is exported within this time, or lost: a stop must not wait for a collector.
const FLUSH: Duration = Duration::from_secs(2);

/// Everything that is seen of the process, from its start to its end.
pub struct Telemetry {
    /// Where the program counts.
    pub metrics: Metrics,
    /// The metrics as Prometheus reads them.
    pub scrape: Scrape,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
    loggers: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Starts to log, to trace and to count. Without `RUST_LOG` the lines are those of `default_filter`; what is `exported` besides is. Needs a runtime.
    ///
    /// # Errors
    ///
    /// [`SettingError`] where an exporter cannot be made of the settings.
    pub fn start<W>(
        settings: &Settings,
        exported: &TelemetrySettings,
        default_filter: &str,
        writer: W,
    ) -> Result<Self, SettingError>
    where
        W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
    {
        let resource = export::resource(exported);
        let (scrape, reader) = Scrape::new();
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(reader);
        if let Some(exporter) = export::metrics(exported)? {
            meters = meters.with_periodic_exporter(exporter);
        }
        let meters = meters.build();
        let tracers = export::spans(exported)?.map(|exporter| {
            SdkTracerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporter).build()
        });
        let loggers = export::logs(exported)?
            .map(|exporter| SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build());
        let spans = tracers.as_ref().map(|tracers| {
            tracing_opentelemetry::layer()
                .with_tracer(tracers.tracer(SCOPE))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_level(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(is_a_span_of_ours))
        });
        let sent = loggers.as_ref().map(|loggers| {
            OpenTelemetryTracingBridge::builder(loggers)
                .with_tracing_span_attributes(TracingSpanAttributes::allowlist(lines::CONTEXT_FIELDS.iter().copied()))
                .build()
                .with_filter(
                    lines::filter(settings.log_filter.as_deref().unwrap_or(default_filter))
                        .and(filter_fn(is_no_export)),
                )
        });
        // Refused only where a subscriber is set already, as in a test; then lines go there.
        let _ = tracing_subscriber::registry()
            .with(spans)
            .with(lines::layer(settings, default_filter, writer))
            .with(sent)
            .try_init();
        let metrics = Metrics::new(&meters);
        Ok(Self { metrics, scrape, meters, tracers, loggers })
    }

    /// Exports what is left, as far as that is done within two seconds. The runtime must still be there.
    pub fn finish(self) {
        let Self { meters, tracers, loggers, .. } = self;
        let (done, all_done) = mpsc::channel::<()>();
        // Side by side, on threads that the end of the process may cut off: an exporter that waits for its collector does not hear that it shall stop.
        let at_last = |shut_down: Box<dyn FnOnce() + Send>| {
            let done = done.clone();
            std::thread::spawn(move || {
                shut_down();
                drop(done);
            })
        };
        at_last(Box::new(move || drop(meters.shutdown())));
        if let Some(tracers) = tracers {
            at_last(Box::new(move || drop(tracers.shutdown_with_timeout(FLUSH))));
        }
        if let Some(loggers) = loggers {
            at_last(Box::new(move || drop(loggers.shutdown_with_timeout(FLUSH))));
        }
        drop(done);
        // Ends when the last thread has dropped its sender, or with the time.
        let _ = all_done.recv_timeout(FLUSH);
    }
}

/// Lines of libraries are no part of a trace, and those that export it must not trace themselves.
fn is_a_span_of_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && is_ours(metadata)
}

/// Those who export must not export what they say of it.
fn is_no_export(metadata: &Metadata<'_>) -> bool {
    let exporters = ["h2", "hyper", "opentelemetry", "reqwest", "rustls", "tonic", "tower"];
    !exporters.iter().any(|library| metadata.target().starts_with(library))
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    ["asset_worker", "asset_broker", "asset_store", "gemini_client", "stability_client"]
        .iter()
        .any(|krate| target.strip_prefix(krate).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}
