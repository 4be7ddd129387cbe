//! Photo-like images: scenes of the sandbox with the grain of real generations.

use std::io::Cursor;

use anyhow::{Context, Result};
use bytes::Bytes;
use image::RgbImage;
use integration_tests::API_KEY;
use stability_sandbox::{Sandbox, Settings};

/// Amplitude of the grain that all channels share, and of the grain of each channel. With them a PNG of 1344x768 pixels
/// has about 1.6 MB, as generations of SDXL have.
const GRAIN: (f32, f32) = (2.4, 1.0);

/// Paints this many different photos of 1344x768 pixels, as PNG.
///
/// # Errors
///
/// If the sandbox cannot be started.
pub async fn take(count: u64) -> Result<Vec<Bytes>> {
    let sandbox = Sandbox::start(Settings::default()).await?;
    let http = dev_services::http_client()?;
    let url = format!("{}v1/generation/stable-diffusion-xl-1024-v1-0/text-to-image", sandbox.base_url());
    let mut photos = Vec::new();
    for number in 1..=count {
        let request = serde_json::json!({
            "text_prompts": [{"text": format!("A landscape, number {number}")}], "width": 1344, "height": 768,
        });
        let sent = http.post(&url).bearer_auth(API_KEY).header("accept", "image/png").json(&request).send();
        let scene = sent.await?.error_for_status()?.bytes().await?;
        let mut photo = image::load_from_memory(&scene).context("the sandbox returns a PNG")?.into_rgb8();
        add_grain(&mut photo, number);
        let mut file = Cursor::new(Vec::new());
        photo.write_to(&mut file, image::ImageFormat::Png)?;
        photos.push(file.into_inner().into());
    }
    Ok(photos)
}

fn add_grain(photo: &mut RgbImage, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    // Nearly normal: the sum of four uniform numbers with a variance of 1.
    let mut normal = || (rng.f32() + rng.f32() + rng.f32() + rng.f32() - 2.0) * 3.0_f32.sqrt();
    for pixel in photo.pixels_mut() {
        let shared = normal() * GRAIN.0;
        for channel in &mut pixel.0 {
            let value = (f32::from(*channel) + shared + normal() * GRAIN.1).round().clamp(0.0, 255.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 255")]
            let byte = value as u8;
            *channel = byte;
        }
    }
}
