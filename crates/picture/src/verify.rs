//! Verifies files: format, size in pixels, size in bytes, and that they decode completely.

use domain::image_spec::{ImageDefect, ImageFormat, ImageProperties, ImageSpec};

use image::RgbImage;
use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

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
    let ((width, height), format) = if reader.format() == Some(image::ImageFormat::Jpeg) {
        (decode_whole_jpeg(bytes)?, ImageFormat::Jpeg)
    } else {
        let decoded = reader.decode().map_err(|error| ImageDefect::from_codec_error(&error))?;
        ((decoded.width(), decoded.height()), ImageFormat::Png)
    };
    spec.check(&ImageProperties { width, height, format: Some(format), size_bytes: bytes.len() as u64 })
}

/// Decodes a JPEG of which nothing may be missing, and returns its width and height. The decoder of `image` makes up
/// what a truncated file lacks.
fn decode_whole_jpeg(bytes: &[u8]) -> Result<(u32, u32), ImageDefect> {
    const END_MARKER: &[u8] = b"\xFF\xD9";
    if !bytes.ends_with(END_MARKER) {
        return Err(ImageDefect::from_codec_error(&"the file is truncated"));
    }
    let max_side = decode::MAX_SIDE_PIXELS as usize;
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(max_side).set_max_height(max_side);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode().map_err(|error| ImageDefect::from_codec_error(&error))?;
    let (width, height) = decoder.dimensions().expect("the header was decoded");
    let side = |side: usize| u32::try_from(side).expect("a side of a JPEG has 16 bits");
    Ok((side(width), side(height)))
}
