//! Tests of the example programs, except for their argument parsing.

use stability_client::Engine;

use super::{client, sandbox};

#[path = "../../examples/account.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod account;
#[path = "../../examples/batch.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod batch;
#[path = "../../examples/generate.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod generate;
#[path = "../../examples/upscale.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod upscale;

#[tokio::test]
async fn account_example_reports_readiness() {
    let sandbox = sandbox().await;
    let client = client(&sandbox, "sk-sandbox");
    sandbox.set_credits(12.0);
    let report = account::report(&client, Engine::Sdxl10).await.expect("the account is ready");
    assert_eq!(report, "12.0 credits left; stable-diffusion-xl-1024-v1-0 is available");
    sandbox.set_credits(0.0);
    let error = account::report(&client, Engine::Core).await.expect_err("no credits").to_string();
    assert!(error.starts_with("not ready: 0.0 credits left; core has an API version"), "{error}");
}

#[tokio::test]
async fn generate_example_writes_an_image() {
    let sandbox = sandbox().await;
    let file = std::env::temp_dir().join(format!("stability-client-example-{}.png", std::process::id()));
    let client = client(&sandbox, "sk-sandbox");
    let printed =
        generate::generate_to_file(&client, Engine::Ultra, "A lighthouse at dusk", &file).await.expect("an image");
    assert!(printed.contains("1 requests"), "{printed}");
    let picture = image::open(&file).expect("an image");
    std::fs::remove_file(&file).expect("the file exists");
    assert!(picture.width() > picture.height());
}

#[tokio::test]
async fn batch_example_reports_images_and_failures() {
    let sandbox = sandbox().await;
    let prompts = ["A fox", "A gory bear", "An owl"].map(str::to_owned);
    let mut lines =
        batch::generate_all(&client(&sandbox, "sk-sandbox"), prompts.into_iter()).await.expect("good prompts");
    lines.sort();
    assert!(lines[0].starts_with("A fox: ") && lines[0].ends_with(" bytes"), "{lines:?}");
    assert!(lines[1].starts_with("A gory bear: the prompt is refused by content policy"), "{lines:?}");
    assert_eq!(sandbox.ledger().charged, 2);
}

#[tokio::test]
async fn upscale_example_writes_a_larger_image() {
    let sandbox = sandbox().await;
    let client = client(&sandbox, "sk-sandbox");
    let file = |name: &str| std::env::temp_dir().join(format!("stability-client-{}-{name}", std::process::id()));
    let (small, large) = (file("small.png"), file("large.jpg"));
    image::RgbImage::new(64, 48).save(&small).expect("a writable folder");
    let printed = upscale::upscale_file(&client, &small, &large).await.expect("an image");
    assert!(printed.ends_with(" bytes of jpeg, 2 credits"), "{printed}");
    let upscaled = image::open(&large).expect("an image");
    assert_eq!((upscaled.width(), upscaled.height()), (256, 192));
    for file in [small, large] {
        std::fs::remove_file(file).expect("the file exists");
    }
}
