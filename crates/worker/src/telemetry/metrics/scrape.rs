//! Metrics as Prometheus reads them.

use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Encoder, Registry, TextEncoder};

/// Gives the metrics of this process as text. Clones share them.
#[derive(Clone, Default)]
pub struct Scrape(Registry);

impl Scrape {
    /// A way to read, and what is to be read from.
    pub(crate) fn new() -> (Self, PrometheusExporter) {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
        (Self(registry), exporter.build().expect("nothing is in the registry yet"))
    }

    /// The text format of Prometheus, version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Whatever cannot be encoded is left out; the rest is shown.
        let _ = TextEncoder::new().encode(&self.0.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}
