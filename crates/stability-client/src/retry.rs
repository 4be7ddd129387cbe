//! When a failed request is sent again.

use std::time::Duration;

use backon::BackoffBuilder;

/// The waits before each retry, and the time they may take in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The wait before each retry; its length is the number of retries.
    pub delays: Vec<Duration>,
    /// No wait for a retry, a pause or the quota ends later than this after the first request got its turn.
    pub total: Duration,
}

impl Default for RetryPolicy {
    /// 2, 5 and 10 seconds, 5 minutes in all.
    fn default() -> Self {
        Self { delays: [2, 5, 10].map(Duration::from_secs).to_vec(), total: Duration::from_mins(5) }
    }
}

impl BackoffBuilder for RetryPolicy {
    type Backoff = std::vec::IntoIter<Duration>;

    fn build(self) -> Self::Backoff {
        self.delays.into_iter()
    }
}
