//! The queue of commands, as one worker sees it.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// What is known of the queue. Nothing while the broker is away.
#[derive(Debug, Default)]
pub(crate) struct QueueWatch {
    seen: Option<Seen>,
    /// When none waited.
    empty_at: Option<Instant>,
    /// When the command that was taken last had been published.
    taken: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    waiting: u32,
    consumers: u32,
    dead: u32,
}

impl QueueWatch {
    /// The broker has told how many wait, how many take them, and how many lie in the dead letters.
    pub(crate) fn saw(&mut self, waiting: u32, consumers: u32, dead: u32) {
        self.seen = Some(Seen { waiting, consumers, dead });
        if waiting == 0 {
            self.empty_at = Some(Instant::now());
        }
    }

    /// The broker is away.
    pub(crate) fn lost(&mut self) {
        *self = Self::default();
    }

    /// A command was taken that had been published then. A time that is still to come is no time.
    pub(crate) fn took(&mut self, published: SystemTime) {
        if published <= SystemTime::now() {
            self.taken = Some(published);
        }
    }

    pub(super) fn waiting(&self) -> Option<f64> {
        self.seen.map(|seen| f64::from(seen.waiting))
    }

    pub(super) fn consumers(&self) -> Option<f64> {
        self.seen.map(|seen| f64::from(seen.consumers))
    }

    pub(super) fn dead(&self) -> Option<f64> {
        self.seen.map(|seen| f64::from(seen.dead))
    }

    /// What waits came after the queue was empty, and after what was taken.
    pub(super) fn oldest_s(&self) -> Option<f64> {
        if self.seen?.waiting == 0 {
            return Some(0.0);
        }
        let since_empty = self.empty_at.map(|at| at.elapsed());
        let since_taken = self.taken.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        let oldest = match (since_empty, since_taken) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some(oldest.as_secs_f64())
    }
}

/// Between two looks at the queue.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_as_old_as_the_last_empty_queue_at_most() {
        let mut queue = QueueWatch::default();
        assert_eq!(queue.oldest_s(), None);
        queue.saw(3, 1, 0);
        assert_eq!(queue.oldest_s(), None, "neither is known");
        queue.saw(0, 1, 0);
        assert_eq!(queue.oldest_s(), Some(0.0));
        tokio::time::advance(Duration::from_secs(7)).await;
        queue.saw(2, 1, 4);
        assert_eq!((queue.oldest_s(), queue.waiting(), queue.dead()), (Some(7.0), Some(2.0), Some(4.0)));
        queue.took(SystemTime::now() + Duration::from_hours(1));
        assert_eq!(queue.oldest_s(), Some(7.0), "a clock that is ahead tells nothing");
        queue.took(SystemTime::now());
        assert!(queue.oldest_s().is_some_and(|age| age < 5.0), "what waits came after what was taken");
        queue.lost();
        assert_eq!((queue.oldest_s(), queue.waiting()), (None, None));
    }
}
