//! Test 9: three real images, for money, through the built program.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::{print_status, programs, variable};

/// Of test 9.
const DESCRIPTIONS: [&str; 3] =
    ["A beautiful sunset over mountains", "A busy city street at night", "A peaceful beach with palm trees"];
const STYLE_MODIFIERS: [&str; 2] = ["cinematic lighting", "4k quality"];
/// Three images of seconds each, with every retry.
const GENERATE_TIMEOUT: Duration = Duration::from_mins(10);

/// Makes the images where there is a key, and checks them; says so where there is none.
///
/// # Errors
///
/// Where an image was not made, or is not as it should be.
pub async fn run() -> Result<()> {
    if variable("STABILITY_API_KEY").is_none() {
        print_status("STABILITY_API_KEY is not set: nothing was run, and nothing was paid for");
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
        // What fails is to be seen now.
        .env("WORKER_JOB_MAX_ATTEMPTS", "1")
        .env("LOG_FORMAT", "text")
        .kill_on_drop(true);
    let output = timeout(GENERATE_TIMEOUT, command.output()).await.context("it takes too long")??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "asset-worker generate: {}\n{log}", output.status);
    ensure!(!log.contains("rate limit exceeded"), "the quota was exceeded:\n{log}");
    let event: Value = serde_json::from_slice(&output.stdout).context("it printed no event")?;
    let assets = event["data"]["assets"].as_array().context("the event lists no assets")?;
    ensure!(assets.len() == DESCRIPTIONS.len(), "{} images, not {}", assets.len(), DESCRIPTIONS.len());
    for (asset, description) in assets.iter().zip(DESCRIPTIONS) {
        check_asset(asset, description, folder.path())?;
    }
    print_status(&format!(
        "{} images of 1920x1080 were made, for about USD {}",
        assets.len(),
        event["data"]["cost_usd"]
    ));
    Ok(())
}

fn check_asset(asset: &Value, description: &str, folder: &Path) -> Result<()> {
    let prompt = asset["prompt"].as_str().unwrap_or_default();
    ensure!(prompt == format!("{description}, {}", STYLE_MODIFIERS.join(", ")), "the prompt is {prompt:?}");
    let path = folder.join("data/assets").join(asset["file_path"].as_str().unwrap_or_default());
    let size = image::image_dimensions(&path).with_context(|| format!("{} is no image", path.display()))?;
    ensure!(size == (1920, 1080), "{} measures {size:?}", path.display());
    let bytes = path.metadata()?.len();
    ensure!(bytes < 10 * 1024 * 1024, "{} has {bytes} bytes", path.display());
    Ok(())
}
