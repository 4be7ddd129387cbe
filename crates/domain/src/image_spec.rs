//! What every stored image must be.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of a codec's error is kept.
const MAX_ERROR_CHARS: usize = 200;

/// The encodings a stored image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The normal case.
    Png,
    /// Where a PNG would be too large.
    Jpeg,
}

impl ImageFormat {
    /// The name in rows and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
        }
    }

    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Png, Self::Jpeg].into_iter().find(|format| format.as_str() == name)
    }

    /// The ending of a file, without the dot.
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

/// The size of every stored image, in pixels and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSpec {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// A stored file is smaller than this many bytes.
    pub max_bytes: u64,
}

impl Default for ImageSpec {
    /// 1920x1080, below 10 MiB.
    fn default() -> Self {
        Self { width: 1920, height: 1080, max_bytes: 10 * 1024 * 1024 }
    }
}

/// What an encoded image turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `None` where it is neither PNG nor JPEG.
    pub format: Option<ImageFormat>,
    /// Length of the file.
    pub size_bytes: u64,
}

/// Why an image may not be stored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImageDefect {
    /// It is not as wide or as high as asked.
    #[error("wrong resolution: {width}x{height}, expected {expected_width}x{expected_height}")]
    Resolution {
        /// Measured.
        width: u32,
        /// Measured.
        height: u32,
        /// As specified.
        expected_width: u32,
        /// As specified.
        expected_height: u32,
    },
    /// It is neither PNG nor JPEG.
    #[error("wrong format: expected PNG or JPEG")]
    Format,
    /// The file is too large.
    #[error("file too large: {size_bytes} bytes, expected less than {max_bytes}")]
    TooLarge {
        /// Measured.
        size_bytes: u64,
        /// As specified.
        max_bytes: u64,
    },
    /// It cannot be decoded.
    #[error("not a readable image: {0}")]
    Undecodable(String),
    /// It shows nothing.
    #[error("a picture of one colour: contrast {contrast:.1}, expected at least {min_contrast:.1}")]
    OneColour {
        /// Standard deviation of the channel that varies most, 0 to 127.5.
        contrast: f64,
        /// What is asked for.
        min_contrast: f64,
    },
    /// It is blurred away.
    #[error("a blurred picture: sharpness {sharpness:.1}, expected at least {min_sharpness:.1}")]
    Blurred {
        /// Variance of the Laplacian of its brightness.
        sharpness: f64,
        /// What is asked for.
        min_sharpness: f64,
    },
}

impl ImageDefect {
    /// Of a codec's error. What codecs say may repeat what stands in the file: it becomes one line of at most 200 characters, which any row takes.
    pub fn undecodable(error: &dyn fmt::Display) -> Self {
        let text: String = error.to_string().trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self::Undecodable(text.chars().take(MAX_ERROR_CHARS).collect())
    }
}

impl ImageSpec {
    /// Checks an encoded image against this specification.
    ///
    /// # Errors
    ///
    /// The first [`ImageDefect`] found: resolution, format, bytes.
    pub fn check(&self, measured: &Measured) -> Result<(), ImageDefect> {
        if (measured.width, measured.height) != (self.width, self.height) {
            return Err(ImageDefect::Resolution {
                width: measured.width,
                height: measured.height,
                expected_width: self.width,
                expected_height: self.height,
            });
        }
        if measured.format.is_none() {
            return Err(ImageDefect::Format);
        }
        if measured.size_bytes >= self.max_bytes {
            return Err(ImageDefect::TooLarge { size_bytes: measured.size_bytes, max_bytes: self.max_bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_a_stored_image_are_size_format_and_bytes() {
        let good = Measured { width: 1920, height: 1080, format: Some(ImageFormat::Png), size_bytes: 1 };
        let check = |measured: Measured, expected: Option<&str>| {
            let found = ImageSpec::default().check(&measured).err().map(|defect| defect.to_string());
            assert_eq!(found.as_deref(), expected, "{measured:?}");
        };
        check(good, None);
        check(Measured { format: Some(ImageFormat::Jpeg), ..good }, None);
        check(Measured { width: 1280, height: 720, ..good }, Some("wrong resolution: 1280x720, expected 1920x1080"));
        check(Measured { format: None, ..good }, Some("wrong format: expected PNG or JPEG"));
        check(Measured { size_bytes: 10 * 1024 * 1024 - 1, ..good }, None);
        check(
            Measured { size_bytes: 10 * 1024 * 1024, ..good },
            Some("file too large: 10485760 bytes, expected less than 10485760"),
        );
    }
}
