//! Counts of the requests that the sandbox received and of the images that it charged for.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Requests, and images charged for, since the sandbox started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Requests to generate or upscale images, including rejected ones.
    pub requests: u32,
    /// Generated, and therefore charged, images, including filtered and damaged ones.
    pub charged: u32,
    /// Upscaled, and therefore charged, images.
    pub upscaled: u32,
    /// Requests to upscale an image whose caller disconnected before its prompt was known, or whose form was broken.
    pub incomplete: u32,
    /// Image requests in flight now.
    pub in_flight: u32,
    /// Highest number of image requests in flight at the same time.
    pub max_in_flight: u32,
    /// Answered image requests by HTTP status.
    pub by_status: BTreeMap<u16, u32>,
    /// Requests and charged images by prompt.
    pub by_prompt: BTreeMap<String, PromptCounts>,
}

/// An image request in the request log.
#[derive(Debug, Clone, Copy)]
pub struct RequestRecord {
    /// When the request arrived.
    pub received_at: Instant,
    /// HTTP status of the response; `None` while the request is in flight, and if the caller disconnected.
    pub status: Option<u16>,
}

/// Requests and charged images of one prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptCounts {
    /// Requests for an image that passed validation.
    pub requests: u32,
    /// Images that were generated and charged.
    pub charged: u32,
    /// Valid requests to upscale an image of this prompt.
    pub upscale_requests: u32,
    /// Images that were upscaled and charged.
    pub upscaled: u32,
}

impl Ledger {
    /// Sums the counts of all prompts that contain `text`.
    pub fn prompt_counts(&self, text: &str) -> PromptCounts {
        let matching = self.by_prompt.iter().filter(|(prompt, _)| prompt.contains(text));
        matching.fold(PromptCounts::default(), |sum, (_, counts)| PromptCounts {
            requests: sum.requests + counts.requests,
            charged: sum.charged + counts.charged,
            upscale_requests: sum.upscale_requests + counts.upscale_requests,
            upscaled: sum.upscaled + counts.upscaled,
        })
    }
}
