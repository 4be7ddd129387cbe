//! A database that is away is waited for where something paid for would be lost.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;
use tracing::warn;

use super::Workshop;
use crate::causes;
use crate::store::StoreError;

/// How long a database may be away before what is in flight is given up: the length of a fail-over, and some.
const PATIENCE: Duration = Duration::from_mins(3);

impl Workshop {
    /// Does what can be done twice, again and again while the database fails. A lost lease is no such failure.
    pub(super) async fn patiently<T, F>(&self, attempt: impl Fn() -> F + Send) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter();
        // By the clock: an attempt may take long itself.
        let until = Instant::now() + PATIENCE;
        attempt
            .retry(backoff)
            .when(|error| matches!(error, StoreError::Failed { .. }) && Instant::now() < until)
            .notify(|error, wait| warn!(error = causes::joined(error), ?wait, "waiting for the database"))
            .await
    }
}
