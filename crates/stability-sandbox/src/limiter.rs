//! The account's limit: so many requests in a window, and a lock-out for whoever goes over it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(crate) struct Limiter {
    limit: usize,
    window: Duration,
    lockout: Duration,
    seen: VecDeque<Instant>,
    locked_until: Option<Instant>,
}

impl Limiter {
    pub(crate) fn new(limit: u32, window: Duration, lockout: Duration) -> Self {
        Self { limit: limit as usize, window, lockout, seen: VecDeque::new(), locked_until: None }
    }

    /// Whether a request at `now` is served; one over the limit starts the lock-out.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        if self.locked_until.is_some_and(|until| now < until) {
            return false;
        }
        while self.seen.front().is_some_and(|first| now.duration_since(*first) >= self.window) {
            self.seen.pop_front();
        }
        if self.seen.len() >= self.limit {
            self.locked_until = Some(now + self.lockout);
            return false;
        }
        self.seen.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_over_the_limit_locks_out_until_the_lockout_ends() {
        let mut limiter = Limiter::new(2, Duration::from_secs(10), Duration::from_mins(1));
        let start = Instant::now();
        let mut at = |seconds| limiter.admit(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(10), at(11)], [true, true, true, true], "two in any ten seconds");
        assert_eq!([at(12), at(30), at(71), at(72)], [false, false, false, true], "a minute from the one too many");
    }
}
