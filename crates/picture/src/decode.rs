//! Decoding with limits: data from the API is treated as untrusted.

use std::io::Cursor;

use domain::image_spec::ImageDefect;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

/// The longest side that is decoded, in pixels. The API's images have at most 1536.
const MAX_SIDE_PIXELS: u32 = 8_192;
/// The most memory that decoding may allocate, in bytes: 8192x8192 in RGBA.
const MAX_ALLOC_BYTES: u64 = 256 * 1024 * 1024;

/// Decodes a PNG or JPEG to RGB and drops the alpha channel. Uses `buffer` for the pixels if the file has no alpha
/// channel.
///
/// # Errors
///
/// [`ImageDefect`] if the file is neither, exceeds the limits on sides and memory, or is damaged.
pub fn decode(bytes: &[u8], buffer: Vec<u8>) -> Result<RgbImage, ImageDefect> {
    let defect = |error| ImageDefect::from_codec_error(&error);
    let reader = open_reader(bytes)?;
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let decoder = reader.into_decoder().map_err(defect)?;
    // The decoders themselves limit only what they allocate besides the pixels.
    if decoder.total_bytes() > MAX_ALLOC_BYTES {
        let error =
            format_args!("its pixels take {} bytes, at most {MAX_ALLOC_BYTES} are allowed", decoder.total_bytes());
        return Err(ImageDefect::from_codec_error(&error));
    }
    if decoder.color_type() != ColorType::Rgb8 {
        return Ok(DynamicImage::from_decoder(decoder).map_err(defect)?.into_rgb8());
    }
    let (width, height) = decoder.dimensions();
    let mut pixels = buffer;
    if is_jpeg {
        // A damaged JPEG may leave pixels out, which must not show those of the image before. A PNG cannot.
        pixels.clear();
    }
    pixels.resize(usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX), 0);
    decoder.read_image(&mut pixels).map_err(defect)?;
    Ok(RgbImage::from_raw(width, height, pixels).expect("the buffer has the size of the image"))
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
