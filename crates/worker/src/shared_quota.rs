//! The account's request quota, shared by all workers through one database row.
//!
//! Each process reserves one slot at a time, for its request that has waited longest. The processes are therefore
//! served in the order in which they ask, and no request wakes up without a slot. A limiter in each process paces its
//! requests in addition.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use stability_client::{GovernorQuota, Quota, QuotaUnavailable};
use store::{Pace, Store};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use crate::error_chain::error_chain;

/// Unused share of the rate, in percent: the API counts requests as they arrive, and their spacing then differs
/// slightly from the spacing at which they were sent.
const MARGIN_PERCENT: u32 = 2;
/// Requests that may be sent at once after an idle time, in percent of one minute's requests.
const BURST_PERCENT: u32 = 1;
/// A reserved slot that is overdue by more than this is discarded.
const MAX_SLOT_AGE: Duration = Duration::from_secs(1);
/// Delay before an unavailable database is queried again.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The quota that all workers share.
pub struct SharedQuota {
    store: Store,
    pace: Pace,
    local_quota: GovernorQuota,
    /// The reserved slot that is not used yet. The request that waited for it may have been cancelled; the next request
    /// then takes it over.
    reserved_slot: Mutex<Option<Instant>>,
}

impl SharedQuota {
    /// Creates a quota of `per_minute` requests a minute for all workers that share the database.
    pub fn new(store: Store, per_minute: NonZeroU32) -> Self {
        let burst = per_minute.min(NonZeroU32::new(10).expect("not 0"));
        Self {
            store,
            pace: pace_for_rate(per_minute),
            local_quota: GovernorQuota::new(per_minute, burst),
            reserved_slot: Mutex::new(None),
        }
    }

    /// Reserves the next slot and returns the time from which it may be used. Waits while the database is unavailable:
    /// no request is sent without a slot.
    async fn reserve_slot(&self) -> Instant {
        loop {
            let started_at = Instant::now();
            match self.store.reserve_request_slot(self.pace).await {
                // Measured from before the query, so that the response time of the database does not delay the slot.
                Ok(wait) => return started_at + wait,
                Err(error) => {
                    warn!(error = error_chain(&error), "shared quota unavailable; no request is sent meanwhile");
                    sleep(DATABASE_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Converts a rate into the interval and the burst tolerance of the shared quota.
fn pace_for_rate(per_minute: NonZeroU32) -> Pace {
    let interval = Duration::from_mins(1) / per_minute.get() * 100 / (100 - MARGIN_PERCENT);
    Pace { interval, tolerance: interval * (per_minute.get() * BURST_PERCENT / 100) }
}

#[async_trait]
impl Quota for SharedQuota {
    async fn acquire(&self) -> Result<(), QuotaUnavailable> {
        // The lock is fair: the request that has waited longest is next.
        let mut reserved = self.reserved_slot.lock().await;
        self.local_quota.acquire().await?;
        loop {
            let slot = match *reserved {
                Some(slot) => slot,
                None => *reserved.insert(self.reserve_slot().await),
            };
            let immediate = slot <= Instant::now();
            sleep_until(slot).await;
            if slot.elapsed() > MAX_SLOT_AGE {
                *reserved = None;
                continue;
            }
            // Another worker may have set a rate-limit pause during the wait.
            let pause = if immediate { Ok(Duration::ZERO) } else { self.store.read_remaining_pause().await };
            match pause {
                Ok(Duration::ZERO) => {
                    *reserved = None;
                    return Ok(());
                }
                // Reserve another slot, after the pause.
                Ok(_) => *reserved = None,
                Err(error) => {
                    warn!(error = error_chain(&error), "shared quota unavailable; no request is sent meanwhile");
                    sleep(DATABASE_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn pause(&self, until: Instant) {
        self.local_quota.pause(until).await;
        let length = until.saturating_duration_since(Instant::now());
        if let Err(error) = self.store.pause_requests(length, self.pace).await {
            warn!(error = error_chain(&error), ?length, "rate-limit pause could not be shared with the other workers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_keeps_two_percent_margin_and_allows_burst() {
        let pace = pace_for_rate(NonZeroU32::new(150).expect("not 0"));
        assert_eq!(pace.interval.as_millis(), 408);
        assert_eq!(pace.tolerance, pace.interval);
        assert_eq!(pace_for_rate(NonZeroU32::MIN).tolerance, Duration::ZERO);
    }
}
