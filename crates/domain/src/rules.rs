//! Limits of commands and styles.

use std::ops::RangeInclusive;

/// The largest message body that is parsed, in bytes (4 MiB).
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The most images that one command may request.
pub const MAX_IMAGES: usize = 200;
/// The most characters of one description, after trimming.
pub const MAX_DESCRIPTION_CHARS: usize = 2_000;
/// The most style modifiers in one command.
pub const MAX_STYLE_MODIFIERS: usize = 50;
/// The most characters of the reason of a cancellation, after trimming.
pub const MAX_REASON_CHARS: usize = 200;
/// The most requests that a job may have in flight.
pub const MAX_CONCURRENT: u8 = 6;

/// The values that the image API accepts. The worker passes them in, because this crate does not depend on the API
/// client.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Names of the engines that a command may name.
    pub engines: Vec<&'static str>,
    /// Those of them whose images the fast upscaler does not take.
    pub engines_without_fast_upscaler: Vec<&'static str>,
    /// Names of the style presets.
    pub style_presets: Vec<&'static str>,
    /// The range of `cfg_scale`.
    pub cfg_scale: RangeInclusive<f64>,
    /// The range of `steps`.
    pub steps: RangeInclusive<u8>,
}
