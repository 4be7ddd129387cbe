//! Throughput of a worker during a time.

use std::time::Instant;

use integration_tests::TestEnv;

/// A time, and the images that were requested meanwhile.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    pub(crate) images: f64,
    pub(crate) seconds: f64,
}

impl Window {
    /// Images a second.
    pub(crate) fn rate(&self) -> f64 {
        self.images / self.seconds
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.images += other.images;
        self.seconds += other.seconds;
    }

    /// Measures the worker until `until` completes, and returns its output.
    pub(crate) async fn measure<T>(env: &TestEnv, until: impl Future<Output = T>) -> (T, Self) {
        let (before, started_at) = (env.sandbox.ledger().requests, Instant::now());
        let output = until.await;
        let images = f64::from(env.sandbox.ledger().requests - before);
        (output, Self { images, seconds: started_at.elapsed().as_secs_f64() })
    }
}
