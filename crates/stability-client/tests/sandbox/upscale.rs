//! The fast upscaler: client and sandbox keep the same limits, and a failed request is retried like any other.

use std::io::Cursor;
use std::time::Duration;

use image::{ImageFormat, RgbImage};
use reqwest::multipart::{Form, Part};
use stability_client::{FastUpscale, InvalidRequest, OutputFormat, ResponseFormat};
use stability_sandbox::faults::FaultSpec;
use stability_sandbox::{Sandbox, Settings};

use super::{builder, client, sandbox};

fn encode(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    RgbImage::new(width, height).write_to(&mut file, format).expect("writing to memory");
    file.into_inner()
}

fn request(width: u32, height: u32) -> Result<FastUpscale, InvalidRequest> {
    FastUpscale::new(encode(width, height, ImageFormat::Png))
}

/// Whether the sandbox takes a file that does not come from the client.
async fn is_taken(sandbox: &Sandbox, file: Vec<u8>) -> bool {
    let http = reqwest::Client::builder().timeout(Duration::from_mins(1)).build().expect("an HTTP client");
    let url = format!("{}v2beta/stable-image/upscale/fast", sandbox.base_url());
    let form = Form::new().part("image", Part::bytes(file).file_name("image"));
    let request = http.post(url).bearer_auth("sk-sandbox").header("accept", "image/*").multipart(form);
    request.send().await.expect("the sandbox responds").status().is_success()
}

#[tokio::test]
async fn each_format_is_returned_four_times_as_large() {
    let sandbox = sandbox().await;
    for (sent, asked, form) in [
        (ImageFormat::Png, OutputFormat::Jpeg, ResponseFormat::Image),
        (ImageFormat::Jpeg, OutputFormat::Webp, ResponseFormat::Image),
        (ImageFormat::WebP, OutputFormat::Png, ResponseFormat::Json),
    ] {
        let client = builder(&sandbox, "sk-sandbox").response_format(form).build().expect("a client");
        let request = FastUpscale::new(encode(64, 40, sent)).expect("a valid image").output_format(asked);
        let upscaled = client.upscale(&request).await.expect("an image");
        assert_eq!((upscaled.usage.requests, upscaled.usage.images), (1, 1));
        let image = image::load_from_memory(&upscaled.into_first().bytes).expect("an image");
        assert_eq!((image.width(), image.height()), (256, 160), "{asked}");
    }
    let ledger = sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged, ledger.upscaled), (3, 0, 3));
}

/// The limits of the reference: sides of 32 to 1536, at most 1,048,576 pixels, PNG, JPEG or WebP.
#[tokio::test]
async fn client_and_sandbox_take_the_same_images() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sandbox = Sandbox::start(Settings { limit: 1_000, ..Settings::default() }).await.expect("a free port");
    let check = async |file: Vec<u8>, expected: bool, what: &str| {
        assert_eq!(FastUpscale::new(file.clone()).is_ok(), expected, "client, {what}");
        assert_eq!(is_taken(&sandbox, file).await, expected, "sandbox, {what}");
    };
    for (width, height, expected) in [
        (32, 32, true),
        (31, 32, false),
        (32, 31, false),
        (1_536, 32, true),
        (1_537, 32, false),
        (32, 1_537, false),
        (1_024, 1_024, true),
        (1_025, 1_024, false),
        (1_344, 768, true),
    ] {
        check(encode(width, height, ImageFormat::Png), expected, &format!("{width}x{height}")).await;
    }
    check(b"GIF89a\x40\0\x40\0\x80\0\0".to_vec(), false, "GIF").await;
    check(b"\x89PNG\r\n\x1a\n".to_vec(), false, "PNG without a header").await;
    check(Vec::new(), false, "no bytes").await;
}

#[test]
fn refused_image_is_named_with_the_limit() {
    let refused = |width, height| request(width, height).expect_err("the size is refused").to_string();
    assert_eq!(refused(31, 64), "image: 31x64 pixels is not allowed; sides of 32 to 1536 pixels");
    assert_eq!(refused(1_536, 700), "image: 1536x700 pixels is not allowed; at most 1048576 pixels in all");
}

#[tokio::test]
async fn failed_upscale_is_retried_and_paid_once() {
    let sandbox = sandbox().await;
    for fault in ["status=500", "corrupt", "status=429:1"] {
        let spec = FaultSpec { fault: fault.to_owned(), times: Some(1), prompt_contains: None };
        sandbox.inject_fault(spec).expect("a known fault");
    }
    let client = builder(&sandbox, "sk-sandbox").build().expect("a client");
    let upscaled = client.upscale(&request(64, 64).expect("a valid image")).await.expect("the fourth request succeeds");
    // The damaged image was charged too.
    assert_eq!((upscaled.usage.requests, upscaled.usage.possibly_charged, upscaled.usage.retries), (4, 2, 3));
    assert_eq!(sandbox.ledger().upscaled, 2);
}

#[tokio::test]
async fn upscale_without_credits_is_refused() {
    let sandbox = sandbox().await;
    sandbox.set_credits(1.9);
    let failure = client(&sandbox, "sk-sandbox").upscale(&request(64, 64).expect("a valid image")).await;
    let failure = failure.expect_err("two credits are needed");
    assert_eq!((failure.error.kind(), failure.usage.possibly_charged), ("insufficient_credits", 0));
}
