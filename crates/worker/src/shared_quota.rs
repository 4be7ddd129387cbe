//! The account's quota, for all workers that share the database: whose request is next stands in one row of it.
//!
//! Each process reserves one place at a time, for whoever of it waits longest, so that all processes get through in the order they ask and nobody wakes for
//! nothing. Its own limiter paces it besides.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use stability_client::{GovernorQuota, Quota, QuotaUnavailable};
use store::{Pace, Store};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use crate::error_chain::error_chain;

/// A part of the rate is left unused, in percent: the API counts requests as they arrive, which is not quite as they were sent.
const MARGIN_PERCENT: u32 = 2;
/// Another part, in percent of the requests of a minute, may come at once after a time without any.
const BURST_PERCENT: u32 = 1;
/// A place that could not be used for so long is not used any more.
const STALE: Duration = Duration::from_secs(1);
/// Between two tries to ask a database that is away.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// The quota of all workers together.
pub struct SharedQuota {
    store: Store,
    pace: Pace,
    own: GovernorQuota,
    /// The place that was reserved last, where it has not been used: whoever waited for it may have gone away.
    reserved: Mutex<Option<Instant>>,
}

impl SharedQuota {
    /// `per_minute` requests a minute for all who share the store.
    pub fn new(store: Store, per_minute: NonZeroU32) -> Self {
        let burst = per_minute.min(NonZeroU32::new(10).expect("not 0"));
        Self { store, pace: pace(per_minute), own: GovernorQuota::new(per_minute, burst), reserved: Mutex::new(None) }
    }

    /// The next place, and when it may be used. A database that is away is waited for: nothing is sent without it.
    async fn place(&self) -> Instant {
        loop {
            let asked = Instant::now();
            match self.store.reserve_request(self.pace).await {
                // Measured from before the answer, so that its way back makes nobody late.
                Ok(wait) => return asked + wait,
                Err(error) => {
                    warn!(error = error_chain(&error), "the quota cannot be asked; nothing is sent meanwhile");
                    sleep(DATABASE_PAUSE).await;
                }
            }
        }
    }
}

/// What the rate comes to.
fn pace(per_minute: NonZeroU32) -> Pace {
    let interval = Duration::from_mins(1) / per_minute.get() * 100 / (100 - MARGIN_PERCENT);
    Pace { interval, tolerance: interval * (per_minute.get() * BURST_PERCENT / 100) }
}

#[async_trait]
impl Quota for SharedQuota {
    async fn acquire(&self) -> Result<(), QuotaUnavailable> {
        // Whoever waits longest is next.
        let mut reserved = self.reserved.lock().await;
        self.own.acquire().await?;
        loop {
            let place = match *reserved {
                Some(place) => place,
                None => *reserved.insert(self.place().await),
            };
            let at_once = place <= Instant::now();
            sleep_until(place).await;
            if place.elapsed() > STALE {
                *reserved = None;
                continue;
            }
            // Somebody may have met a lock-out while this one waited.
            let paused = if at_once { Ok(Duration::ZERO) } else { self.store.requests_paused_for().await };
            match paused {
                Ok(Duration::ZERO) => {
                    *reserved = None;
                    return Ok(());
                }
                // Another place comes after the pause.
                Ok(_) => *reserved = None,
                Err(error) => {
                    warn!(error = error_chain(&error), "the quota cannot be asked; nothing is sent meanwhile");
                    sleep(DATABASE_PAUSE).await;
                }
            }
        }
    }

    async fn pause(&self, until: Instant) {
        self.own.pause(until).await;
        let length = until.saturating_duration_since(Instant::now());
        if let Err(error) = self.store.pause_requests(length, self.pace).await {
            warn!(error = error_chain(&error), ?length, "the other workers do not know of a pause");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_leaves_two_percent_and_lets_one_come_at_once() {
        let pace = pace(NonZeroU32::new(150).expect("not 0"));
        assert_eq!(pace.interval.as_millis(), 408);
        assert_eq!(pace.tolerance, pace.interval);
        assert_eq!(super::pace(NonZeroU32::MIN).tolerance, Duration::ZERO);
    }
}
