//! Decoding with limits: data from the API is treated as untrusted.

use std::fmt;
use std::io::Cursor;

use domain::image_spec::ImageDefect;
use image::{
    ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits, RgbImage,
};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// The longest side that is decoded, in pixels. The API's images have at most 1680, upscaled ones 6144.
pub(super) const MAX_SIDE_PIXELS: u32 = 8_192;
/// The most memory that decoding may allocate, in bytes: 8192x8192 in RGBA.
const MAX_ALLOC_BYTES: u64 = 256 * 1024 * 1024;

/// The longest colour profile that is read, in bytes. Profiles of displays and cameras have less than 50 KB.
const MAX_PROFILE_BYTES: usize = 1024 * 1024;

/// Decodes a PNG or JPEG to sRGB with 8 bits a channel and drops the alpha channel. Uses `buffer` for the pixels if the
/// file has them in this form.
///
/// # Errors
///
/// [`ImageDefect`] if the file is neither, exceeds the limits on sides and memory, is damaged, or has a colour profile
/// that cannot be converted.
pub fn decode(bytes: &[u8], buffer: Vec<u8>) -> Result<RgbImage, ImageDefect> {
    let defect = |error: ImageError| ImageDefect::from_codec_error(&error);
    let reader = open_reader(bytes)?;
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let mut decoder = reader.into_decoder().map_err(defect)?;
    // The decoders themselves limit only what they allocate besides the pixels.
    if decoder.total_bytes() > MAX_ALLOC_BYTES {
        let error =
            format_args!("its pixels take {} bytes, at most {MAX_ALLOC_BYTES} are allowed", decoder.total_bytes());
        return Err(ImageDefect::from_codec_error(&error));
    }
    let profile = decoder.icc_profile().map_err(defect)?;
    let mut picture = read_pixels(decoder, buffer, is_jpeg).map_err(defect)?;
    if let Some(profile) = profile {
        convert_to_srgb(&mut picture, &profile).map_err(|error| ImageDefect::from_codec_error(&error))?;
    }
    Ok(picture)
}

fn read_pixels(decoder: impl ImageDecoder, buffer: Vec<u8>, is_jpeg: bool) -> ImageResult<RgbImage> {
    if decoder.color_type() != ColorType::Rgb8 {
        return Ok(DynamicImage::from_decoder(decoder)?.into_rgb8());
    }
    let (width, height) = decoder.dimensions();
    let mut pixels = buffer;
    if is_jpeg {
        // A damaged JPEG may leave pixels out, which must not show those of the image before. A PNG cannot.
        pixels.clear();
    }
    pixels.resize(usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX), 0);
    decoder.read_image(&mut pixels)?;
    Ok(RgbImage::from_raw(width, height, pixels).expect("the buffer has the size of the image"))
}

/// Converts pixels from the colours of an ICC profile. Without it they would be shown as if they were sRGB.
fn convert_to_srgb(picture: &mut RgbImage, profile: &[u8]) -> Result<(), String> {
    if profile.len() > MAX_PROFILE_BYTES {
        return Err(format!("its colour profile has {} bytes, at most {MAX_PROFILE_BYTES} are allowed", profile.len()));
    }
    let unusable = |why: &dyn fmt::Display| format!("its colour profile cannot be converted: {why}");
    let profile = ColorProfile::new_from_slice(profile).map_err(|error| unusable(&error))?;
    if profile.color_space != DataColorSpace::Rgb {
        return Err(unusable(&format_args!("it is for {:?}, expected Rgb", profile.color_space)));
    }
    let srgb = ColorProfile::new_srgb();
    let transform = profile
        .create_transform_8bit(Layout::Rgb, &srgb, Layout::Rgb, TransformOptions::default())
        .map_err(|error| unusable(&error))?;
    let row_bytes = picture.width() as usize * 3;
    let mut converted = vec![0; row_bytes];
    for row in picture.chunks_exact_mut(row_bytes.max(1)) {
        transform.transform(row, &mut converted).map_err(|error| unusable(&error))?;
        row.copy_from_slice(&converted);
    }
    Ok(())
}

/// Opens a reader with the detected format and the limits set.
pub(super) fn open_reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, ImageDefect> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| ImageDefect::from_codec_error(&error))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(ImageDefect::WrongFormat);
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE_PIXELS);
    limits.max_image_height = Some(MAX_SIDE_PIXELS);
    limits.max_alloc = Some(MAX_ALLOC_BYTES);
    reader.limits(limits);
    Ok(reader)
}
