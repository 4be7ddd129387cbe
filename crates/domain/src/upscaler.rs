//! How an image gets its final size.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an image of the API is brought to the size of stored images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Upscaler {
    /// Scaled by the worker with a Lanczos filter, which costs nothing.
    #[default]
    Lanczos,
    /// Enlarged four times by Stability's fast upscaler, for a price, and scaled down by the worker.
    Fast,
}

impl Upscaler {
    /// The name used in commands and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lanczos => "lanczos",
            Self::Fast => "fast",
        }
    }

    /// Whether this is the default, which metadata leaves out.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
