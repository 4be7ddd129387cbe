//! Counting what a call costs.

use std::sync::atomic::{AtomicU32, Ordering};

/// What a picture or a failure cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests that were sent.
    pub requests: u32,
    /// Those of them that the account was or may have been charged for.
    pub maybe_charged: u32,
    /// Retries that were used up; waiting out a lock-out uses up none.
    pub retries: u32,
}

/// Counts the requests of one call.
#[derive(Default)]
pub(crate) struct Meter {
    requests: AtomicU32,
    maybe_charged: AtomicU32,
    retries: AtomicU32,
}

impl Meter {
    /// Counts a request. A good status was charged, whatever its body turns out to be.
    pub(crate) fn count(&self, maybe_charged: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.maybe_charged.fetch_add(u32::from(maybe_charged), Ordering::Relaxed);
    }

    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn spent(&self) -> Spent {
        Spent {
            requests: self.requests(),
            maybe_charged: self.maybe_charged.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}
