//! Tests `dev-services live`, which is `make test-live`, against the sandbox.

use std::process::Output;

use stability_sandbox::{Sandbox, Settings};
use tokio::process::Command;

async fn run_live(sandbox: &Sandbox, key: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dev-services"))
        .arg("live")
        .env("STABILITY_API_KEY", key)
        .env("STABILITY_BASE_URL", sandbox.base_url())
        .env("NO_PROXY", "127.0.0.1")
        .env_remove("RUST_LOG")
        .kill_on_drop(true)
        .output()
        .await
        .expect("dev-services can be started")
}

/// Test 9 of the task document, which `make test-live` runs against the real API; here it runs against the sandbox.
#[tokio::test]
async fn test_9_images_are_generated_only_with_an_api_key() {
    let sandbox = Sandbox::start(Settings::default()).await.expect("a free port");
    let stderr = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let without = run_live(&sandbox, "").await;
    assert!(without.status.success(), "{}", stderr(&without));
    assert!(stderr(&without).contains("STABILITY_API_KEY is not set: no image was generated"), "{}", stderr(&without));
    assert_eq!(sandbox.ledger().requests, 0);
    let with = run_live(&sandbox, "sk-sandbox").await;
    assert!(with.status.success(), "{}", stderr(&with));
    assert!(stderr(&with).contains("3 images of 1920x1080 were generated"), "{}", stderr(&with));
    assert_eq!(sandbox.ledger().charged, 3);
    assert_eq!(run_live(&sandbox, "sk-wrong").await.status.code(), Some(1));
}
