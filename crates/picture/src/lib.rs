//! Converts an image from the API into a stored image.
//!
//! Steps: decode with limits, check the quality, scale to cover, crop, encode with metadata, verify.
//!
//! All functions are pure and CPU-bound; the caller chooses the thread. This is a separate crate so that development
//! builds can optimise it: the generic code of the codecs is compiled here.

mod copy;
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
use fast_image_resize::Resizer;
use image::RgbImage;

pub use copy::{CopyFormat, make_copy};
pub use decode::decode;
pub use encode::encode;
pub use quality_check::QualityCheck;
pub use resize::resize_to_cover;
pub use verify::{verify, verify_encoded};

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

/// The largest buffer that is kept for the next image, in bytes: enough for 4K. A rare large image does not occupy its
/// memory for ever.
const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;

/// Buffers that are used again for the next image, so that the system does not have to provide their memory anew.
#[derive(Debug, Default)]
pub struct Buffers {
    decoded: Vec<u8>,
    resized: Vec<u8>,
    resizer: Resizer,
}

impl Buffers {
    /// Keeps buffers for the next image, except large ones.
    fn keep(&mut self, decoded: RgbImage, resized: RgbImage) {
        let small = |buffer: Vec<u8>| if buffer.capacity() <= MAX_KEPT_BYTES { buffer } else { Vec::new() };
        (self.decoded, self.resized) = (small(decoded.into_raw()), small(resized.into_raw()));
        if self.resizer.size_of_internal_buffers() > MAX_KEPT_BYTES {
            self.resizer.reset_internal_buffers();
        }
    }
}

/// Converts an image from the API into a file that conforms to `spec` and contains the metadata. The original is
/// released when it is decoded.
///
/// # Errors
///
/// [`ImageDefect`] if the image cannot be decoded within the limits, fails the quality check, or cannot be converted to
/// the specification.
pub fn process(
    original: Bytes,
    spec: &ImageSpec,
    quality_check: QualityCheck,
    metadata: &ImageMetadata,
    buffers: &mut Buffers,
) -> Result<ProcessedImage, ImageDefect> {
    let decoded = decode(&original, std::mem::take(&mut buffers.decoded))?;
    drop(original);
    quality_check.check(&decoded)?;
    let is_resized = decoded.dimensions() != (spec.width, spec.height);
    let resized = if is_resized {
        let buffer = std::mem::take(&mut buffers.resized);
        resize_to_cover(&decoded, spec, &mut buffers.resizer, buffer)?
    } else {
        RgbImage::default()
    };
    let finished = finish(if is_resized { &resized } else { &decoded }, spec, metadata)?;
    buffers.keep(decoded, resized);
    Ok(finished)
}

/// Converts an upscaled image into a file that conforms to `spec` and contains the metadata, like [`process`]. It takes
/// about 70 MB for an image of 16 megapixels, which are released afterwards.
///
/// # Errors
///
/// As [`process`], and [`ImageDefect::WrongResolution`] if the image does not have `expected` width and height.
pub fn process_upscaled(
    upscaled: Bytes,
    expected: (u32, u32),
    spec: &ImageSpec,
    metadata: &ImageMetadata,
) -> Result<ProcessedImage, ImageDefect> {
    let decoded = decode(&upscaled, Vec::new())?;
    drop(upscaled);
    let (width, height) = decoded.dimensions();
    if (width, height) != expected {
        let (expected_width, expected_height) = expected;
        return Err(ImageDefect::WrongResolution { width, height, expected_width, expected_height });
    }
    // Sharpness was checked before: it is defined for the size that the API generates.
    QualityCheck::default().check(&decoded)?;
    let resized = resize_to_cover(&decoded, spec, &mut Resizer::new(), Vec::new())?;
    drop(decoded);
    finish(&resized, spec, metadata)
}

/// Width and height of an image file, from its header.
///
/// # Errors
///
/// [`ImageDefect`] if it is not a readable PNG or JPEG.
pub fn dimensions(file: &[u8]) -> Result<(u32, u32), ImageDefect> {
    decode::open_reader(file)?.into_dimensions().map_err(|error| ImageDefect::from_codec_error(&error))
}

/// Encodes an image of the final size, and verifies the file.
fn finish(picture: &RgbImage, spec: &ImageSpec, metadata: &ImageMetadata) -> Result<ProcessedImage, ImageDefect> {
    let (bytes, format) = encode(picture, spec, metadata)?;
    verify_encoded(&bytes, format, picture, spec)?;
    let sha256 = digest::sha256(&bytes);
    Ok(ProcessedImage { bytes: bytes.into(), format, sha256 })
}

#[cfg(test)]
mod tests;
