//! Pictures that are pleasant to look at, differ by prompt and seed, and show their prompt.

mod canvas;
mod caption;
mod noise;
mod scene;

use std::io::Cursor;

use sha2::{Digest, Sha256};

use canvas::{Canvas, Colour};
use noise::Dice;

/// The standard deviation of the blur of a withheld picture, in pixels.
const BLUR: f32 = 24.0;

/// Paints `prompt` and encodes it as PNG. The same prompt, seed and size always give the same bytes.
pub(crate) fn picture(prompt: &str, seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = Canvas::new(width as usize, height as usize);
    scene::paint(&mut canvas, prompt, dice(prompt, seed));
    caption::write(&mut canvas, prompt, &format!("sandbox   seed {seed}   {width}x{height}"));
    canvas.into_png()
}

/// As [`picture`], of two colours and quickly.
#[expect(clippy::cast_precision_loss, reason = "a picture's sides are small")]
pub(crate) fn sketch(prompt: &str, seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = Canvas::new(width as usize, height as usize);
    let mut dice = dice(prompt, seed);
    let mut colour = || Colour(dice.between(0.3, 1.0), dice.between(0.3, 1.0), dice.between(0.3, 1.0));
    let (top, bottom) = (colour(), colour().lit(0.4));
    for y in 0..canvas.height {
        let colour = top.mix(bottom, y as f32 / height as f32);
        for x in 0..canvas.width {
            canvas.set(x, y, colour);
        }
    }
    caption::write(&mut canvas, prompt, &format!("sketch   seed {seed}   {width}x{height}"));
    canvas.into_png()
}

/// As [`picture`], blurred beyond recognition: what the API sends of a picture that it withholds.
pub(crate) fn blurred(prompt: &str, seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = Canvas::new(width as usize, height as usize);
    scene::paint(&mut canvas, prompt, dice(prompt, seed));
    let sharp = image::load_from_memory(&canvas.into_png()).expect("a PNG of our own").into_rgb8();
    let mut file = Cursor::new(Vec::new());
    let blurred = image::imageops::fast_blur(&sharp, BLUR);
    blurred.write_to(&mut file, image::ImageFormat::Png).expect("writing to memory");
    file.into_inner()
}

fn dice(prompt: &str, seed: u32) -> Dice {
    let digest = Sha256::new().chain_update(prompt).chain_update(seed.to_le_bytes()).finalize();
    Dice::new(u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes")))
}

/// A picture of one colour.
pub(crate) fn blank(width: u32, height: u32) -> Vec<u8> {
    Canvas::new(width as usize, height as usize).into_png()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_differ_by_prompt_and_seed_and_repeat_exactly() {
        let one = picture("A fox", 1, 320, 192);
        assert_eq!(one, picture("A fox", 1, 320, 192));
        assert_ne!(one, picture("A fox", 2, 320, 192));
        assert_ne!(one, picture("A cat", 1, 320, 192));
        let decoded = image::load_from_memory(&one).expect("a PNG");
        assert_eq!((decoded.width(), decoded.height()), (320, 192));
        let sketched = sketch("A fox", 1, 320, 192);
        assert_eq!(sketched, sketch("A fox", 1, 320, 192));
        assert_ne!(sketched, sketch("A fox", 2, 320, 192));
    }

    #[test]
    fn every_scene_has_light_and_shade() {
        for prompt in
            ["A mountain", "A busy city street", "The open sea", "Desert dunes", "A deep forest", "A planet in space"]
        {
            let decoded = image::load_from_memory(&picture(prompt, 7, 320, 192)).expect("a PNG").into_luma8();
            let mean = decoded.iter().map(|v| f64::from(*v)).sum::<f64>() / f64::from(320 * 192);
            let spread = decoded.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / f64::from(320 * 192);
            assert!(spread.sqrt() > 12.0, "{prompt}: {}", spread.sqrt());
        }
    }
}
