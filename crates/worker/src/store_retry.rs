//! Retries store operations while the database is unavailable, where a paid result would be lost otherwise.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use store::StoreError;
use tokio::time::Instant;
use tracing::warn;

use crate::error_chain::error_chain;

/// How long a database may be unavailable before an operation fails; longer than a failover takes.
const MAX_OUTAGE: Duration = Duration::from_mins(3);

/// Repeats an idempotent operation while the database fails, for at most three minutes. A lost lease is not retried.
pub(crate) async fn retry_store<T, F>(operation: impl Fn() -> F + Send) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
{
    let backoff = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .with_jitter();
    // Measured as elapsed time, not as a number of attempts: an operation itself may take long.
    let deadline = Instant::now() + MAX_OUTAGE;
    operation
        .retry(backoff)
        .when(|error| matches!(error, StoreError::Database { .. }) && Instant::now() < deadline)
        .notify(|error, wait| warn!(error = error_chain(error), ?wait, "database unavailable; retrying"))
        .await
}
