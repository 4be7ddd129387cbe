//! The quality check: rejects images of a single colour and, if a threshold is set, blurred images.

use std::borrow::Cow;

use domain::image_spec::{ImageDefect, ImageSpec};
use fast_image_resize::Resizer;
use image::RgbImage;

use super::decode;
use super::resize::resize_to_cover;

/// Minimum standard deviation, of 255, of the channel that varies most; below it an image counts as single-coloured.
///
/// A plain surface with invisible noise has about 1; a night sky with a few stars has 10 and more.
const MIN_CONTRAST: f64 = 2.0;
/// Number of pixels of the API's images, such as 1344x768.
const ONE_MEGAPIXEL: f64 = 1_032_192.0;
/// The contrast is measured on every n-th row, which is accurate enough and cheap.
const ROW_STEP: usize = 4;

/// Thresholds of the quality check.
#[derive(Debug, Clone, Copy, Default)]
pub struct QualityCheck {
    /// Minimum variance of the Laplacian of the brightness, at one megapixel; 0 disables the check.
    ///
    /// The engines generate one megapixel. Larger images, such as stored ones, are scaled down to it before they are
    /// measured: enlarging an image makes neighbours more alike. Sharp photographs have several hundred, images blurred
    /// beyond recognition only a few.
    pub min_sharpness: f64,
}

impl QualityCheck {
    /// Checks an encoded file.
    ///
    /// # Errors
    ///
    /// [`ImageDefect`] if it cannot be decoded, has a single colour, or is too blurred.
    pub fn check_file(self, bytes: &[u8]) -> Result<(), ImageDefect> {
        self.check(&decode(bytes, Vec::new())?)
    }

    /// Checks a decoded image.
    ///
    /// # Errors
    ///
    /// [`ImageDefect::OneColour`] or [`ImageDefect::Blurred`].
    pub fn check(self, picture: &RgbImage) -> Result<(), ImageDefect> {
        let contrast = contrast(picture);
        if contrast < MIN_CONTRAST {
            return Err(ImageDefect::OneColour { contrast, min_contrast: MIN_CONTRAST });
        }
        let min_sharpness = self.min_sharpness;
        if min_sharpness > 0.0 {
            let sharpness = sharpness(scale_to_one_megapixel(picture)?.as_ref());
            if sharpness < min_sharpness {
                return Err(ImageDefect::Blurred { sharpness, min_sharpness });
            }
        }
        Ok(())
    }
}

/// Scales an image down if it has more than 10% above one megapixel.
fn scale_to_one_megapixel(picture: &RgbImage) -> Result<Cow<'_, RgbImage>, ImageDefect> {
    let (width, height) = picture.dimensions();
    let share = ONE_MEGAPIXEL / (f64::from(width) * f64::from(height));
    if share > 1.0 / 1.1 {
        return Ok(Cow::Borrowed(picture));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a smaller side than before")]
    let scale = |side: u32| ((f64::from(side) * share.sqrt()).round() as u32).max(1);
    let size = ImageSpec { width: scale(width), height: scale(height), ..ImageSpec::default() };
    resize_to_cover(picture, &size, &mut Resizer::new(), Vec::new()).map(Cow::Owned)
}

/// The standard deviation of the channel that varies most.
fn contrast(picture: &RgbImage) -> f64 {
    let mut channels = [VarianceAccumulator::default(); 3];
    for row in picture.rows().step_by(ROW_STEP) {
        for pixel in row {
            for (channel, value) in channels.iter_mut().zip(pixel.0) {
                channel.add(i64::from(value));
            }
        }
    }
    channels.map(VarianceAccumulator::variance).into_iter().fold(0.0, f64::max).sqrt()
}

/// The variance of the Laplacian of the brightness, which measures how much pixels differ from their neighbours.
fn sharpness(picture: &RgbImage) -> f64 {
    let width = picture.width() as usize;
    // Rec. 601 luma, with weights of 1/256.
    let brightness: Vec<i64> = picture
        .pixels()
        .map(|pixel| {
            let [red, green, blue] = pixel.0.map(i64::from);
            (77 * red + 150 * green + 29 * blue) >> 8
        })
        .collect();
    let rows: Vec<&[i64]> = brightness.chunks(width).collect();
    let mut accumulator = VarianceAccumulator::default();
    for rows in rows.windows(3) {
        let [above, row, below] = rows else { continue };
        for x in 1..width.saturating_sub(1) {
            accumulator.add(above[x] + below[x] + row[x - 1] + row[x + 1] - 4 * row[x]);
        }
    }
    accumulator.variance()
}

/// Sums of values and of their squares; exact for every image within the decoding limits.
#[derive(Clone, Copy, Default)]
struct VarianceAccumulator {
    count: i64,
    sum: i64,
    squares: i64,
}

impl VarianceAccumulator {
    fn add(&mut self, value: i64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    #[expect(clippy::cast_precision_loss, reason = "sums over some megapixels of bytes")]
    fn variance(self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let (count, sum, squares) = (self.count as f64, self.sum as f64, self.squares as f64);
        (squares / count - (sum / count).powi(2)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// A grey image with deterministic noise of at most `noise` levels.
    fn noisy_grey(noise: u32) -> RgbImage {
        let mut state = 1_u32;
        RgbImage::from_fn(320, 180, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = u8::try_from(100 + (state >> 16) % (noise + 1)).expect("the value fits in u8");
            Rgb([value, value, value])
        })
    }

    fn night_sky() -> RgbImage {
        let mut sky = RgbImage::from_pixel(320, 180, Rgb([2, 2, 10]));
        for star in 0..180_u32 {
            sky.put_pixel(star * 37 % 320, star, Rgb([255, 255, 240]));
        }
        sky
    }

    fn stripes() -> RgbImage {
        RgbImage::from_fn(320, 180, |x, _| if (x / 8) % 2 == 0 { Rgb([20, 20, 20]) } else { Rgb([220, 220, 220]) })
    }

    fn check(picture: &RgbImage, min_sharpness: f64) -> Result<(), String> {
        QualityCheck { min_sharpness }.check(picture).map_err(|defect| defect.to_string())
    }

    #[test]
    fn single_colour_is_rejected_but_a_night_sky_is_not() {
        assert_eq!(
            check(&noisy_grey(0), 0.0),
            Err("image of a single colour: contrast 0.0, expected at least 2.0".to_owned())
        );
        assert!(check(&noisy_grey(3), 0.0).is_err());
        assert_eq!(check(&noisy_grey(40), 0.0), Ok(()));
        assert_eq!(check(&night_sky(), 0.0), Ok(()));
        // Only one channel varies.
        let red = RgbImage::from_fn(320, 180, |x, _| Rgb([u8::try_from(x % 256).expect("the value fits in u8"), 0, 0]));
        assert_eq!(check(&red, 0.0), Ok(()));
        assert!(check(&RgbImage::from_pixel(1, 1, Rgb([9, 9, 9])), 0.0).is_err());
    }

    #[test]
    fn blurred_picture_is_rejected_only_with_a_threshold() {
        let sharp = stripes();
        let blurred = image::imageops::blur(&sharp, 12.0);
        assert_eq!(check(&sharp, 100.0), Ok(()));
        assert_eq!(check(&blurred, 0.0), Ok(()));
        let refused = check(&blurred, 100.0).expect_err("the image is too blurred");
        assert!(refused.starts_with("blurred image: sharpness "), "{refused}");
    }
}
