//! Test 9: generates three images with the built program and the real API, which costs money.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::{env_var, print_status, programs};

/// Descriptions of test 9.
const DESCRIPTIONS: [&str; 3] =
    ["A beautiful sunset over mountains", "A busy city street at night", "A peaceful beach with palm trees"];
const STYLE_MODIFIERS: [&str; 2] = ["cinematic lighting", "4k quality"];
/// Enough for three images of some seconds each, with all retries.
const GENERATE_TIMEOUT: Duration = Duration::from_mins(10);

/// Generates and checks the images if `STABILITY_API_KEY` is set; otherwise prints that it is not set.
///
/// # Errors
///
/// If an image is not generated or fails a check.
pub async fn run() -> Result<()> {
    if env_var("STABILITY_API_KEY").is_none() {
        print_status("STABILITY_API_KEY is not set: no image was generated");
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("live-").tempdir_in(programs::target_folder()?)?;
    let config =
        json!({"style_modifiers": STYLE_MODIFIERS, "negative_prompt": "blurry, low quality", "min_success_rate": 1.0});
    let mut command = Command::new(programs::find("asset-worker")?);
    command
        .args(["generate", "--json", "--config", &config.to_string()])
        .args(DESCRIPTIONS)
        .current_dir(folder.path())
        .env_remove("DATABASE_URL")
        .env_remove("ASSET_STORAGE_URL")
        // A failure must not be hidden by another attempt.
        .env("WORKER_JOB_MAX_ATTEMPTS", "1")
        .env("LOG_FORMAT", "text")
        .kill_on_drop(true);
    let output = timeout(GENERATE_TIMEOUT, command.output()).await.context("asset-worker generate timed out")??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "asset-worker generate failed: {}\n{log}", output.status);
    ensure!(!log.contains("rate limit exceeded"), "the API's rate limit was exceeded:\n{log}");
    let event: Value =
        serde_json::from_slice(&output.stdout).context("asset-worker generate printed no valid event")?;
    let assets = event["data"]["assets"].as_array().context("the event lists no assets")?;
    ensure!(assets.len() == DESCRIPTIONS.len(), "{} images instead of {}", assets.len(), DESCRIPTIONS.len());
    for (asset, description) in assets.iter().zip(DESCRIPTIONS) {
        check_asset(asset, description, folder.path())?;
    }
    print_status(&format!(
        "{} images of 1920x1080 were generated for about USD {}",
        assets.len(),
        event["data"]["cost_usd"]
    ));
    Ok(())
}

fn check_asset(asset: &Value, description: &str, folder: &Path) -> Result<()> {
    let prompt = asset["prompt"].as_str().unwrap_or_default();
    ensure!(prompt == format!("{description}, {}", STYLE_MODIFIERS.join(", ")), "unexpected prompt {prompt:?}");
    let path = folder.join("data/assets").join(asset["file_path"].as_str().unwrap_or_default());
    let size = image::image_dimensions(&path).with_context(|| format!("{} is not an image", path.display()))?;
    ensure!(size == (1920, 1080), "{} measures {size:?} instead of 1920x1080", path.display());
    let bytes = path.metadata()?.len();
    ensure!(bytes < 10 * 1024 * 1024, "{} has {bytes} bytes, but must be smaller than 10 MiB", path.display());
    Ok(())
}
