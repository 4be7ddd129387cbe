//! Validation of requests by the rules of the API.

pub(crate) mod upscale;
pub(crate) mod v1;
pub(crate) mod v2beta;

use unicode_script::{Script, UnicodeScript};

use crate::api_error::ApiError;

const STYLE_PRESETS: [&str; 17] = [
    "enhance",
    "anime",
    "photographic",
    "digital-art",
    "comic-book",
    "fantasy-art",
    "line-art",
    "analog-film",
    "neon-punk",
    "isometric",
    "low-poly",
    "origami",
    "modeling-compound",
    "cinematic",
    "3d-model",
    "pixel-art",
    "tile-texture",
];

/// Words that make the sandbox reject a prompt, in place of the API's moderation.
const BLOCKED_WORDS: [&str; 5] = ["gore", "gory", "beheading", "nude", "naked"];

/// A valid image request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageRequest {
    /// The prompts of positive weight, joined by spaces.
    pub(crate) prompt: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) samples: u32,
    /// 0: the sandbox chooses the seed.
    pub(crate) seed: u32,
    pub(crate) format: Format,
    /// Price of one image, in credits.
    pub(crate) credits: f64,
}

/// The file format of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Png,
    Jpeg,
    Webp,
}

impl Format {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// Whether the prompt contains a blocked word, in upper or lower case.
fn is_flagged_by_moderation(prompt: &str) -> bool {
    prompt
        .split(|c: char| !c.is_alphanumeric())
        .any(|word| BLOCKED_WORDS.iter().any(|blocked| word.eq_ignore_ascii_case(blocked)))
}

fn check_language(text: &str) -> Result<(), ApiError> {
    if is_english(text) {
        return Ok(());
    }
    Err(ApiError::new(400, "invalid_language", "English is the only supported language for this service"))
}

/// Whether all letters are Latin; symbols and emoji are allowed.
fn is_english(text: &str) -> bool {
    !text
        .chars()
        .any(|c| c.is_alphabetic() && !matches!(c.script(), Script::Latin | Script::Common | Script::Inherited))
}
