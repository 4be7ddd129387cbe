//! Decoding under limits: what the API sends is trusted no more than any download.

use std::io::Cursor;

use domain::image_spec::ImageDefect;
use image::{ImageFormat, ImageReader, Limits, RgbImage};

/// The longest side that is decoded, in pixels; the API's longest is 1536.
const MAX_SIDE: u32 = 8_192;
/// The most memory that decoding may take, in bytes: 8192x8192 in RGBA.
const MAX_ALLOC: u64 = 256 * 1024 * 1024;

/// Decodes a PNG or JPEG to RGB; transparency is dropped.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, ImageDefect> {
    Ok(reader(bytes)?.decode().map_err(|error| ImageDefect::undecodable(&error))?.into_rgb8())
}

/// A reader that knows its format and its limits.
pub(super) fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, ImageDefect> {
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| ImageDefect::undecodable(&error))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(ImageDefect::Format);
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    Ok(reader)
}
