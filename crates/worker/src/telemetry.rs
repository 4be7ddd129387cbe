//! Spans, metrics and log lines, and their export by OTLP.
//!
//! The rest of the program creates spans and log lines with `tracing` and records metrics with [`Metrics`]; this module
//! decides where they go. Nothing is exported unless the settings name an OTLP endpoint. Telemetry is exported on
//! separate threads with bounded queues: if the collector is slow or unavailable, the data that it does not accept is
//! lost, and jobs are not delayed.

mod export;
mod log_lines;
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
pub(crate) use export::check_collector;
pub use metrics::{Metrics, PrometheusRegistry};

/// Name of the instrumentation scope; also the default `service.name`.
const INSTRUMENTATION_SCOPE: &str = "asset-worker";
/// Time limit for the last export at shutdown; remaining data is lost, because shutdown must not wait for a collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The telemetry of the process: metrics, tracing and log export.
pub struct Telemetry {
    /// The instruments of the program.
    pub metrics: Metrics,
    /// The same metrics in the Prometheus text format.
    pub prometheus: PrometheusRegistry,
    meter_provider: SdkMeterProvider,
    tracer_provider: Option<SdkTracerProvider>,
    logger_provider: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Starts logging, tracing and metrics.
    ///
    /// Without `RUST_LOG`, log lines are filtered by `default_filter`. `export_settings` says which signals are
    /// exported by OTLP. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if an exporter cannot be built from the settings.
    pub fn start<W>(
        settings: &Settings,
        export_settings: &TelemetrySettings,
        default_filter: &str,
        writer: W,
    ) -> Result<Self, SettingError>
    where
        W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
    {
        let resource = export::resource(export_settings);
        let (scrape, reader) = PrometheusRegistry::new();
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(reader);
        if let Some(exporter) = export::metric_exporter(export_settings)? {
            meters = meters.with_periodic_exporter(exporter);
        }
        let meters = meters.build();
        let tracers = export::span_exporter(export_settings)?.map(|exporter| {
            SdkTracerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporter).build()
        });
        let loggers = export::log_exporter(export_settings)?
            .map(|exporter| SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build());
        let spans = tracers.as_ref().map(|tracers| {
            tracing_opentelemetry::layer()
                .with_tracer(tracers.tracer(INSTRUMENTATION_SCOPE))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_level(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(is_own_span))
        });
        let log_bridge = loggers.as_ref().map(|loggers| {
            OpenTelemetryTracingBridge::builder(loggers)
                .with_tracing_span_attributes(TracingSpanAttributes::allowlist(
                    log_lines::CONTEXT_FIELDS.iter().copied(),
                ))
                .build()
                .with_filter(
                    log_lines::filter(settings.log_filter.as_deref().unwrap_or(default_filter))
                        .and(filter_fn(is_not_from_exporter)),
                )
        });
        // Fails only if a global subscriber is already set, as in a test; log lines then go to that one.
        let _ = tracing_subscriber::registry()
            .with(spans)
            .with(log_lines::layer(settings, default_filter, writer))
            .with(log_bridge)
            .try_init();
        let metrics = Metrics::new(&meters);
        Ok(Self {
            metrics,
            prometheus: scrape,
            meter_provider: meters,
            tracer_provider: tracers,
            logger_provider: loggers,
        })
    }

    /// Exports the remaining data for at most two seconds. Must be called while the Tokio runtime still runs.
    pub fn shutdown(self) {
        let Self { meter_provider: meters, tracer_provider: tracers, logger_provider: loggers, .. } = self;
        let (done, all_done) = mpsc::channel::<()>();
        // In parallel, on threads that are not joined: an exporter that waits for its collector does not react to a
        // shutdown and may still run when the process exits.
        let spawn_shutdown = |shut_down: Box<dyn FnOnce() + Send>| {
            let done = done.clone();
            std::thread::spawn(move || {
                shut_down();
                drop(done);
            })
        };
        spawn_shutdown(Box::new(move || drop(meters.shutdown())));
        if let Some(tracers) = tracers {
            spawn_shutdown(Box::new(move || drop(tracers.shutdown_with_timeout(FLUSH_TIMEOUT))));
        }
        if let Some(loggers) = loggers {
            spawn_shutdown(Box::new(move || drop(loggers.shutdown_with_timeout(FLUSH_TIMEOUT))));
        }
        drop(done);
        // Returns when the last thread has dropped its sender, or at the timeout.
        let _ = all_done.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Selects the spans of this program, without log events. Spans of libraries are excluded: exporters must not trace
/// their own requests.
fn is_own_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && is_own_target(metadata)
}

/// Excludes log lines of the export libraries: exporting them would cause further log lines.
fn is_not_from_exporter(metadata: &Metadata<'_>) -> bool {
    let exporters = ["h2", "hyper", "opentelemetry", "reqwest", "rustls", "tonic", "tower"];
    !exporters.iter().any(|library| metadata.target().starts_with(library))
}

fn is_own_target(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    ["asset_worker", "asset_broker", "asset_store", "gemini_client", "stability_client"]
        .iter()
        .any(|krate| target.strip_prefix(krate).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}
