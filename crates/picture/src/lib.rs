//! Converts an image from the API into a stored image.
//!
//! Steps: decode with limits, check the quality, scale to cover, crop, encode with metadata, verify.
//!
//! All functions are pure and CPU-bound; the caller chooses the thread. This is a separate crate so that development
//! builds can optimise it: the generic code of the codecs is compiled here.

mod decode;
mod encode;
pub mod metadata;
mod quality_check;
mod resize;
mod verify;

use bytes::Bytes;
use domain::digest;
use domain::image_metadata::ImageMetadata;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};

pub use quality_check::QualityCheck;
pub use verify::verify;

/// An encoded image that conforms to the specification.
#[derive(Debug, Clone)]
pub struct ProcessedImage {
    /// The content of the file.
    pub bytes: Bytes,
    /// Format of the file.
    pub format: ImageFormat,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
}

/// Converts an image from the API into a file that conforms to `spec` and contains the metadata.
///
/// # Errors
///
/// [`ImageDefect`] if the image cannot be decoded within the limits, fails the quality check, or cannot be converted to
/// the specification.
pub fn process(
    original: &[u8],
    spec: &ImageSpec,
    quality_check: QualityCheck,
    metadata: &ImageMetadata,
) -> Result<ProcessedImage, ImageDefect> {
    let decoded = decode::decode(original)?;
    quality_check.check(&decoded)?;
    let resized = resize::resize_to_cover(decoded, spec)?;
    let (bytes, format) = encode::encode(&resized, spec, metadata)?;
    verify(&bytes, spec)?;
    let sha256 = digest::sha256(&bytes);
    Ok(ProcessedImage { bytes: bytes.into(), format, sha256 })
}

#[cfg(test)]
mod tests;
