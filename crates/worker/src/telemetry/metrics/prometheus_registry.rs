//! Metrics in the Prometheus text format.

use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Encoder, Registry, TextEncoder};

/// Renders the metrics of this process for Prometheus. Clones share the registry.
#[derive(Clone, Default)]
pub struct PrometheusRegistry(Registry);

impl PrometheusRegistry {
    /// Creates a registry and the exporter that feeds it.
    pub(crate) fn new() -> (Self, PrometheusExporter) {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
        (Self(registry), exporter.build().expect("the registry is empty"))
    }

    /// All metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // If a metric cannot be encoded, the text up to it is still served.
        let _ = TextEncoder::new().encode(&self.0.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}
