//! Scales an image to cover the target size and crops it around the centre, without distortion.

use domain::image_spec::{ImageDefect, ImageSpec};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

/// Resizes an image to the specification with SIMD Lanczos3. An image of that size is returned unchanged.
pub(super) fn resize_to_cover(picture: RgbImage, spec: &ImageSpec) -> Result<RgbImage, ImageDefect> {
    if picture.dimensions() == (spec.width, spec.height) {
        return Ok(picture);
    }
    let scaling_error = |error: String| ImageDefect::from_codec_error(&format_args!("cannot be scaled: {error}"));
    let source = ImageRef::new(picture.width(), picture.height(), picture.as_raw(), PixelType::U8x3)
        .map_err(|error| scaling_error(error.to_string()))?;
    let mut target = Image::new(spec.width, spec.height, PixelType::U8x3);
    // `fit_into_destination` crops the source around its centre to the target's aspect ratio before scaling.
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).fit_into_destination(None);
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| scaling_error(error.to_string()))?;
    RgbImage::from_raw(spec.width, spec.height, target.into_vec())
        .ok_or_else(|| scaling_error("the buffer is too small".to_owned()))
}
