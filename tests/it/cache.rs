//! Cached images: fallback when the API fails, or used instead of a request.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use integration_tests::{Database, TestEnv, assert_files, command, failure_codes};
use serde_json::{Value, json};

#[tokio::test]
async fn test_8_cached_image_replaces_failed_request_on_sqlite() -> Result<()> {
    cached_image_replaces_failed_request(Database::Sqlite).await
}

#[tokio::test]
async fn test_8_cached_image_replaces_failed_request_on_postgres() -> Result<()> {
    cached_image_replaces_failed_request(Database::Postgres).await
}

/// Test 8: a cached image replaces one whose request failed.
async fn cached_image_replaces_failed_request(database: Database) -> Result<()> {
    let env = TestEnv::with_database(database).await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(42, &["A beautiful sunset"], &json!({}))).await?;
    let first = events.wait_for_data("completed").await?;
    env.inject_fault("status=500", None)?;
    let second = command(42, &["A beautiful sunset"], &json!({}));
    producer.publish(&second).await?;
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1])?;
    assert_eq!((&data["from_cache"], &data["succeeded"], &data["cost_usd"]), (&json!(1), &json!(1), &json!(0.0)));
    let (made, stood_in) = (&first["assets"][0], &data["assets"][0]);
    assert_eq!((&stood_in["origin"], &made["origin"]), (&json!("cache"), &json!("generated")));
    for same in ["sha256", "seed", "prompt", "size_bytes"] {
        assert_eq!(stood_in[same], made[same], "{same}");
    }
    let job_id = second["job_id"].as_str().context("job_id is missing")?;
    assert_eq!(stood_in["file_path"], format!("projects/42/assets/image_001-{job_id}.png"));
    // A hard link to the same file, not a copy.
    let inode = |asset: &Value| -> Result<u64> {
        Ok(std::fs::metadata(env.stored_path(asset["file_path"].as_str().context("file_path is missing")?))?.ino())
    };
    assert_eq!(inode(made)?, inode(stood_in)?);
    worker.wait_for_log("cached image used as fallback").await?;
    let log = worker.log();
    let line =
        log.lines().find(|line| line.contains("cached image used as fallback")).context("the log line is missing")?;
    let line: Value = serde_json::from_str(line)?;
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["job.id"], job_id);
    assert_eq!((&line["image.index"], &line["code"]), (&json!(1), &json!("provider_unavailable")));
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("500")), "{line}");
    Ok(())
}

/// Generates an image, then makes every API request fail.
async fn generate_then_fail_api(env: &TestEnv, config: &Value) -> Result<Value> {
    let made = env.generate(&command(1, &["A fox"], config)).await?.expect_data("completed")?;
    env.inject_fault("status=500", None)?;
    Ok(made)
}

#[tokio::test]
async fn disabled_cache_or_other_parameters_are_a_cache_miss() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    generate_then_fail_api(&env, &json!({"steps": 30})).await?;
    for config in [
        json!({"steps": 30, "cache": "never"}),
        json!({"steps": 31}),
        json!({"steps": 30, "cfg_scale": 7.0}),
        json!({"steps": 30, "seed": 7}),
        json!({"steps": 30, "negative_prompt": "people"}),
        json!({"steps": 30, "style_preset": "anime"}),
        json!({"steps": 30, "style_modifiers": []}),
    ] {
        let data = env.generate(&command(1, &["A fox"], &config)).await?.expect_data("failed")?;
        assert_eq!(failure_codes(&data), ["provider_unavailable"], "{config}");
    }
    let data = env.generate(&command(1, &["A fox"], &json!({"steps": 30}))).await?.expect_data("completed")?;
    assert_eq!(data["from_cache"], 1);
    env.set("IMAGE_WIDTH", "1280");
    let data = env.generate(&command(1, &["A fox"], &json!({"steps": 30}))).await?.expect_data("failed")?;
    assert_eq!(failure_codes(&data), ["provider_unavailable"], "another target size is a cache miss");
    Ok(())
}

#[tokio::test]
async fn missing_or_damaged_cached_file_is_a_cache_miss() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let made = generate_then_fail_api(&env, &json!({})).await?;
    let file = env.stored_path(made["assets"][0]["file_path"].as_str().context("file_path is missing")?);
    let whole = std::fs::read(&file)?;
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let outcome = async |expected: &str| env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data(expected);
    std::fs::write(&file, &damaged)?;
    assert_eq!(failure_codes(&outcome("failed").await?), ["provider_unavailable"]);
    std::fs::write(&file, &whole[..middle])?;
    assert_eq!(failure_codes(&outcome("failed").await?), ["provider_unavailable"]);
    std::fs::remove_file(&file)?;
    assert_eq!(failure_codes(&outcome("failed").await?), ["provider_unavailable"]);
    std::fs::write(&file, &whole)?;
    let stood_in = outcome("completed").await?;
    assert_eq!(stood_in["from_cache"], 1);
    // A file that came from the cache is itself a source for later jobs, even when the original is removed.
    std::fs::remove_file(&file)?;
    assert_eq!(outcome("completed").await?["assets"][0]["sha256"], made["assets"][0]["sha256"]);
    Ok(())
}

#[tokio::test]
async fn cache_prefer_uses_cached_images_without_requests() -> Result<()> {
    let env = TestEnv::new().await?;
    let descriptions = ["A fox", "A bear", "An owl"];
    env.generate(&command(1, &descriptions, &json!({}))).await?.expect_data("completed")?;
    assert_eq!(env.sandbox.ledger().requests, 3);
    let prefer = json!({"cache": "prefer", "max_cost_usd": 0.0});
    let all = env.generate(&command(2, &descriptions, &prefer)).await?.expect_data("completed")?;
    assert_files(&env, &all, &[1, 2, 3])?;
    assert_eq!((&all["from_cache"], &all["cost_usd"]), (&json!(3), &json!(0.0)));
    assert_eq!(env.sandbox.ledger().requests, 3, "all images are cached: no request is sent");
    // Only images that are not cached are requested and paid for.
    let prefer = json!({"cache": "prefer", "max_cost_usd": 0.02});
    let some = env.generate(&command(3, &["A bear", "A wolf"], &prefer)).await?.expect_data("completed")?;
    assert_eq!((&some["from_cache"], &some["cost_usd"]), (&json!(1), &json!(0.02)));
    assert_eq!(env.sandbox.ledger().requests, 4);
    Ok(())
}

#[tokio::test]
async fn cached_images_count_as_successes_and_are_counted_separately() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    env.generate(&command(1, &["A fox", "A bear"], &json!({}))).await?.expect_data("completed")?;
    env.inject_fault("status=500", Some("fox"))?;
    env.inject_fault("status=500", Some("bear"))?;
    env.inject_fault("status=500", Some("wolf"))?;
    let descriptions = ["A fox", "A bear", "A wolf", "An owl", "A cat"];
    let data = env.generate(&command(1, &descriptions, &json!({}))).await?.expect_data("completed")?;
    let counts = ["total", "succeeded", "failed", "from_cache", "success_rate"].map(|key| data[key].clone());
    assert_eq!(json!(counts), json!([5, 4, 1, 2, 0.8]));
    assert_files(&env, &data, &[1, 2, 4, 5])?;
    Ok(())
}

#[tokio::test]
async fn job_completes_from_cache_without_its_engine() -> Result<()> {
    let env = TestEnv::new().await?;
    let descriptions = ["A fox", "A bear", "An owl", "A cat", "A wolf"];
    env.generate(&command(1, &descriptions, &json!({}))).await?.expect_data("completed")?;
    env.inject_fault("status=404", None)?;
    let before = env.sandbox.ledger().requests;
    let config = json!({"max_concurrent": 1});
    let data = env.generate(&command(1, &descriptions, &config)).await?.expect_data("completed")?;
    assert_eq!(data["from_cache"], 5);
    assert_eq!(env.sandbox.ledger().requests, before + 1, "one refused request is enough");
    Ok(())
}

/// Four requests are in flight and all images are cached: no new request or retry may start after the refusal.
#[tokio::test]
async fn fatal_error_stops_other_requests_before_cache_is_used() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_RETRY_DELAYS", "4m");
    let descriptions: Vec<String> = (1..=12).map(|number| format!("Picture {number}")).collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    env.sandbox.set_sketch(true);
    env.generate(&command(1, &descriptions, &json!({}))).await?.expect_data("completed")?;
    let before = env.sandbox.ledger().requests;
    env.inject_fault("status=404", None)?;
    let data = env.generate(&command(1, &descriptions, &json!({}))).await?.expect_data("completed")?;
    assert_eq!(data["from_cache"], 12);
    let sent = env.sandbox.ledger().requests - before;
    assert!(sent <= 4, "{sent} requests: more than were in flight when the first was refused");
    Ok(())
}

#[tokio::test]
async fn content_policy_refusal_is_not_replaced_from_cache() -> Result<()> {
    let env = TestEnv::new().await?;
    env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    env.inject_fault("filtered", None)?;
    let data = env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("failed")?;
    assert_eq!(failure_codes(&data), ["content_policy"]);
    Ok(())
}

#[tokio::test]
async fn cached_image_must_pass_current_quality_check() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let job = command(1, &["A fox [fault:blurred]"], &json!({}));
    env.generate(&job).await?.expect_data("completed")?;
    env.set("IMAGE_MIN_SHARPNESS", "20");
    let data = env.generate(&command(1, &["A fox [fault:blurred]"], &json!({}))).await?.expect_data("failed")?;
    assert_eq!(failure_codes(&data), ["invalid_image"]);
    Ok(())
}
