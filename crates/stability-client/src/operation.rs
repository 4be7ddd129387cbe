//! What a call asks the API to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Value of the OpenTelemetry attribute `gen_ai.provider.name` for Stability AI.
pub const GEN_AI_PROVIDER_NAME: &str = "stability_ai";

/// What a call asks the API to do. Each is paid for by request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Operation {
    /// Generate images from a text: [`Client::generate`](crate::Client::generate).
    #[serde(rename = "generate_content")]
    TextToImage,
    /// Make an image four times as wide and as high: [`Client::upscale`](crate::Client::upscale).
    #[serde(rename = "upscale")]
    Upscale,
}

impl Operation {
    /// Returns the value of the OpenTelemetry attribute `gen_ai.operation.name`.
    ///
    /// The semantic conventions have no operation for upscaling; `upscale` follows their form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TextToImage => "generate_content",
            Self::Upscale => "upscale",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
