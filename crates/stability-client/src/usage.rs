//! What one call used.

/// Requests and retries of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests that were sent.
    pub requests: u32,
    /// Requests that were, or may have been, charged.
    pub possibly_charged: u32,
    /// Retries that were used up; waiting out a lock-out uses up none.
    pub retries: u32,
}

impl Usage {
    /// Counts a request that has ended.
    pub(crate) fn count_request(&mut self, possibly_charged: bool) {
        self.requests += 1;
        self.possibly_charged += u32::from(possibly_charged);
    }
}
