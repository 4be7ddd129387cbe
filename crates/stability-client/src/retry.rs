//! Retry delays, and the observer of retries, pauses and results.

use std::time::Duration;

use crate::operation::Operation;

/// How often and when failed requests are retried, and the time limit of a call.
///
/// An unusable image (damaged, or rejected by the caller) is generated once more at most. That uses one retry, without
/// its delay.
///
/// ```
/// use std::time::Duration;
/// use stability_client::RetryPolicy;
///
/// let policy = RetryPolicy::default().delays([1, 10].map(Duration::from_secs)).jitter(0.25);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    delays: Vec<Duration>,
    pub(crate) total_timeout: Duration,
    jitter: f64,
}

impl Default for RetryPolicy {
    /// Delays of 2, 5 and 10 seconds, a time limit of 5 minutes, no jitter.
    fn default() -> Self {
        Self {
            delays: [2, 5, 10].map(Duration::from_secs).to_vec(),
            total_timeout: Duration::from_mins(5),
            jitter: 0.0,
        }
    }
}

impl RetryPolicy {
    /// Returns a policy without retries.
    #[must_use]
    pub fn none() -> Self {
        Self::default().delays([])
    }

    /// Sets the delay before each retry; their number is the number of retries.
    ///
    /// A longer `Retry-After` takes precedence.
    #[must_use]
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.delays = delays.into_iter().collect();
        self
    }

    /// Sets the time limit of one call, measured from the moment its first request gets its turn.
    ///
    /// No wait for a retry, a rate-limit pause or the quota ends later, and no unusable image is generated again later.
    /// Waits for a turn are not limited, and a request in flight is completed.
    #[must_use]
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = timeout;
        self
    }

    /// Sets the maximum random extension of each delay, as a fraction of it: 0 to 10, where 0 disables jitter.
    ///
    /// With 0.25, a delay of 2 s lasts 2 to 2.5 s.
    #[must_use]
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction.clamp(0.0, 10.0);
        self
    }

    /// The delay before retry number `retry` (from 0), with jitter; `None` after the last one.
    pub(crate) fn delay(&self, retry: u32) -> Option<Duration> {
        let delay = self.delays.get(usize::try_from(retry).ok()?)?;
        Some(delay.mul_f64(1.0 + self.jitter * fastrand::f64()))
    }
}

/// A retry that a call is about to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Number of requests sent so far in this call.
    pub attempt: u32,
    /// [`crate::Error::kind`] of the last failure.
    pub error_kind: &'static str,
    /// How long the call waits before the retry.
    pub wait: Duration,
}

/// Receives the events of a client, for example to record metrics.
///
/// The methods are called synchronously while a call runs and should return at once. By default they do nothing.
pub trait Observer: Send + Sync {
    /// A request failed and is retried after a wait. Not called for rate-limit pauses, which use no retry.
    fn on_retry(&self, retry: &Retry) {
        let _ = retry;
    }

    /// All requests are paused for this long after a 429 response.
    fn on_pause(&self, pause: Duration) {
        let _ = pause;
    }

    /// A request waited this long for its turn and the quota, whether it was then admitted or not.
    fn on_admission_wait(&self, wait: Duration) {
        let _ = wait;
    }

    /// A request ended, with a response or a failure.
    fn on_request_end(&self, request: &RequestOutcome<'_>) {
        let _ = request;
    }

    /// A call ended after all its requests, with an accepted result or a failure.
    fn on_call_end(&self, call: &CallOutcome<'_>) {
        let _ = call;
    }
}

/// The outcome of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestOutcome<'a> {
    /// What the request asked for.
    pub operation: Operation,
    /// Name of the engine, or `fast` for the fast upscaler.
    pub model: &'a str,
    /// [`crate::Error::kind`] of the failure; `None` on success.
    pub error_kind: Option<&'static str>,
    /// HTTP status code; `None` if there was no response.
    pub status: Option<u16>,
    /// Time from sending the request to the end of its response, or to its failure.
    pub duration: Duration,
}

/// The outcome of one call, with all its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOutcome<'a> {
    /// What the call asked for.
    pub operation: Operation,
    /// Name of the engine, or `fast` for the fast upscaler.
    pub model: &'a str,
    /// [`crate::Error::kind`] of the failure; `None` on success.
    pub error_kind: Option<&'static str>,
    /// Duration of the call with all its waits and requests, but without the time spent in `accept`.
    pub duration: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_lengthens_delays_within_its_bound() {
        let delays = |policy: &RetryPolicy| (0..4).map(|retry| policy.delay(retry)).collect::<Vec<_>>();
        let exact = delays(&RetryPolicy::default());
        assert_eq!(exact, [Some(2), Some(5), Some(10), None].map(|seconds| seconds.map(Duration::from_secs)));
        for _ in 0..100 {
            let jittered = delays(&RetryPolicy::default().jitter(0.25));
            for (wait, delay) in jittered.iter().flatten().zip(exact.iter().flatten()) {
                assert!((*delay..=delay.mul_f64(1.25)).contains(wait), "{wait:?}");
            }
        }
    }
}
