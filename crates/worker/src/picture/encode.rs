//! Encoding: a fast PNG, or a JPEG where the PNG would be too large.

use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, RgbImage};

/// JPEG qualities that are tried until the file is small enough. The first is visually lossless.
const JPEG_QUALITIES: [u8; 4] = [95, 90, 80, 60];

/// Encodes a picture below the specification's bytes.
pub(super) fn encode(picture: &RgbImage, spec: &ImageSpec) -> Result<(Vec<u8>, ImageFormat), ImageDefect> {
    let png = png(picture).map_err(|error| ImageDefect::Undecodable(format!("cannot be encoded: {error}")))?;
    let fits = |bytes: &[u8]| (bytes.len() as u64) < spec.max_bytes;
    if fits(&png) {
        return Ok((png, ImageFormat::Png));
    }
    let mut size_bytes = png.len() as u64;
    drop(png);
    for quality in JPEG_QUALITIES {
        let jpeg =
            jpeg(picture, quality).map_err(|error| ImageDefect::Undecodable(format!("cannot be encoded: {error}")))?;
        if fits(&jpeg) {
            return Ok((jpeg, ImageFormat::Jpeg));
        }
        size_bytes = jpeg.len() as u64;
    }
    Err(ImageDefect::TooLarge { size_bytes, max_bytes: spec.max_bytes })
}

fn png(picture: &RgbImage) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::with_capacity(picture.as_raw().len() / 2);
    let mut encoder = png::Encoder::new(&mut file, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(file)
}

fn jpeg(picture: &RgbImage, quality: u8) -> Result<Vec<u8>, image::ImageError> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality).encode(
        picture.as_raw(),
        picture.width(),
        picture.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(file)
}
