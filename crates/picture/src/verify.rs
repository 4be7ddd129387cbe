//! Verifies files: format, size in pixels, size in bytes, and that they decode completely.

use domain::image_spec::{ImageDefect, ImageFormat, ImageProperties, ImageSpec};

use image::RgbImage;

use super::{decode, encode};

/// Verifies a file that has just been encoded from these pixels.
///
/// A PNG is compared with the pixels, which costs less than decoding it and proves more. A JPEG is decoded.
///
/// # Errors
///
/// [`ImageDefect`] if the file does not conform to the specification, or a PNG has other pixels.
pub fn verify_encoded(
    file: &[u8],
    format: ImageFormat,
    picture: &RgbImage,
    spec: &ImageSpec,
) -> Result<(), ImageDefect> {
    if format == ImageFormat::Jpeg {
        return verify(file, spec);
    }
    fast_png::check(file, &encode::fast_png_view(picture)?).map_err(|error| ImageDefect::from_codec_error(&error))?;
    let (width, height) = picture.dimensions();
    spec.check(&ImageProperties { width, height, format: Some(format), size_bytes: file.len() as u64 })
}

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
