//! What the API takes, and how it refuses the rest.

pub(crate) mod v1;
pub(crate) mod v2beta;

use crate::reply::Refusal;

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

/// Words whose prompts the sandbox refuses, as the API refuses what its moderation flags.
const REFUSED_WORDS: [&str; 5] = ["gore", "gory", "beheading", "nude", "naked"];

/// A request that keeps to the rules.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    /// The prompts of positive weight, joined.
    pub(crate) prompt: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) samples: u32,
    /// 0 lets the sandbox choose.
    pub(crate) seed: u32,
    pub(crate) format: Format,
}

/// How a picture is to be encoded.
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

/// Whether moderation refuses a prompt.
fn is_refused(prompt: &str) -> bool {
    prompt
        .split(|c: char| !c.is_alphanumeric())
        .any(|word| REFUSED_WORDS.iter().any(|refused| word.eq_ignore_ascii_case(refused)))
}

fn check_language(text: &str) -> Result<(), Refusal> {
    if is_english(text) {
        return Ok(());
    }
    Err(Refusal::new(400, "invalid_language", "English is the only supported language for this service"))
}

/// Letters of other scripts are not English; accents, symbols and emoji pass.
fn is_english(text: &str) -> bool {
    !text.chars().any(|c| c.is_alphabetic() && u32::from(c) > 0x024F)
}
