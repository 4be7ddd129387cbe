//! What the sandbox was asked, and what would have been paid for.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The sandbox's counts since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Requests for pictures, refused ones included.
    pub requests: u32,
    /// Pictures that were made, and so charged, withheld and damaged ones included.
    pub charged: u32,
    /// Requests in flight at this moment.
    pub in_flight: u32,
    /// The most requests that were in flight at once.
    pub max_in_flight: u32,
    /// Requests by the status they were answered with.
    pub by_status: BTreeMap<u16, u32>,
    /// The same, for each prompt.
    pub by_prompt: BTreeMap<String, Asked>,
}

/// A request for pictures.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// When it came.
    pub at: Instant,
    /// What it was answered with; `None` while it is in flight, and where the caller hung up.
    pub status: Option<u16>,
}

/// What was asked with one prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Requests.
    pub requests: u32,
    /// Pictures made.
    pub charged: u32,
}

impl Ledger {
    /// What was asked with prompts that hold `text`.
    pub fn asked(&self, text: &str) -> Asked {
        let matching = self.by_prompt.iter().filter(|(prompt, _)| prompt.contains(text));
        matching.fold(Asked::default(), |sum, (_, asked)| Asked {
            requests: sum.requests + asked.requests,
            charged: sum.charged + asked.charged,
        })
    }
}
