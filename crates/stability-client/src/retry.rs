//! Retry delays, and the observer of retries, pauses and results.

use std::time::Duration;

use crate::engine::Engine;

/// The waits before each retry, and the time they may take in all.
///
/// A picture that cannot be used (damaged, or not accepted by the caller) is generated once more at most. That uses up a retry, without a wait.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The wait before each retry; its length is the number of retries. A `Retry-After` that is longer wins.
    pub delays: Vec<Duration>,
    /// The time limit of one call: no wait for a retry, a pause or the quota ends later than this after the first request got its turn, and no
    /// unusable picture is generated again after it.
    pub total: Duration,
    /// How much longer a wait may be, by chance, as a share of itself: 0.25 makes 2 s at most 2.5 s. 0 is none.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    /// 2, 5 and 10 seconds, 5 minutes in all, no jitter.
    fn default() -> Self {
        Self { delays: [2, 5, 10].map(Duration::from_secs).to_vec(), total: Duration::from_mins(5), jitter: 0.0 }
    }
}

impl RetryPolicy {
    /// The wait before retry number `retry` (from 0); `None` after the last one.
    pub(crate) fn delay(&self, retry: u32) -> Option<Duration> {
        let delay = self.delays.get(usize::try_from(retry).ok()?)?;
        Some(delay.mul_f64(1.0 + self.jitter.clamp(0.0, 10.0) * fastrand::f64()))
    }
}

/// A request that will be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Requests sent so far for this call.
    pub attempt: u32,
    /// [`crate::Error::kind`] of the last failure.
    pub cause: &'static str,
    /// How long is waited first.
    pub wait: Duration,
}

/// Is told what the client waits for; for metrics. It is called on the way and should return at once.
pub trait Observer: Send + Sync {
    /// A request failed and is sent again after a wait.
    fn retrying(&self, retry: &Retry) {
        let _ = retry;
    }

    /// The account is paused after a 429: nobody sends for this long.
    fn paused(&self, pause: Duration) {
        let _ = pause;
    }

    /// A request has waited so long for its turn and for the quota, and may be sent or has given up.
    fn admitted(&self, wait: Duration) {
        let _ = wait;
    }

    /// A request had its end: an answer or a failure.
    fn answered(&self, exchange: &Exchange) {
        let _ = exchange;
    }

    /// A call had its end: a picture or a failure, after all its requests.
    fn finished(&self, call: &Finished) {
        let _ = call;
    }
}

/// One request and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// What was asked.
    pub engine: Engine,
    /// [`crate::Error::kind`] where it failed.
    pub failure: Option<&'static str>,
    /// Of the answer, where there was one.
    pub status: Option<u16>,
    /// From sending it to the end of its answer.
    pub took: Duration,
}

/// One call of [`crate::Client::generate_with`] and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// What was asked.
    pub engine: Engine,
    /// [`crate::Error::kind`] where it failed.
    pub failure: Option<&'static str>,
    /// Every wait and every request in it; not the time spent in `accept`.
    pub took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_lengthens_a_delay_by_its_share_at_most() {
        let delays = |policy: &RetryPolicy| (0..4).map(|retry| policy.delay(retry)).collect::<Vec<_>>();
        let exact = delays(&RetryPolicy::default());
        assert_eq!(exact, [Some(2), Some(5), Some(10), None].map(|seconds| seconds.map(Duration::from_secs)));
        for _ in 0..100 {
            let jittered = delays(&RetryPolicy { jitter: 0.25, ..RetryPolicy::default() });
            for (wait, delay) in jittered.iter().flatten().zip(exact.iter().flatten()) {
                assert!((*delay..=delay.mul_f64(1.25)).contains(wait), "{wait:?}");
            }
        }
    }
}
