//! Unusable images, and the metadata embedded in good ones.

use anyhow::{Context, Result};
use integration_tests::{TestEnv, assert_files, command, failure_codes};
use serde_json::{Value, json};

/// Test 6 of the task document, end to end: images from the API are checked before they are stored.
#[tokio::test]
async fn test_6_unusable_image_is_requested_once_more_then_fails() -> Result<()> {
    let env = TestEnv::new().await?;
    let descriptions =
        ["One [fault:blank]", "Two [fault:blank x1]", "Three [fault:corrupt]", "Four [fault:corrupt x1]", "Five"];
    let done = env.generate(&command(1, &descriptions, &json!({"min_success_rate": 0.6}))).await?;
    assert_eq!(done.log.matches("image unusable, requesting it once more").count(), 4, "{}", done.log);
    let data = done.expect_data("completed")?;
    assert_files(&env, &data, &[2, 4, 5])?;
    assert_eq!(failure_codes(&data), ["invalid_image", "invalid_image"]);
    let message = data["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("image of a single colour"), "{message}");
    let ledger = env.sandbox.ledger();
    for one in ["One", "Two", "Three", "Four"] {
        assert_eq!((ledger.prompt_counts(one).requests, ledger.prompt_counts(one).charged), (2, 2), "{one}");
    }
    assert_eq!(data["cost_usd"], json!(0.18), "nine images were paid for");
    assert_eq!(std::fs::read_dir(env.stored_path("projects/1/assets"))?.count(), 3);
    Ok(())
}

#[tokio::test]
async fn unusable_image_is_not_requested_again_without_retries() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_RETRY_DELAYS", "none");
    let data = env.generate(&command(1, &["One [fault:blank]"], &json!({}))).await?.expect_data("failed")?;
    assert_eq!((failure_codes(&data), env.sandbox.ledger().requests), (vec!["invalid_image".to_owned()], 1));
    Ok(())
}

#[tokio::test]
async fn blurred_image_is_rejected_only_with_a_sharpness_threshold() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let descriptions = ["A fox [fault:blurred]", "A busy city street"];
    let config = json!({"min_success_rate": 0.5, "cache": "never"});
    let data = env.generate(&command(1, &descriptions, &config)).await?.expect_data("completed")?;
    assert_files(&env, &data, &[1, 2])?;
    env.set("IMAGE_MIN_SHARPNESS", "20");
    let data = env.generate(&command(2, &descriptions, &config)).await?.expect_data("completed")?;
    assert_files(&env, &data, &[2])?;
    assert_eq!(failure_codes(&data), ["invalid_image"]);
    let message = data["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("blurred image: sharpness ") && message.ends_with("expected at least 20.0"),
        "{message}"
    );
    Ok(())
}

#[tokio::test]
async fn metadata_is_embedded_in_png_and_jpeg() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.write_phrase_book(&json!({"一隻狐狸": "A fox"}))?;
    let config = json!({"seed": 7, "style_modifiers": ["4k"], "negative_prompt": "blurry", "style_preset": "anime"});
    for (format, max_bytes) in [("png", "10485760"), ("jpeg", "1000000")] {
        env.set("IMAGE_MAX_BYTES", max_bytes);
        let order = command(42, &["A bear", "一隻狐狸"], &config);
        let data = env.generate(&order).await?.expect_data("completed")?;
        let asset = &data["assets"][1];
        assert_eq!(asset["format"], format);
        let file = env.stored_path(asset["file_path"].as_str().context("file_path is missing")?);
        let file = file.to_str().context("the path is not UTF-8")?;
        let found: Value = serde_json::from_slice(&env.run(&["inspect", "--json", file]).await?.stdout)?;
        assert_eq!(
            (&found["format"], &found["width"], &found["sha256"]),
            (&json!(format), &json!(1920), &asset["sha256"])
        );
        let job_id = order["job_id"].as_str().context("job_id is missing")?;
        let software = format!("asset-worker {}", env!("CARGO_PKG_VERSION"));
        let expected = json!({
            "job_id": job_id, "project_id": 42, "index": 2, "description": "一隻狐狸", "english": "A fox",
            "prompt": "A fox, 4k", "negative_prompt": "blurry", "engine": "stable-diffusion-xl-1024-v1-0",
            "style_preset": "anime", "cfg_scale": 8.0, "steps": 40, "asked_seed": 8, "seed": 8, "software": software,
        });
        assert_eq!(found["metadata"], expected);
        let text = |keyword: &str| {
            let texts = found["texts"].as_array().map(Vec::as_slice).unwrap_or_default();
            texts.iter().find(|text| text["keyword"] == keyword).map(|text| text["text"].clone()).unwrap_or_default()
        };
        assert_eq!(text("Title"), "Project 42, image 2");
        assert_eq!(text("Description"), "一隻狐狸");
        assert_eq!(text("Software"), software);
        let parameters = text("parameters");
        let parameters = parameters.as_str().context("the text `parameters` is missing")?;
        assert!(
            parameters.starts_with("A fox, 4k\nNegative prompt: blurry\nSteps: 40, CFG scale: 8, Seed: 8, "),
            "{parameters}"
        );
        let shown = String::from_utf8_lossy(&env.run(&["inspect", file]).await?.stdout).into_owned();
        for expected in [job_id, "一隻狐狸", "A fox, 4k", "anime", &software] {
            assert!(shown.contains(expected), "{expected} is not in {shown}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn inspect_accepts_foreign_images_and_refuses_other_files() -> Result<()> {
    let mut env = TestEnv::new().await?;
    // `inspect` works with invalid settings too.
    env.set("DATABASE_URL", "nonsense");
    let stranger = env.folder().join("stranger.png");
    image::RgbImage::new(8, 8).save(&stranger)?;
    let output = env.run(&["inspect", stranger.to_str().context("the path is not UTF-8")?]).await?;
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("metadata        none"));
    std::fs::write(env.folder().join("note.txt"), "a note")?;
    for (file, reason) in [("note.txt", "wrong format"), ("gone.png", "cannot be read")] {
        let output = env.run(&["inspect", file]).await?;
        assert_eq!(output.status.code(), Some(64), "{file}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(file) && text.contains(reason), "{text}");
    }
    Ok(())
}
