//! The account's rate limit: a number of requests per window, and a lockout when it is exceeded.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(crate) struct Limiter {
    limit: usize,
    window: Duration,
    lockout: Duration,
    admitted_at: VecDeque<Instant>,
    locked_until: Option<Instant>,
}

impl Limiter {
    pub(crate) fn new(limit: u32, window: Duration, lockout: Duration) -> Self {
        Self { limit: limit as usize, window, lockout, admitted_at: VecDeque::new(), locked_until: None }
    }

    /// Returns whether a request at `now` is admitted; a request over the limit starts the lockout.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        if self.locked_until.is_some_and(|until| now < until) {
            return false;
        }
        while self.admitted_at.front().is_some_and(|first| now.duration_since(*first) >= self.window) {
            self.admitted_at.pop_front();
        }
        if self.admitted_at.len() >= self.limit {
            self.locked_until = Some(now + self.lockout);
            return false;
        }
        self.admitted_at.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeding_the_limit_locks_out_for_the_lockout_period() {
        let mut limiter = Limiter::new(2, Duration::from_secs(10), Duration::from_mins(1));
        let start = Instant::now();
        let mut at = |seconds| limiter.admit(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(10), at(11)], [true, true, true, true], "two requests in any 10 seconds");
        assert_eq!([at(12), at(30), at(71), at(72)], [false, false, false, true], "rejected for 60 seconds");
    }
}
