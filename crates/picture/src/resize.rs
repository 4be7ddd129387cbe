//! Scales an image to cover the target size and crops it around the centre, without distortion.

use domain::image_spec::{ImageDefect, ImageSpec};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

/// Resizes an image to the specification with SIMD Lanczos3; `buffer` is used for the pixels. The image must have
/// another size.
///
/// # Errors
///
/// [`ImageDefect`] if the image has no pixels.
pub fn resize_to_cover(
    picture: &RgbImage,
    spec: &ImageSpec,
    resizer: &mut Resizer,
    buffer: Vec<u8>,
) -> Result<RgbImage, ImageDefect> {
    let scaling_error = |error: String| ImageDefect::from_codec_error(&format_args!("cannot be scaled: {error}"));
    let mut pixels = buffer;
    pixels.resize(spec.width as usize * spec.height as usize * 3, 0);
    let mut resized =
        RgbImage::from_raw(spec.width, spec.height, pixels).expect("the buffer has the size of the image");
    // Typed views: the function for views of any pixel type compiles the scaler once for each of 13 pixel types.
    let source = TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.as_raw())
        .map_err(|error| scaling_error(error.to_string()))?;
    let mut target = TypedImage::<U8x3>::from_buffer(spec.width, spec.height, &mut resized)
        .map_err(|error| scaling_error(error.to_string()))?;
    // `fit_into_destination` crops the source around its centre to the target's aspect ratio before scaling.
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).fit_into_destination(None);
    resizer.resize_typed(&source, &mut target, &options).map_err(|error| scaling_error(error.to_string()))?;
    Ok(resized)
}
