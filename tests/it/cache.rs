//! Images made before that stand in.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use integration_tests::{Database, World, assert_files, codes, command};
use serde_json::{Value, json};

#[tokio::test]
async fn test_8_a_cached_image_stands_in_where_the_api_fails_on_sqlite() -> Result<()> {
    test_8(Database::Sqlite).await
}

#[tokio::test]
async fn test_8_a_cached_image_stands_in_where_the_api_fails_on_postgres() -> Result<()> {
    test_8(Database::Postgres).await
}

/// Test 8.
async fn test_8(database: Database) -> Result<()> {
    let world = World::with(database).await?;
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(42, &["A beautiful sunset"], &json!({}))).await?;
    let first = events.data_of("completed").await?;
    world.order("status=500", None)?;
    let second = command(42, &["A beautiful sunset"], &json!({}));
    producer.publish(&second).await?;
    let data = events.data_of("completed").await?;
    assert_files(&world, &data, &[1])?;
    assert_eq!((&data["from_cache"], &data["succeeded"], &data["cost_usd"]), (&json!(1), &json!(1), &json!(0.0)));
    let (made, stood_in) = (&first["assets"][0], &data["assets"][0]);
    assert_eq!((&stood_in["origin"], &made["origin"]), (&json!("cache"), &json!("generated")));
    for same in ["sha256", "seed", "prompt", "size_bytes"] {
        assert_eq!(stood_in[same], made[same], "{same}");
    }
    let job_id = second["job_id"].as_str().context("an id")?;
    assert_eq!(stood_in["file_path"], format!("projects/42/assets/image_001-{job_id}.png"));
    // A second name for the same file, not a second file.
    let inode = |asset: &Value| -> Result<u64> {
        Ok(std::fs::metadata(world.file(asset["file_path"].as_str().context("a path")?))?.ino())
    };
    assert_eq!(inode(made)?, inode(stood_in)?);
    worker.has_logged("an image made before stands in").await?;
    let log = worker.log();
    let line = log.lines().find(|line| line.contains("an image made before stands in")).context("the line")?;
    let line: Value = serde_json::from_str(line)?;
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["job.id"], job_id);
    assert_eq!((&line["image.index"], &line["code"]), (&json!(1), &json!("provider_unavailable")));
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("500")), "{line}");
    Ok(())
}

/// Makes an image, and lets the API fail from then on.
async fn made_before(world: &World, config: &Value) -> Result<Value> {
    let made = world.generate(&command(1, &["A fox"], config)).await?.data_of("completed")?;
    world.order("status=500", None)?;
    Ok(made)
}

#[tokio::test]
async fn without_the_cache_or_with_other_parameters_nothing_stands_in() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    made_before(&world, &json!({"steps": 30})).await?;
    for config in [
        json!({"steps": 30, "cache": "never"}),
        json!({"steps": 31}),
        json!({"steps": 30, "cfg_scale": 7.0}),
        json!({"steps": 30, "seed": 7}),
        json!({"steps": 30, "negative_prompt": "people"}),
        json!({"steps": 30, "style_preset": "anime"}),
        json!({"steps": 30, "style_modifiers": []}),
    ] {
        let data = world.generate(&command(1, &["A fox"], &config)).await?.data_of("failed")?;
        assert_eq!(codes(&data), ["provider_unavailable"], "{config}");
    }
    let data = world.generate(&command(1, &["A fox"], &json!({"steps": 30}))).await?.data_of("completed")?;
    assert_eq!(data["from_cache"], 1);
    world.set("IMAGE_WIDTH", "1280");
    let data = world.generate(&command(1, &["A fox"], &json!({"steps": 30}))).await?.data_of("failed")?;
    assert_eq!(codes(&data), ["provider_unavailable"], "another finished size");
    Ok(())
}

#[tokio::test]
async fn a_cached_file_that_is_missing_or_damaged_is_not_a_hit() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let made = made_before(&world, &json!({})).await?;
    let file = world.file(made["assets"][0]["file_path"].as_str().context("a path")?);
    let whole = std::fs::read(&file)?;
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let outcome = async |expected: &str| world.generate(&command(1, &["A fox"], &json!({}))).await?.data_of(expected);
    std::fs::write(&file, &damaged)?;
    assert_eq!(codes(&outcome("failed").await?), ["provider_unavailable"]);
    std::fs::write(&file, &whole[..middle])?;
    assert_eq!(codes(&outcome("failed").await?), ["provider_unavailable"]);
    std::fs::remove_file(&file)?;
    assert_eq!(codes(&outcome("failed").await?), ["provider_unavailable"]);
    std::fs::write(&file, &whole)?;
    let stood_in = outcome("completed").await?;
    assert_eq!(stood_in["from_cache"], 1);
    // A stand-in is a source for the next one: the file it came from may go.
    std::fs::remove_file(&file)?;
    assert_eq!(outcome("completed").await?["assets"][0]["sha256"], made["assets"][0]["sha256"]);
    Ok(())
}

#[tokio::test]
async fn with_prefer_what_was_made_before_is_used_without_asking() -> Result<()> {
    let world = World::new().await?;
    let descriptions = ["A fox", "A bear", "An owl"];
    world.generate(&command(1, &descriptions, &json!({}))).await?.data_of("completed")?;
    assert_eq!(world.sandbox.ledger().requests, 3);
    let prefer = json!({"cache": "prefer", "max_cost_usd": 0.0});
    let all = world.generate(&command(2, &descriptions, &prefer)).await?.data_of("completed")?;
    assert_files(&world, &all, &[1, 2, 3])?;
    assert_eq!((&all["from_cache"], &all["cost_usd"]), (&json!(3), &json!(0.0)));
    assert_eq!(world.sandbox.ledger().requests, 3, "all cached: nothing was asked for");
    // Only what is not there is asked for, and paid.
    let prefer = json!({"cache": "prefer", "max_cost_usd": 0.02});
    let some = world.generate(&command(3, &["A bear", "A wolf"], &prefer)).await?.data_of("completed")?;
    assert_eq!((&some["from_cache"], &some["cost_usd"]), (&json!(1), &json!(0.02)));
    assert_eq!(world.sandbox.ledger().requests, 4);
    Ok(())
}

#[tokio::test]
async fn stand_ins_count_as_successes_and_are_counted_apart() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    world.generate(&command(1, &["A fox", "A bear"], &json!({}))).await?.data_of("completed")?;
    world.order("status=500", Some("fox"))?;
    world.order("status=500", Some("bear"))?;
    world.order("status=500", Some("wolf"))?;
    let descriptions = ["A fox", "A bear", "A wolf", "An owl", "A cat"];
    let data = world.generate(&command(1, &descriptions, &json!({}))).await?.data_of("completed")?;
    let counts = ["total", "succeeded", "failed", "from_cache", "success_rate"].map(|key| data[key].clone());
    assert_eq!(json!(counts), json!([5, 4, 1, 2, 0.8]));
    assert_files(&world, &data, &[1, 2, 4, 5])?;
    Ok(())
}

#[tokio::test]
async fn an_account_without_credits_is_bridged_where_all_was_made_before() -> Result<()> {
    let world = World::new().await?;
    let descriptions = ["A fox", "A bear", "An owl", "A cat", "A wolf"];
    world.generate(&command(1, &descriptions, &json!({}))).await?.data_of("completed")?;
    world.sandbox.set_credits(0.0);
    let before = world.sandbox.ledger().requests;
    let config = json!({"max_concurrent": 1});
    let data = world.generate(&command(1, &descriptions, &config)).await?.data_of("completed")?;
    assert_eq!(data["from_cache"], 5);
    assert_eq!(world.sandbox.ledger().requests, before + 1, "the first refusal is enough");
    Ok(())
}

/// With four in flight and pictures that stand in at once: nobody begins a new request or a retry meanwhile.
#[tokio::test]
async fn a_fatal_cause_stops_the_other_requests_before_anything_stands_in() -> Result<()> {
    let mut world = World::new().await?;
    world.set("STABILITY_RETRY_DELAYS", "4m");
    let descriptions: Vec<String> = (1..=12).map(|number| format!("Picture {number}")).collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    world.sandbox.set_sketch(true);
    world.generate(&command(1, &descriptions, &json!({}))).await?.data_of("completed")?;
    let before = world.sandbox.ledger().requests;
    world.order("status=401", None)?;
    let data = world.generate(&command(1, &descriptions, &json!({}))).await?.data_of("completed")?;
    assert_eq!(data["from_cache"], 12);
    let sent = world.sandbox.ledger().requests - before;
    assert!(sent <= 4, "{sent} requests: no more than were in flight when the first was refused");
    Ok(())
}

#[tokio::test]
async fn what_the_api_refuses_is_not_shown_from_the_cache() -> Result<()> {
    let world = World::new().await?;
    world.generate(&command(1, &["A fox"], &json!({}))).await?.data_of("completed")?;
    world.order("filtered", None)?;
    let data = world.generate(&command(1, &["A fox"], &json!({}))).await?.data_of("failed")?;
    assert_eq!(codes(&data), ["content_policy"]);
    Ok(())
}

#[tokio::test]
async fn a_cached_picture_is_looked_at_by_todays_rules() -> Result<()> {
    let mut world = World::new().await?;
    let job = command(1, &["A fox [fault:blurred]"], &json!({}));
    world.generate(&job).await?.data_of("completed")?;
    world.set("IMAGE_MIN_SHARPNESS", "20");
    let data = world.generate(&command(1, &["A fox [fault:blurred]"], &json!({}))).await?.data_of("failed")?;
    assert_eq!(codes(&data), ["invalid_image"]);
    Ok(())
}
