//! What the example programs do, but for reading their arguments.
#![allow(clippy::duplicate_mod, reason = "each example is a program of its own, and reads the environment alike")]

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

#[tokio::test]
async fn account_says_whether_the_account_is_ready() {
    let sandbox = sandbox().await;
    let client = client(&sandbox, "sk-sandbox");
    sandbox.set_credits(12.0);
    let report = account::report(&client, Engine::Sdxl10).await.expect("ready");
    assert_eq!(report, "12.0 credits are left; stable-diffusion-xl-1024-v1-0 is there");
    sandbox.set_credits(0.0);
    let error = account::report(&client, Engine::Core).await.expect_err("no credits").to_string();
    assert!(error.starts_with("not ready: 0.0 credits are left; core is of a family"), "{error}");
}

#[tokio::test]
async fn generate_writes_a_picture() {
    let sandbox = sandbox().await;
    let file = std::env::temp_dir().join(format!("stability-client-example-{}.png", std::process::id()));
    let client = client(&sandbox, "sk-sandbox");
    let said = generate::paint(&client, Engine::Ultra, "A lighthouse at dusk", &file).await.expect("a picture");
    assert!(said.contains("1 requests"), "{said}");
    let picture = image::open(&file).expect("a picture");
    std::fs::remove_file(&file).expect("the file is there");
    assert!(picture.width() > picture.height());
}

#[tokio::test]
async fn batch_makes_what_it_can_and_says_the_rest() {
    let sandbox = sandbox().await;
    let prompts = ["A fox", "A gory bear", "An owl"].map(str::to_owned);
    let mut lines = batch::paint_all(&client(&sandbox, "sk-sandbox"), prompts.into_iter()).await.expect("good prompts");
    lines.sort();
    assert!(lines[0].starts_with("A fox: ") && lines[0].ends_with(" bytes"), "{lines:?}");
    assert!(lines[1].starts_with("A gory bear: the prompt is refused by content policy"), "{lines:?}");
    assert_eq!(sandbox.ledger().charged, 2);
}
