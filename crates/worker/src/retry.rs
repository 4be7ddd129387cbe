//! Waits for an unavailable database, where something paid for would be lost.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use store::StoreError;
use tokio::time::Instant;
use tracing::warn;

use crate::error_chain::error_chain;

/// How long a database may be unavailable before the work in flight is given up: longer than a fail-over takes.
const MAX_OUTAGE: Duration = Duration::from_mins(3);

/// Repeats an idempotent operation while the database fails, for three minutes at most. A lost lease is not repeated.
pub(crate) async fn retry<T, F>(operation: impl Fn() -> F + Send) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
{
    let backoff = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .with_jitter();
    // By the clock: an operation may take long itself.
    let until = Instant::now() + MAX_OUTAGE;
    operation
        .retry(backoff)
        .when(|error| matches!(error, StoreError::Failed { .. }) && Instant::now() < until)
        .notify(|error, wait| warn!(error = error_chain(error), ?wait, "waiting for the database"))
        .await
}
