//! Scales an image to cover the target size and crops it around the centre, without distortion.

use std::f64::consts::PI;

use domain::image_spec::{ImageDefect, ImageSpec};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{Filter, FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

/// The radius of the filter, in pixels.
const RADIUS: f64 = 3.0;

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
    let filter = Filter::new("Lanczos3", lanczos3, RADIUS).map_err(|error| scaling_error(error.to_string()))?;
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Custom(filter))).fit_into_destination(None);
    resizer.resize_typed(&source, &mut target, &options).map_err(|error| scaling_error(error.to_string()))?;
    Ok(resized)
}

/// The Lanczos filter `sinc(x) * sinc(x / 3)`, with one polynomial instead of two sines: the filter is computed for each
/// weight of each image.
///
/// With `t = πx/3` it is `sin²t (3 - 4 sin²t) / 3t²`, because `sin 3t = 3 sin t - 4 sin³t`.
fn lanczos3(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    if x.abs() >= RADIUS {
        return 0.0;
    }
    let t = x.abs() * (PI / RADIUS);
    let sine_squared = cosine(t - PI / 2.0).powi(2);
    sine_squared * (3.0 - 4.0 * sine_squared) / (3.0 * t * t)
}

/// The cosine from -π/2 to π/2, by its Taylor series. The error is below 1e-14.
fn cosine(x: f64) -> f64 {
    let square = x * x;
    // -1/18!, 1/16!, … -1/2!, 1.
    let coefficients = [
        -1.0 / 6_402_373_705_728_000.0,
        1.0 / 20_922_789_888_000.0,
        -1.0 / 87_178_291_200.0,
        1.0 / 479_001_600.0,
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -0.5,
        1.0,
    ];
    coefficients.iter().fold(0.0, |sum, coefficient| sum * square + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter of the library, which images were scaled with before.
    #[test]
    fn filter_is_lanczos3() {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        for step in -4_000..=4_000 {
            let x = f64::from(step) / 1_000.0;
            let expected = if x.abs() < RADIUS { sinc(x) * sinc(x / RADIUS) } else { 0.0 };
            assert!((lanczos3(x) - expected).abs() < 1e-10, "{x}: {} instead of {expected}", lanczos3(x));
        }
    }
}
