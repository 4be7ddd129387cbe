//! Smaller copies of stored images, for pages and previews.

use domain::image_spec::{ImageDefect, ImageSpec};
use fast_image_resize::Resizer;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::decode::decode;
use super::resize::resize_to_cover;

/// Quality of JPEG copies, 1 to 100.
const JPEG_QUALITY: u8 = 82;
/// Quality of WebP copies, 0 to 100; about that of the JPEG copies.
const WEBP_QUALITY: f32 = 78.0;

/// The formats of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyFormat {
    /// For every client.
    Jpeg,
    /// Smaller, for clients that say that they read it.
    Webp,
}

/// Makes a copy of an image file with this width, at least 1, and the height that follows from it. A copy is never wider
/// than the image. It has no metadata.
///
/// # Errors
///
/// [`ImageDefect`] if the file is not a readable PNG or JPEG.
pub fn make_copy(file: &[u8], width: u32, format: CopyFormat) -> Result<Vec<u8>, ImageDefect> {
    let original = decode(file, Vec::new())?;
    let width = width.clamp(1, original.width());
    if width == original.width() {
        return encode(&original, format);
    }
    let height = u64::from(original.height()) * u64::from(width) / u64::from(original.width());
    let height = u32::try_from(height).unwrap_or(u32::MAX).max(1);
    let spec = ImageSpec { width, height, ..ImageSpec::default() };
    encode(&resize_to_cover(&original, &spec, &mut Resizer::new(), Vec::new())?, format)
}

fn encode(picture: &RgbImage, format: CopyFormat) -> Result<Vec<u8>, ImageDefect> {
    let (width, height) = picture.dimensions();
    match format {
        CopyFormat::Jpeg => {
            let mut file = Vec::new();
            JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY)
                .write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
                .map_err(|error| ImageDefect::from_codec_error(&format_args!("cannot be encoded: {error}")))?;
            Ok(file)
        }
        CopyFormat::Webp => {
            let file = webp::Encoder::from_rgb(picture.as_raw(), width, height).encode_simple(false, WEBP_QUALITY);
            let file =
                file.map_err(|error| ImageDefect::from_codec_error(&format_args!("cannot be encoded: {error:?}")))?;
            Ok(file.to_vec())
        }
    }
}

#[cfg(test)]
mod tests {
    use image::ImageReader;

    use super::*;

    fn photo() -> Vec<u8> {
        let share = |position: u32| u8::try_from(position * 255 / 320).expect("the share is at most 255");
        let picture = RgbImage::from_fn(320, 180, |x, y| image::Rgb([share(x), share(y), share((x + y) % 320)]));
        let mut file = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).expect("the image is encoded");
        file.into_inner()
    }

    #[test]
    fn copy_has_the_width_and_the_shape_of_the_image() {
        for (width, expected) in [(160, (160, 90)), (100, (100, 56)), (1, (1, 1)), (0, (1, 1)), (9_999, (320, 180))] {
            let jpeg = make_copy(&photo(), width, CopyFormat::Jpeg).expect("a copy");
            let reader = ImageReader::new(std::io::Cursor::new(&jpeg)).with_guessed_format().expect("a file");
            assert_eq!(reader.format(), Some(image::ImageFormat::Jpeg));
            assert_eq!(reader.into_dimensions().expect("dimensions"), expected, "{width}");
            let webp = make_copy(&photo(), width, CopyFormat::Webp).expect("a copy");
            let decoded = webp::Decoder::new(&webp).decode().expect("a WebP image");
            assert_eq!((decoded.width(), decoded.height()), expected, "{width}");
        }
    }

    #[test]
    fn copy_looks_like_the_image() {
        let original = decode(&photo(), Vec::new()).expect("an image");
        let close = |copy: &[u8]| {
            let pairs = original.as_raw().iter().zip(copy);
            pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>() < 4 * original.as_raw().len() as u64
        };
        let jpeg = make_copy(&photo(), 320, CopyFormat::Jpeg).expect("a copy");
        assert!(close(decode(&jpeg, Vec::new()).expect("an image").as_raw()));
        let webp = make_copy(&photo(), 320, CopyFormat::Webp).expect("a copy");
        assert!(close(&webp::Decoder::new(&webp).decode().expect("a WebP image")));
        assert!(webp.len() < photo().len());
    }

    #[test]
    fn damaged_file_has_no_copy() {
        let mut file = photo();
        file.truncate(file.len() / 2);
        make_copy(&file, 100, CopyFormat::Jpeg).expect_err("the file is damaged");
    }
}
