//! Metrics in the Prometheus text format.

use std::sync::Arc;

use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Renders the metrics of this process for Prometheus. Clones share the registry.
#[derive(Clone, Default)]
pub struct PrometheusRegistry {
    registry: Registry,
    latest: Arc<Mutex<Option<Rendered>>>,
}

/// The metrics as they were gathered at a time.
struct Rendered {
    started: Instant,
    text: Arc<str>,
}

impl PrometheusRegistry {
    /// Creates a registry and the exporter that feeds it.
    pub(crate) fn new() -> (Self, PrometheusExporter) {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
        (Self { registry, latest: Arc::default() }, exporter.build().expect("the registry is empty"))
    }

    /// All metrics in the Prometheus text format, version 0.0.4.
    ///
    /// Concurrent calls share a result: the metrics are gathered once for all calls that wait for an earlier gathering.
    pub async fn render(&self) -> Arc<str> {
        let called = Instant::now();
        let mut latest = self.latest.lock().await;
        match &*latest {
            Some(Rendered { started, text }) if *started >= called => text.clone(),
            _ => {
                // Other tasks run first: those that call now share this result.
                tokio::task::yield_now().await;
                let started = Instant::now();
                let text = self.gather();
                *latest = Some(Rendered { started, text: text.clone() });
                text
            }
        }
    }

    fn gather(&self) -> Arc<str> {
        let mut text = Vec::new();
        // If a metric cannot be encoded, the text up to it is still served.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use prometheus::IntCounter;

    use super::*;

    /// A metric that counts how often it was gathered.
    struct GatherCount {
        count: IntCounter,
    }

    impl prometheus::core::Collector for GatherCount {
        fn desc(&self) -> Vec<&prometheus::core::Desc> {
            self.count.desc()
        }

        fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
            self.count.inc();
            self.count.collect()
        }
    }

    #[tokio::test]
    async fn concurrent_clients_share_one_gathering() {
        let (registry, _exporter) = PrometheusRegistry::new();
        let count = IntCounter::new("gathered", "How often the metrics were gathered").expect("a valid name");
        registry.registry.register(Box::new(GatherCount { count: count.clone() })).expect("a new metric");
        let texts = join_all((0..64).map(|_| registry.render())).await;
        assert_eq!(count.get(), 1);
        assert!(texts.iter().all(|text| text.contains("gathered 1")), "{}", texts[0]);
        assert!(registry.render().await.contains("gathered 2"), "a later client gets new values");
    }
}
