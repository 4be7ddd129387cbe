//! What happened in the last day, for the pages: read from the database in pieces that are kept.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use store::{Activity, Store, StoreError};
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use crate::error_chain::error_chain;

/// Number of hours that are shown.
pub(crate) const HOURS: i64 = 24;
/// How long what was read of the current hour is shown.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// An hour that was read this long after its end does not change any more, but by a purge.
const SETTLED_AFTER: time::Duration = time::Duration::minutes(5);
/// Interval at which the number of requests is read.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Samples that are kept: those of a minute, and the one before.
const SAMPLES: usize = 13;

/// What happened in the last day. One for a process.
#[derive(Default)]
pub(crate) struct ActivityMonitor {
    /// Held while the database is read, so that concurrent pages read it once.
    hours: tokio::sync::Mutex<Hours>,
    samples: Mutex<VecDeque<Sample>>,
}

#[derive(Default)]
struct Hours {
    refreshed_at: Option<Instant>,
    /// By the number of the hour since 1970.
    read: BTreeMap<i64, ReadHour>,
}

struct ReadHour {
    activity: Activity,
    is_settled: bool,
}

/// The number of requests of a day at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    at: Instant,
    day: String,
    requests: i64,
}

impl ActivityMonitor {
    /// What ended in each of the last 24 hours, oldest first; the last one is the current hour. At most five seconds old.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub(crate) async fn last_day(&self, store: &Store) -> Result<Vec<Activity>, StoreError> {
        let mut hours = self.hours.lock().await;
        if hours.refreshed_at.is_none_or(|at| at.elapsed() >= REFRESH_INTERVAL) {
            hours.refresh(store, OffsetDateTime::now_utc()).await?;
            hours.refreshed_at = Some(Instant::now());
        }
        Ok(hours.read.values().map(|hour| hour.activity.clone()).collect())
    }

    /// Requests that all workers have sent within the last minute, extrapolated until a minute was measured; `None` if
    /// nothing was measured yet.
    pub(crate) fn requests_per_minute(&self) -> Option<f64> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        rate_per_minute(&samples)
    }

    /// Reads the number of requests periodically; never returns.
    pub(crate) async fn sample_requests(&self, store: &Store) -> Infallible {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match store.read_requests_today().await {
                Ok((day, requests)) => {
                    let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
                    add_sample(&mut samples, Sample { at: Instant::now(), day, requests });
                }
                Err(error) => {
                    debug!(error = error_chain(&error), "the number of requests cannot be read");
                    self.samples.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
            }
        }
    }
}

impl Hours {
    async fn refresh(&mut self, store: &Store, now: OffsetDateTime) -> Result<(), StoreError> {
        let current = now.unix_timestamp().div_euclid(3_600);
        self.read.retain(|hour, _| (current - HOURS + 1..=current).contains(hour));
        for hour in current - HOURS + 1..=current {
            if self.read.get(&hour).is_some_and(|read| read.is_settled) {
                continue;
            }
            let begin =
                |hour: i64| OffsetDateTime::from_unix_timestamp(hour * 3_600).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let activity = store.read_activity(begin(hour), begin(hour + 1)).await?;
            self.read.insert(hour, ReadHour { activity, is_settled: now > begin(hour + 1) + SETTLED_AFTER });
        }
        Ok(())
    }
}

fn add_sample(samples: &mut VecDeque<Sample>, sample: Sample) {
    // The count begins again with each day.
    samples.retain(|known| known.day == sample.day);
    samples.push_back(sample);
    while samples.len() > SAMPLES {
        samples.pop_front();
    }
}

fn rate_per_minute(samples: &VecDeque<Sample>) -> Option<f64> {
    let (first, last) = (samples.front()?, samples.back()?);
    let seconds = last.at.duration_since(first.at).as_secs_f64();
    let requests = u32::try_from(last.requests - first.requests).unwrap_or_default();
    (seconds > 0.0).then(|| f64::from(requests) * 60.0 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rate_is_that_of_the_last_minute_and_begins_again_at_midnight() {
        let mut samples = VecDeque::new();
        let mut add = |seconds: u64, day: &str, requests: i64, start: Instant| {
            add_sample(
                &mut samples,
                Sample { at: start + Duration::from_secs(seconds), day: day.to_owned(), requests },
            );
            rate_per_minute(&samples)
        };
        let start = Instant::now();
        assert_eq!(add(0, "2026-11-27", 1_000, start), None, "one sample is no rate");
        assert_eq!(add(5, "2026-11-27", 1_010, start), Some(120.0));
        for sample in 2..=20_u64 {
            // From then on nothing is sent.
            add(sample * 5, "2026-11-27", 1_010, start);
        }
        assert_eq!(add(105, "2026-11-27", 1_010, start), Some(0.0));
        assert_eq!(add(110, "2026-11-28", 3, start), None, "the count of another day");
        assert_eq!(add(115, "2026-11-28", 8, start), Some(60.0));
    }
}
