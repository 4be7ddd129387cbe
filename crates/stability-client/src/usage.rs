//! What one call used: requests, images and retries.

use serde::{Deserialize, Serialize};

/// The requests, images and retries that one call used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Number of requests sent.
    pub requests: u32,
    /// Number of requests that were, or may have been, charged.
    pub possibly_charged: u32,
    /// Number of images that were, or may have been, charged: all [`samples`](crate::TextToImage::samples) of each such
    /// request. Times [`Engine::price`](crate::Engine::price), it is what the call cost.
    pub images: u32,
    /// Number of retries used; rate-limit pauses use none.
    pub retries: u32,
}

impl Usage {
    /// Counts a request for this number of images, which has ended.
    pub(crate) fn count_request(&mut self, possibly_charged: bool, images: u32) {
        self.requests += 1;
        if possibly_charged {
            self.possibly_charged += 1;
            self.images += images;
        }
    }

    /// Returns the sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            possibly_charged: self.possibly_charged + other.possibly_charged,
            images: self.images + other.images,
            retries: self.retries + other.retries,
        }
    }
}
