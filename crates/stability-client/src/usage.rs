//! What one call used: requests and retries.

/// The requests and retries that one call used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of requests sent.
    pub requests: u32,
    /// Number of requests that were, or may have been, charged.
    pub possibly_charged: u32,
    /// Number of retries used; rate-limit pauses use none.
    pub retries: u32,
}

impl Usage {
    /// Counts a request that has ended.
    pub(crate) fn count_request(&mut self, possibly_charged: bool) {
        self.requests += 1;
        self.possibly_charged += u32::from(possibly_charged);
    }
}
