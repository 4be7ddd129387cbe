//! Exporters of OTLP, by gRPC or HTTP, as the settings have it. What the settings do not hold is read by the libraries from the `OTEL_*` variables.

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

use crate::settings::{Otlp, SettingError, TelemetrySettings};

/// Who exports: one program, of this version, in this process; and whatever the environment adds.
pub(super) fn resource(settings: &TelemetrySettings) -> Resource {
    let ours = [
        KeyValue::new("service.name", super::SCOPE),
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

pub(super) fn spans(settings: &TelemetrySettings) -> Result<Option<impl ExportSpans + 'static>, SettingError> {
    choose_ring();
    let built = match settings.traces {
        None => return Ok(None),
        Some(Otlp::Grpc) => {
            SpanExporter::builder().with_tonic().with_tls_config(tls()).with_metadata(metadata(settings)).build()
        }
        Some(Otlp::Http) => SpanExporter::builder().with_http().with_headers(headers(settings)).build(),
    };
    Ok(Some(Told::new("spans", usable(built)?)))
}

pub(super) fn metrics(settings: &TelemetrySettings) -> Result<Option<impl PushMetricExporter>, SettingError> {
    choose_ring();
    let built = match settings.metrics {
        None => return Ok(None),
        Some(Otlp::Grpc) => {
            MetricExporter::builder().with_tonic().with_tls_config(tls()).with_metadata(metadata(settings)).build()
        }
        Some(Otlp::Http) => MetricExporter::builder().with_http().with_headers(headers(settings)).build(),
    };
    Ok(Some(Told::new("metrics", usable(built)?)))
}

pub(super) fn logs(settings: &TelemetrySettings) -> Result<Option<impl ExportLogs + 'static>, SettingError> {
    choose_ring();
    let built = match settings.logs {
        None => return Ok(None),
        Some(Otlp::Grpc) => {
            LogExporter::builder().with_tonic().with_tls_config(tls()).with_metadata(metadata(settings)).build()
        }
        Some(Otlp::Http) => LogExporter::builder().with_http().with_headers(headers(settings)).build(),
    };
    Ok(Some(Told::new("logs", usable(built)?)))
}

/// Sends an empty batch of spans, to see whether somebody takes it; `None` where no spans are exported.
///
/// # Errors
///
/// Why it was not taken, in a sentence.
pub(crate) async fn check(settings: &TelemetrySettings) -> Option<Result<(), String>> {
    let exporter = match spans(settings) {
        Ok(exporter) => exporter?,
        Err(error) => return Some(Err(error.to_string())),
    };
    let (sender, sent) = oneshot::channel();
    let runtime = Handle::current();
    // As the exporters' own threads do it: the client for HTTP blocks, and refuses to where the runtime drives it. Nobody waits for the thread.
    std::thread::spawn(move || {
        let _runtime = runtime.enter();
        // Whoever has gone away needs no answer.
        let _ = sender.send(futures_executor::block_on(exporter.export(Vec::new())));
    });
    Some(match sent.await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err("the exporter has failed".to_owned()),
    })
}

/// For TLS: more than one provider may be built in, so that one must be chosen.
fn choose_ring() {
    // Fails only where one was chosen already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn usable<T>(built: Result<T, ExporterBuildError>) -> Result<T, SettingError> {
    built.map_err(|error| SettingError::unusable("OTEL_EXPORTER_OTLP_ENDPOINT", error))
}

/// Headers that came from a file. Those of the variable are added by the libraries.
fn headers(settings: &TelemetrySettings) -> HashMap<String, String> {
    settings.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
}

/// With the system's certificates, which are not used unless that is said. Without effect where the endpoint is plain HTTP.
fn tls() -> ClientTlsConfig {
    ClientTlsConfig::new().with_enabled_roots()
}

fn metadata(settings: &TelemetrySettings) -> MetadataMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers(settings) {
        if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            value.set_sensitive(true);
            metadata.insert(name, value);
        }
    }
    MetadataMap::from_headers(metadata)
}

/// An exporter that says, once, that it is not heard, and once that it is again.
#[derive(Debug)]
struct Told<E> {
    what: &'static str,
    exporter: E,
    failing: AtomicBool,
}

impl<E> Told<E> {
    fn new(what: &'static str, exporter: E) -> Self {
        Self { what, exporter, failing: AtomicBool::new(false) }
    }

    fn told(&self, exported: OTelSdkResult) -> OTelSdkResult {
        let was_failing = self.failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !was_failing => {
                warn!(what = self.what, %error, "telemetry is not taken by the collector, and is lost until it is");
            }
            Ok(()) if was_failing => info!(what = self.what, "telemetry is taken by the collector again"),
            Ok(()) | Err(_) => {}
        }
        exported
    }
}

impl<E: ExportSpans> ExportSpans for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.told(self.exporter.export(batch).await)
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

impl<E: PushMetricExporter> PushMetricExporter for Told<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.told(self.exporter.export(metrics).await)
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

impl<E: ExportLogs> ExportLogs for Told<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.told(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
