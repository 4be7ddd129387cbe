//! OTLP exporters by gRPC or HTTP, built from the settings.
//!
//! Options that the settings do not hold are read from the `OTEL_*` variables by the libraries themselves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as ExportLogs};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as ExportSpans};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{info, warn};
use uuid::Uuid;

use crate::settings::{OtlpProtocol, SettingError, TelemetrySettings};

/// Resource attributes of all exported data.
///
/// Name and version of the service, an instance id that is new for each process, and the attributes of
/// `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) fn resource(settings: &TelemetrySettings) -> Resource {
    let ours = [
        KeyValue::new("service.name", super::INSTRUMENTATION_SCOPE),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(ours)
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match &settings.service_name {
        Some(name) => resource.with_service_name(name.clone()),
        None => resource,
    }
    .build()
}

pub(super) fn span_exporter(settings: &TelemetrySettings) -> Result<Option<impl ExportSpans + 'static>, SettingError> {
    install_crypto_provider();
    let built = match settings.traces {
        None => return Ok(None),
        Some(OtlpProtocol::Grpc) => SpanExporter::builder()
            .with_tonic()
            .with_tls_config(tls_config())
            .with_metadata(grpc_metadata(settings))
            .build(),
        Some(OtlpProtocol::Http) => SpanExporter::builder().with_http().with_headers(file_headers(settings)).build(),
    };
    Ok(Some(ReportingExporter::new("spans", map_build_error(built)?)))
}

pub(super) fn metric_exporter(settings: &TelemetrySettings) -> Result<Option<impl PushMetricExporter>, SettingError> {
    install_crypto_provider();
    let built = match settings.metrics {
        None => return Ok(None),
        Some(OtlpProtocol::Grpc) => MetricExporter::builder()
            .with_tonic()
            .with_tls_config(tls_config())
            .with_metadata(grpc_metadata(settings))
            .build(),
        Some(OtlpProtocol::Http) => MetricExporter::builder().with_http().with_headers(file_headers(settings)).build(),
    };
    Ok(Some(ReportingExporter::new("metrics", map_build_error(built)?)))
}

pub(super) fn log_exporter(settings: &TelemetrySettings) -> Result<Option<impl ExportLogs + 'static>, SettingError> {
    install_crypto_provider();
    let built = match settings.logs {
        None => return Ok(None),
        Some(OtlpProtocol::Grpc) => LogExporter::builder()
            .with_tonic()
            .with_tls_config(tls_config())
            .with_metadata(grpc_metadata(settings))
            .build(),
        Some(OtlpProtocol::Http) => LogExporter::builder().with_http().with_headers(file_headers(settings)).build(),
    };
    Ok(Some(ReportingExporter::new("logs", map_build_error(built)?)))
}

/// Sends an empty batch of spans to check the collector; `None` if spans are not exported.
///
/// # Errors
///
/// A description of the failure, if an exporter cannot be built or the collector does not accept the batch.
pub(crate) async fn check_collector(settings: &TelemetrySettings) -> Option<Result<(), String>> {
    let exporter = match span_exporter(settings) {
        Ok(exporter) => exporter?,
        Err(error) => return Some(Err(error.to_string())),
    };
    let (sender, sent) = oneshot::channel();
    let runtime = Handle::current();
    // On a separate thread, as the exporters do: their HTTP client blocks, which is not allowed on a runtime thread.
    // The thread is not joined.
    std::thread::spawn(move || {
        let _runtime = runtime.enter();
        // Fails only if the caller was dropped.
        let _ = sender.send(futures_executor::block_on(exporter.export(Vec::new())));
    });
    Some(match sent.await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err("the exporter panicked".to_owned()),
    })
}

/// Selects ring as the TLS crypto provider: rustls cannot choose if more than one provider is compiled in.
fn install_crypto_provider() {
    // Fails only if a provider is already installed, which is sufficient.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn map_build_error<T>(built: Result<T, ExporterBuildError>) -> Result<T, SettingError> {
    built.map_err(|error| SettingError::unusable("OTEL_EXPORTER_OTLP_ENDPOINT", error))
}

/// Headers from `OTEL_EXPORTER_OTLP_HEADERS_FILE`. The libraries add those of `OTEL_EXPORTER_OTLP_HEADERS`.
fn file_headers(settings: &TelemetrySettings) -> HashMap<String, String> {
    settings.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
}

/// Enables the system's root certificates, which are off by default. Has no effect if the endpoint is plain HTTP.
fn tls_config() -> ClientTlsConfig {
    ClientTlsConfig::new().with_enabled_roots()
}

fn grpc_metadata(settings: &TelemetrySettings) -> MetadataMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in file_headers(settings) {
        if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            value.set_sensitive(true);
            metadata.insert(name, value);
        }
    }
    MetadataMap::from_headers(metadata)
}

/// Wraps an exporter and logs once when exports begin to fail, and once when they succeed again.
#[derive(Debug)]
struct ReportingExporter<E> {
    signal: &'static str,
    exporter: E,
    failing: AtomicBool,
}

impl<E> ReportingExporter<E> {
    fn new(signal: &'static str, exporter: E) -> Self {
        Self { signal, exporter, failing: AtomicBool::new(false) }
    }

    fn report(&self, result: OTelSdkResult) -> OTelSdkResult {
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => {
                warn!(what = self.signal, %error, "telemetry export failed; data is lost until the collector accepts it again");
            }
            Ok(()) if was_failing => info!(what = self.signal, "telemetry export succeeded again"),
            Ok(()) | Err(_) => {}
        }
        result
    }
}

impl<E: ExportSpans> ExportSpans for ReportingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.report(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for ReportingExporter<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.report(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

impl<E: ExportLogs> ExportLogs for ReportingExporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.report(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
