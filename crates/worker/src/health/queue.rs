//! Statistics of the command queue, as observed by one worker.

use std::time::{Duration, SystemTime};

use broker::QueueState;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

/// Observations of the command queue; empty while the broker is not connected.
#[derive(Debug, Default)]
pub(crate) struct QueueStats {
    counts: Option<QueueCounts>,
    /// When the queue was last seen empty.
    last_empty: Option<Instant>,
    /// When the last received command was published.
    last_taken_published_at: Option<SystemTime>,
}

/// Numbers of messages and consumers, as last read.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct QueueCounts {
    /// Commands that wait on the queue.
    pub(crate) waiting: u32,
    /// Workers that take commands from it.
    pub(crate) consumers: u32,
    pub(crate) dead_letters: u32,
}

impl QueueStats {
    /// Records the number of waiting commands, of consumers and of dead letters.
    pub(crate) fn update(&mut self, waiting: u32, consumers: u32, dead: u32) {
        self.counts = Some(QueueCounts { waiting, consumers, dead_letters: dead });
        if waiting == 0 {
            self.last_empty = Some(Instant::now());
        }
    }

    /// Discards all observations after the connection to the broker was lost.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Records when a received command was published. A time in the future is ignored: the publisher's clock is ahead.
    pub(crate) fn record_taken(&mut self, published: SystemTime) {
        if published <= SystemTime::now() {
            self.last_taken_published_at = Some(published);
        }
    }

    /// The numbers as last read; `None` while the broker is not connected.
    pub(crate) fn counts(&self) -> Option<QueueCounts> {
        self.counts
    }

    /// The state of the command queue; `None` while the broker is not connected.
    pub(crate) fn command_queue(&self) -> Option<QueueState> {
        self.counts.map(|seen| QueueState::Present { messages: seen.waiting, consumers: seen.consumers })
    }

    pub(super) fn waiting(&self) -> Option<f64> {
        self.counts.map(|seen| f64::from(seen.waiting))
    }

    pub(super) fn consumers(&self) -> Option<f64> {
        self.counts.map(|seen| f64::from(seen.consumers))
    }

    pub(super) fn dead_letters(&self) -> Option<f64> {
        self.counts.map(|seen| f64::from(seen.dead_letters))
    }

    /// Upper bound of the age of the oldest waiting command, in seconds; `None` if nothing is known.
    ///
    /// All waiting commands arrived after the queue was last empty, and after the last received command.
    pub(crate) fn oldest_age_seconds(&self) -> Option<f64> {
        if self.counts?.waiting == 0 {
            return Some(0.0);
        }
        let since_empty = self.last_empty.map(|at| at.elapsed());
        let since_taken =
            self.last_taken_published_at.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        let oldest = match (since_empty, since_taken) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some(oldest.as_secs_f64())
    }
}

/// Interval between two reads of the queue.
pub(crate) const QUEUE_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn oldest_age_is_bounded_by_last_empty_queue() {
        let mut queue = QueueStats::default();
        assert_eq!(queue.oldest_age_seconds(), None);
        queue.update(3, 1, 0);
        assert_eq!(queue.oldest_age_seconds(), None, "no empty queue and no received command has been observed");
        queue.update(0, 1, 0);
        assert_eq!(queue.oldest_age_seconds(), Some(0.0));
        tokio::time::advance(Duration::from_secs(7)).await;
        queue.update(2, 1, 4);
        assert_eq!(
            (queue.oldest_age_seconds(), queue.waiting(), queue.dead_letters()),
            (Some(7.0), Some(2.0), Some(4.0))
        );
        queue.record_taken(SystemTime::now() + Duration::from_hours(1));
        assert_eq!(queue.oldest_age_seconds(), Some(7.0), "a time in the future is ignored");
        queue.record_taken(SystemTime::now());
        assert!(
            queue.oldest_age_seconds().is_some_and(|age| age < 5.0),
            "waiting commands were published after the received one"
        );
        queue.reset();
        assert_eq!((queue.oldest_age_seconds(), queue.waiting()), (None, None));
    }
}
