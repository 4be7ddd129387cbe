//! Renders landscapes that differ by prompt and seed and show their prompt.

mod canvas;
mod caption;
mod noise;
mod scene;

use std::io::Cursor;

use sha2::{Digest, Sha256};

use canvas::{Canvas, Colour};
use noise::SplitMix64;

/// Standard deviation of the blur of filtered images, in pixels.
const BLUR_SIGMA: f32 = 24.0;

/// Renders a scene for `prompt` as PNG. The same prompt, seed and size always give the same bytes.
pub(crate) fn render_scene(prompt: &str, seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = Canvas::new(width as usize, height as usize);
    scene::paint(&mut canvas, prompt, seeded_rng(prompt, seed));
    caption::draw(&mut canvas, prompt, &format!("sandbox   seed {seed}   {width}x{height}"));
    canvas.into_png(prompt)
}

/// Like [`render_scene`], but a gradient of two colours, which is faster.
#[expect(clippy::cast_precision_loss, reason = "image dimensions are small")]
pub(crate) fn render_sketch(prompt: &str, seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = Canvas::new(width as usize, height as usize);
    let mut rng = seeded_rng(prompt, seed);
    let mut colour = || Colour(rng.between(0.3, 1.0), rng.between(0.3, 1.0), rng.between(0.3, 1.0));
    let (top, bottom) = (colour(), colour().scale_brightness(0.4));
    for y in 0..canvas.height {
        let colour = top.mix(bottom, y as f32 / height as f32);
        for x in 0..canvas.width {
            canvas.set_pixel(x, y, colour);
        }
    }
    caption::draw(&mut canvas, prompt, &format!("sketch   seed {seed}   {width}x{height}"));
    canvas.into_png(prompt)
}

/// Like [`render_scene`], but blurred beyond recognition, as the API does with filtered images.
pub(crate) fn render_blurred(prompt: &str, seed: u32, width: u32, height: u32) -> Vec<u8> {
    let mut canvas = Canvas::new(width as usize, height as usize);
    scene::paint(&mut canvas, prompt, seeded_rng(prompt, seed));
    canvas.blur(BLUR_SIGMA);
    canvas.into_png(prompt)
}

fn seeded_rng(prompt: &str, seed: u32) -> SplitMix64 {
    let digest = Sha256::new().chain_update(prompt).chain_update(seed.to_le_bytes()).finalize();
    SplitMix64::new(u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes")))
}

/// Renders an image of one colour.
pub(crate) fn render_blank(width: u32, height: u32) -> Vec<u8> {
    Canvas::new(width as usize, height as usize).into_png("")
}

/// The prompt of an image that this sandbox painted, if the file is a PNG.
pub(crate) fn read_prompt(file: &[u8]) -> Option<String> {
    let reader = png::Decoder::new(Cursor::new(file)).read_info().ok()?;
    let text = reader.info().utf8_text.iter().find(|text| text.keyword == canvas::PROMPT_KEYWORD)?;
    text.get_text().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_differ_by_prompt_and_seed_and_are_reproducible() {
        let one = render_scene("A fox", 1, 320, 192);
        assert_eq!(one, render_scene("A fox", 1, 320, 192));
        assert_ne!(one, render_scene("A fox", 2, 320, 192));
        assert_ne!(one, render_scene("A cat", 1, 320, 192));
        let decoded = image::load_from_memory(&one).expect("a PNG");
        assert_eq!((decoded.width(), decoded.height()), (320, 192));
        let blurred = render_blurred("A fox", 1, 320, 192);
        for file in [&one, &blurred] {
            assert_eq!(read_prompt(file).as_deref(), Some("A fox"));
        }
        let sketch = render_sketch("A fox", 1, 320, 192);
        assert_eq!(sketch, render_sketch("A fox", 1, 320, 192));
        assert_ne!(sketch, render_sketch("A fox", 2, 320, 192));
    }

    #[test]
    fn every_scene_has_contrast() {
        for prompt in
            ["A mountain", "A busy city street", "The open sea", "Desert dunes", "A deep forest", "A planet in space"]
        {
            let decoded = image::load_from_memory(&render_scene(prompt, 7, 320, 192)).expect("a PNG").into_luma8();
            let mean = decoded.iter().map(|v| f64::from(*v)).sum::<f64>() / f64::from(320 * 192);
            let spread = decoded.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / f64::from(320 * 192);
            assert!(spread.sqrt() > 12.0, "{prompt}: {}", spread.sqrt());
        }
    }
}
