//! The quota of requests per minute, and rate-limit pauses.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota as Rate, RateLimiter};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// The quota could not be consulted, or granted no permit in time; the request must not be sent.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the quota is unavailable: {0}")]
pub struct QuotaUnavailable(pub String);

/// Grants permission to send requests, one at a time.
///
/// Implement it to share one quota among several processes.
#[async_trait]
pub trait Quota: Send + Sync {
    /// Waits until one request may be sent.
    ///
    /// Cancel-safe: a future that is dropped while it waits uses no permit.
    ///
    /// # Errors
    ///
    /// [`QuotaUnavailable`] if it cannot be determined whether a request may be sent.
    async fn acquire(&self) -> Result<(), QuotaUnavailable>;

    /// Grants no permit before `until`. A pause that ends later stays in effect.
    async fn pause(&self, until: Instant);
}

/// A quota local to one process, by the generic cell rate algorithm.
///
/// Waiters are served in the order of their arrival.
pub struct GovernorQuota {
    limiter: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>,
    clock: TokioClock,
    fifo: Mutex<()>,
    paused_until: watch::Sender<Option<Instant>>,
}

impl fmt::Debug for GovernorQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GovernorQuota").finish_non_exhaustive()
    }
}

impl GovernorQuota {
    /// Creates a quota of `per_minute` requests per minute, with bursts of at most `burst` requests.
    pub fn new(per_minute: NonZeroU32, burst: NonZeroU32) -> Self {
        let clock = TokioClock { origin: Instant::now() };
        Self {
            limiter: RateLimiter::direct_with_clock(Rate::per_minute(per_minute).allow_burst(burst), clock.clone()),
            clock,
            fifo: Mutex::new(()),
            paused_until: watch::Sender::new(None),
        }
    }

    async fn wait_out_pause(&self) {
        loop {
            let until = *self.paused_until.borrow();
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }
}

impl Default for GovernorQuota {
    /// 150 requests per minute, bursts of at most 10.
    fn default() -> Self {
        Self::new(NonZeroU32::new(150).expect("not 0"), NonZeroU32::new(10).expect("not 0"))
    }
}

#[async_trait]
impl Quota for GovernorQuota {
    async fn acquire(&self) -> Result<(), QuotaUnavailable> {
        let _turn = self.fifo.lock().await;
        loop {
            self.wait_out_pause().await;
            match self.limiter.check() {
                Ok(()) => return Ok(()),
                Err(not_until) => sleep(not_until.wait_time_from(self.clock.now())).await,
            }
        }
    }

    async fn pause(&self, until: Instant) {
        self.paused_until.send_modify(|paused| *paused = (*paused).max(Some(until)));
    }
}

/// A clock for `governor` that follows tokio's time, which tests can pause.
#[derive(Debug, Clone)]
struct TokioClock {
    origin: Instant,
}

impl Clock for TokioClock {
    /// Time since the clock was created.
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn quota(per_minute: u32, burst: u32) -> GovernorQuota {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        GovernorQuota::new(number(per_minute), number(burst))
    }

    #[tokio::test(start_paused = true)]
    async fn rate_limit_holds_over_an_hour() {
        let quota = quota(150, 10);
        let start = Instant::now();
        let mut sent = 0_u32;
        while start.elapsed() < Duration::from_hours(1) {
            quota.acquire().await.expect("a local quota is always available");
            sent += 1;
        }
        assert!((9_000 - 180..=9_000 + 180).contains(&sent), "{sent} permits in an hour instead of about 9000");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_burst_are_spaced() {
        let quota = quota(60, 3);
        let start = Instant::now();
        let mut seconds = Vec::new();
        for _ in 0..6 {
            quota.acquire().await.expect("a local quota is always available");
            seconds.push(start.elapsed().as_secs_f64().round());
        }
        assert_eq!(seconds, [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_end_of_the_longest_pause() {
        let quota = Arc::new(quota(6_000, 100));
        let start = Instant::now();
        quota.pause(start + Duration::from_mins(1)).await;
        quota.pause(start + Duration::from_secs(1)).await;
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let quota = quota.clone();
            waiters.spawn(async move { quota.acquire().await.map(|()| Instant::now()) });
        }
        for acquired_at in waiters.join_all().await {
            assert!(acquired_at.expect("a local quota is always available") >= start + Duration::from_mins(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_waiter_uses_no_permit() {
        let quota = quota(1, 1);
        quota.acquire().await.expect("the first permit is granted at once");
        let start = Instant::now();
        assert!(
            tokio::time::timeout(Duration::from_secs(30), quota.acquire()).await.is_err(),
            "the second permit is not granted within 30 s"
        );
        quota.acquire().await.expect("a permit is granted after a minute");
        assert!(start.elapsed() <= Duration::from_secs(61), "{:?}", start.elapsed());
    }
}
