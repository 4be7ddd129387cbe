//! The specification of stored images.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most characters of a codec's error that are kept.
const MAX_ERROR_CHARS: usize = 200;

/// The formats of stored images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The default.
    Png,
    /// Used if a PNG would be too large.
    Jpeg,
}

impl ImageFormat {
    /// The name used in rows and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
        }
    }

    /// Parses a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Png, Self::Jpeg].into_iter().find(|format| format.as_str() == name)
    }

    /// The file name extension, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The required size of stored images, in pixels and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSpec {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Exclusive upper limit of the file size, in bytes.
    pub max_bytes: u64,
}

impl Default for ImageSpec {
    /// 1920x1080, below 10 MiB.
    fn default() -> Self {
        Self { width: 1920, height: 1080, max_bytes: 10 * 1024 * 1024 }
    }
}

/// The measured properties of an encoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageProperties {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `None` if it is neither PNG nor JPEG.
    pub format: Option<ImageFormat>,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
}

/// Why an image is rejected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImageDefect {
    /// Its width or height differs from the specification.
    #[error("wrong resolution: {width}x{height}, expected {expected_width}x{expected_height}")]
    WrongResolution {
        /// Measured width, in pixels.
        width: u32,
        /// Measured height, in pixels.
        height: u32,
        /// Specified width, in pixels.
        expected_width: u32,
        /// Specified height, in pixels.
        expected_height: u32,
    },
    /// It is neither PNG nor JPEG.
    #[error("wrong format: expected PNG or JPEG")]
    WrongFormat,
    /// The file is too large.
    #[error("file too large: {size_bytes} bytes, expected less than {max_bytes}")]
    TooLarge {
        /// Measured size, in bytes.
        size_bytes: u64,
        /// Exclusive upper limit, in bytes.
        max_bytes: u64,
    },
    /// It cannot be decoded.
    #[error("not a readable image: {0}")]
    Undecodable(String),
    /// It has a single colour.
    #[error("image of a single colour: contrast {contrast:.1}, expected at least {min_contrast:.1}")]
    OneColour {
        /// Standard deviation of the channel that varies most, 0 to 127.5.
        contrast: f64,
        /// Required minimum.
        min_contrast: f64,
    },
    /// It is too blurred.
    #[error("blurred image: sharpness {sharpness:.1}, expected at least {min_sharpness:.1}")]
    Blurred {
        /// Variance of the Laplacian of the brightness.
        sharpness: f64,
        /// Required minimum.
        min_sharpness: f64,
    },
}

impl ImageDefect {
    /// Wraps a codec's error as one line of at most 200 characters without control characters.
    ///
    /// A codec's error may quote the content of the file; the limits ensure that the text can be stored and logged.
    pub fn from_codec_error(error: &dyn fmt::Display) -> Self {
        let text: String = error.to_string().trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self::Undecodable(text.chars().take(MAX_ERROR_CHARS).collect())
    }
}

impl ImageSpec {
    /// Checks an encoded image against this specification.
    ///
    /// # Errors
    ///
    /// The first [`ImageDefect`] found, in this order: resolution, format, size in bytes.
    pub fn check(&self, properties: &ImageProperties) -> Result<(), ImageDefect> {
        if (properties.width, properties.height) != (self.width, self.height) {
            return Err(ImageDefect::WrongResolution {
                width: properties.width,
                height: properties.height,
                expected_width: self.width,
                expected_height: self.height,
            });
        }
        if properties.format.is_none() {
            return Err(ImageDefect::WrongFormat);
        }
        if properties.size_bytes >= self.max_bytes {
            return Err(ImageDefect::TooLarge { size_bytes: properties.size_bytes, max_bytes: self.max_bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_image_is_checked_for_resolution_format_and_size() {
        let good = ImageProperties { width: 1920, height: 1080, format: Some(ImageFormat::Png), size_bytes: 1 };
        let check = |measured: ImageProperties, expected: Option<&str>| {
            let found = ImageSpec::default().check(&measured).err().map(|defect| defect.to_string());
            assert_eq!(found.as_deref(), expected, "{measured:?}");
        };
        check(good, None);
        check(ImageProperties { format: Some(ImageFormat::Jpeg), ..good }, None);
        check(
            ImageProperties { width: 1280, height: 720, ..good },
            Some("wrong resolution: 1280x720, expected 1920x1080"),
        );
        check(ImageProperties { format: None, ..good }, Some("wrong format: expected PNG or JPEG"));
        check(ImageProperties { size_bytes: 10 * 1024 * 1024 - 1, ..good }, None);
        check(
            ImageProperties { size_bytes: 10 * 1024 * 1024, ..good },
            Some("file too large: 10485760 bytes, expected less than 10485760"),
        );
    }
}
