//! Verifies stored files: format, size in pixels, size in bytes.

use domain::image_spec::{ImageDefect, ImageFormat, ImageProperties, ImageSpec};

use super::decode;

/// Verifies size in pixels, format and size in bytes of a file, and that it decodes completely.
///
/// # Errors
///
/// The first [`ImageDefect`] found.
pub fn verify(bytes: &[u8], spec: &ImageSpec) -> Result<(), ImageDefect> {
    let reader = decode::open_reader(bytes)?;
    let format = match reader.format() {
        Some(image::ImageFormat::Png) => Some(ImageFormat::Png),
        Some(image::ImageFormat::Jpeg) => Some(ImageFormat::Jpeg),
        _ => None,
    };
    let decoded = reader.decode().map_err(|error| ImageDefect::from_codec_error(&error))?;
    spec.check(&ImageProperties {
        width: decoded.width(),
        height: decoded.height(),
        format,
        size_bytes: bytes.len() as u64,
    })
}
