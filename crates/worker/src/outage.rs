//! Waiting for database and storage where a paid result would be lost otherwise.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use store::StoreError;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::error_chain::error_chain;
use crate::storage::StorageError;

/// How long a service may be unavailable before an operation fails; longer than a failover takes.
const MAX_OUTAGE: Duration = Duration::from_mins(3);
/// Bytes of paid images that may wait for the storage before nothing further is paid for.
const MAX_UNSTORED_BYTES: u64 = 64 * 1024 * 1024;

/// Repeats an idempotent operation while the database fails, for at most three minutes. A lost lease is not retried.
pub(crate) async fn retry_store<T, F>(operation: impl Fn() -> F + Send) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
{
    retry("database", |error| matches!(error, StoreError::Database { .. }), operation).await
}

/// Repeats an idempotent operation while the storage fails, for at most three minutes.
pub(crate) async fn retry_storage<T, F>(operation: impl Fn() -> F + Send) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, StorageError>> + Send,
{
    retry("storage", |_| true, operation).await
}

async fn retry<T, E, F>(
    service: &'static str,
    is_outage: impl Fn(&E) -> bool + Send,
    operation: impl Fn() -> F + Send,
) -> Result<T, E>
where
    E: std::error::Error,
    F: Future<Output = Result<T, E>> + Send,
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
        .when(|error| is_outage(error) && Instant::now() < deadline)
        .notify(|error, wait| warn!(error = error_chain(error), ?wait, "{service} unavailable; retrying"))
        .await
}

/// The paid images of this process that are not stored yet. Clones share the count.
#[derive(Clone, Default)]
pub(crate) struct UnstoredImages {
    bytes: watch::Sender<u64>,
}

/// Counts an image until it is dropped.
pub(crate) struct UnstoredImage<'a> {
    images: &'a UnstoredImages,
    bytes: u64,
}

impl UnstoredImages {
    /// Counts an image of this size, until the returned value is dropped.
    pub(crate) fn add(&self, bytes: u64) -> UnstoredImage<'_> {
        self.bytes.send_modify(|total| *total += bytes);
        UnstoredImage { images: self, bytes }
    }

    /// Waits until a further image may be paid for. Cancel safe.
    pub(crate) async fn wait_for_room(&self) {
        let mut total = self.bytes.subscribe();
        if *total.borrow_and_update() >= MAX_UNSTORED_BYTES {
            warn!("images wait for the storage; nothing is paid for until some are stored");
        }
        // The sender lives as long as `self`.
        let _ = total.wait_for(|total| *total < MAX_UNSTORED_BYTES).await;
    }
}

impl Drop for UnstoredImage<'_> {
    fn drop(&mut self) {
        self.images.bytes.send_modify(|total| *total -= self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn nothing_is_paid_for_while_too_many_images_are_not_stored() {
        let images = UnstoredImages::default();
        let first = images.add(MAX_UNSTORED_BYTES - 1);
        assert!(images.wait_for_room().now_or_never().is_some());
        let second = images.add(1);
        let clone = images.clone();
        assert!(clone.wait_for_room().now_or_never().is_none(), "clones share the count");
        drop(second);
        assert!(images.wait_for_room().now_or_never().is_some());
        drop(first);
        assert_eq!(*images.bytes.borrow(), 0);
    }
}
