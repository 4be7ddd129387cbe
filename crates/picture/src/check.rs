//! What every stored file must be: format, size in pixels, size in bytes.

use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec, Measured};

use super::decode;

/// Checks a file: size in pixels, format, size in bytes, and that it decodes whole.
///
/// # Errors
///
/// The first [`ImageDefect`] found.
pub fn check(bytes: &[u8], spec: &ImageSpec) -> Result<(), ImageDefect> {
    let reader = decode::reader(bytes)?;
    let format = match reader.format() {
        Some(image::ImageFormat::Png) => Some(ImageFormat::Png),
        Some(image::ImageFormat::Jpeg) => Some(ImageFormat::Jpeg),
        _ => None,
    };
    let decoded = reader.decode().map_err(|error| ImageDefect::undecodable(&error))?;
    spec.check(&Measured { width: decoded.width(), height: decoded.height(), format, size_bytes: bytes.len() as u64 })
}
