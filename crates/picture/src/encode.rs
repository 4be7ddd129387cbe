//! Encoding: a fast PNG, or a JPEG if the PNG would be too large. Both contain the image metadata.

use domain::image_metadata::ImageMetadata;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use fast_png::Picture;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::metadata;

/// JPEG qualities, tried in this order until the file is small enough. The first is visually lossless.
const JPEG_QUALITIES: [u8; 4] = [95, 90, 80, 60];

/// Encodes an image and its metadata into a file smaller than `spec.max_bytes`.
///
/// # Errors
///
/// [`ImageDefect::TooLarge`] if no JPEG quality is low enough.
pub fn encode(
    picture: &RgbImage,
    spec: &ImageSpec,
    metadata: &ImageMetadata,
) -> Result<(Vec<u8>, ImageFormat), ImageDefect> {
    let png = encode_png(picture, metadata)?;
    let fits = |bytes: &[u8]| (bytes.len() as u64) < spec.max_bytes;
    if fits(&png) {
        return Ok((png, ImageFormat::Png));
    }
    let mut size_bytes = png.len() as u64;
    drop(png);
    for quality in JPEG_QUALITIES {
        let jpeg = encode_jpeg(picture, quality, metadata)
            .map_err(|error| ImageDefect::from_codec_error(&format_args!("cannot be encoded: {error}")))?;
        if fits(&jpeg) {
            return Ok((jpeg, ImageFormat::Jpeg));
        }
        size_bytes = jpeg.len() as u64;
    }
    Err(ImageDefect::TooLarge { size_bytes, max_bytes: spec.max_bytes })
}

fn encode_png(picture: &RgbImage, metadata: &ImageMetadata) -> Result<Vec<u8>, ImageDefect> {
    let texts = metadata::to_texts(metadata);
    let texts = texts.iter().map(|(keyword, text)| (*keyword, text.as_str()));
    Ok(fast_png::encode(&fast_png_view(picture)?, texts))
}

/// The pixels of a picture for the PNG encoder.
pub(super) fn fast_png_view(picture: &RgbImage) -> Result<Picture<'_>, ImageDefect> {
    let view = Picture::new(picture.width(), picture.height(), picture.as_raw());
    view.ok_or_else(|| ImageDefect::from_codec_error(&"cannot be encoded: it has no pixels"))
}

fn encode_jpeg(picture: &RgbImage, quality: u8, metadata: &ImageMetadata) -> Result<Vec<u8>, image::ImageError> {
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut file, quality);
    encoder.set_exif_metadata(metadata::to_exif(metadata)).map_err(image::ImageError::Unsupported)?;
    encoder.encode(picture.as_raw(), picture.width(), picture.height(), ExtendedColorType::Rgb8)?;
    Ok(file)
}
