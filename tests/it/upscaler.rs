//! The fast upscaler: paid and retried as a request of its own; if it fails, the image scaled by the worker remains.

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{TestEnv, WAIT_TIMEOUT, assert_files, command, metadata};
use serde_json::{Value, json};

/// A job of one image that is to be upscaled.
fn upscaled_job(description: &str, config: Value) -> Value {
    let mut config = config;
    config["upscaler"] = json!("fast");
    command(1, &[description], &config)
}

/// The metadata of the only image, as its row has it.
async fn only_metadata(env: &TestEnv) -> Result<Value> {
    let rows = env.query_rows("SELECT metadata FROM assets WHERE status = 'completed'").await?;
    assert_eq!(rows.len(), 1);
    Ok(metadata(&rows[0]))
}

/// The metadata embedded in the file of a job's only image.
async fn embedded_metadata(env: &TestEnv, data: &Value) -> Result<Value> {
    let path = env.stored_path(data["assets"][0]["file_path"].as_str().unwrap_or_default());
    let output = env.run(&["inspect", "--json", &path.display().to_string()]).await?;
    Ok(serde_json::from_slice::<Value>(&output.stdout)?["metadata"].clone())
}

#[tokio::test]
async fn upscaled_image_is_paid_for_as_two_requests() -> Result<()> {
    let env = TestEnv::new().await?;
    for (engine, cost_usd) in [("stable-diffusion-xl-1024-v1-0", 0.04), ("ultra", 0.1)] {
        // What one image costs with the upscaler.
        let job = upscaled_job("A fox", json!({"engine": engine, "cache": "never", "max_cost_usd": cost_usd}));
        let data = env.generate(&job).await?.expect_data("completed")?;
        assert_files(&env, &data, &[1])?;
        assert_eq!(data["cost_usd"], json!(cost_usd), "{engine}");
        let embedded = embedded_metadata(&env, &data).await?;
        assert_eq!((&embedded["upscaler"], &embedded["requested_upscaler"]), (&json!("fast"), &json!(null)));
    }
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged, ledger.upscaled), (4, 2, 2));
    let rows = env.query_rows("SELECT requests, charged FROM assets").await?;
    assert!(rows.iter().all(|row| row["requests"] == 2 && row["charged"] == 2), "{rows:?}");
    let spent = env.query_rows("SELECT requests, micro_usd FROM spending").await?;
    assert_eq!((&spent[0]["requests"], &spent[0]["micro_usd"]), (&json!(4), &json!(140_000)));
    Ok(())
}

#[tokio::test]
async fn failed_upscale_keeps_the_image_scaled_by_the_worker() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("STABILITY_RETRY_DELAYS", "0s,0s,0s");
    // Each fault with the number of requests to the upscaler, and of those that are charged.
    let faults = [
        ("status=500", 4, 0),
        ("status=400", 1, 0),
        ("status=404", 1, 0),
        ("status=429:1", 4, 0),
        ("filtered", 1, 1),
        ("corrupt", 2, 2),
        ("blank", 1, 1),
        ("wrong-size", 1, 1),
        ("bomb", 2, 2),
    ];
    for (fault, requests, charged) in faults {
        let description = format!("A fox [upscale-fault:{fault}]");
        let done = env.generate(&upscaled_job(&description, json!({"cache": "never"}))).await?;
        assert!(done.log.contains("image not upscaled"), "{fault}: {}", done.log);
        let data = done.expect_data("completed")?;
        let asset = &data["assets"][0];
        assert_eq!((&asset["width"], &asset["origin"]), (&json!(320), &json!("generated")), "{fault}");
        let embedded = embedded_metadata(&env, &data).await?;
        assert_eq!((&embedded["upscaler"], &embedded["requested_upscaler"]), (&json!(null), &json!("fast")), "{fault}");
        assert_eq!(data["cost_usd"], json!(f64::from(1 + charged) * 0.02), "{fault}");
        let counts = env.sandbox.ledger().prompt_counts(&description);
        assert_eq!((counts.charged, counts.upscale_requests, counts.upscaled), (1, requests, charged), "{fault}");
    }
    Ok(())
}

/// As after any other paid request. The image itself is kept.
#[tokio::test]
async fn refused_account_of_an_upscale_closes_the_gate() -> Result<()> {
    for status in [401, 402] {
        let mut env = TestEnv::new().await?;
        env.make_images_small();
        let description = format!("A fox [upscale-fault:status={status}]");
        let done = env.generate(&upscaled_job(&description, json!({}))).await?;
        assert!(done.log.contains("image not upscaled"), "{status}: {}", done.log);
        let data = done.expect_data("completed")?;
        assert_eq!(data["cost_usd"], json!(0.02), "{status}");
        let keys = env.query_rows("SELECT status FROM account_keys").await?;
        assert_eq!(keys[0]["status"], "refused", "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn upscale_that_times_out_counts_as_charged() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("STABILITY_TIMEOUT", "1s");
    env.set("STABILITY_RETRY_DELAYS", "0s");
    let job = upscaled_job("A fox [upscale-fault:slow=60000]", json!({}));
    let data = env.generate(&job).await?.expect_data("completed")?;
    assert_eq!(data["cost_usd"], json!(0.06), "one image, and two requests to the upscaler");
    assert_eq!(only_metadata(&env).await?["requested_upscaler"], "fast");
    Ok(())
}

#[tokio::test]
async fn transient_failure_of_the_upscaler_is_retried() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("STABILITY_RETRY_DELAYS", "0s,0s,0s");
    let job = upscaled_job("A fox [upscale-fault:status=503 x2]", json!({}));
    let data = env.generate(&job).await?.expect_data("completed")?;
    assert_eq!(data["cost_usd"], json!(0.04));
    assert_eq!(only_metadata(&env).await?["upscaler"], "fast");
    assert_eq!(env.sandbox.ledger().prompt_counts("A fox").upscale_requests, 3);
    Ok(())
}

#[tokio::test]
async fn images_that_exceed_the_upscaler_are_refused_before_any_request() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&upscaled_job("A fox", json!({"engine": "core"}))).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "invalid_request");
    let message = data["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("config.upscaler: \"fast\" is not allowed; lanczos"), "{message}");
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    // The same if the engine is the worker's default.
    env.set("STABILITY_ENGINE", "core");
    let data = env.generate(&upscaled_job("A fox", json!({}))).await?.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "invalid_request");
    let message = data["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("the fast upscaler does not take the images of core"), "{message}");
    assert_eq!(env.sandbox.ledger().requests, 0);
    Ok(())
}

#[tokio::test]
async fn cost_limits_count_the_upscaler() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let job = |config| upscaled_job("A fox", config);
    let data = env.generate(&job(json!({"max_cost_usd": 0.039}))).await?.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    env.set("STABILITY_CHECK_BALANCE", "true");
    env.sandbox.set_credits(3.9);
    let data = env.generate(&job(json!({}))).await?.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "insufficient_credits");
    assert_eq!(env.sandbox.ledger().requests, 0);
    // An image is not started if the day's budget pays for it, but not for its upscale.
    env.sandbox.set_credits(100.0);
    env.set("WORKER_DAILY_BUDGET_USD", "0.03");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    producer.publish(&job(json!({}))).await?;
    worker.wait_for_log("job attempt started").await?;
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(env.sandbox.ledger().requests, 0);
    env.set("WORKER_DAILY_BUDGET_USD", "0.04");
    let data = env.generate(&job(json!({}))).await?.expect_data("completed")?;
    assert_eq!(data["cost_usd"], json!(0.04));
    Ok(())
}

#[tokio::test]
async fn image_that_was_not_upscaled_is_no_cache_hit_for_one_that_is() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    // Of these jobs, each has the same prompt. The first is not upscaled because of the fault.
    let description = "A fox [upscale-fault:status=400 x1]";
    let upscaled = || upscaled_job(description, json!({"cache": "prefer"}));
    let plain = command(1, &[description], &json!({"cache": "prefer"}));
    for (job, from_cache, cost_usd) in
        [(upscaled(), 0, 0.02), (upscaled(), 0, 0.04), (upscaled(), 1, 0.0), (plain, 1, 0.0)]
    {
        let data = env.generate(&job).await?.expect_data("completed")?;
        assert_eq!((&data["from_cache"], &data["cost_usd"]), (&json!(from_cache), &json!(cost_usd)));
    }
    Ok(())
}

/// The image is stored before it is upscaled: only the request to the upscaler is lost with the worker.
#[tokio::test]
async fn worker_killed_while_upscaling_does_not_pay_for_the_image_again() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("WORKER_LEASE", "3s");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&upscaled_job("A fox [upscale-fault:slow=60000]", json!({}))).await?;
    let asked = async || (env.sandbox.ledger().upscaled == 1).then_some(());
    wait::wait_until("a request to the upscaler", WAIT_TIMEOUT, asked).await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    let worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["cost_usd"], json!(0.04), "the lost request may have been charged");
    let metadata = only_metadata(&env).await?;
    assert_eq!((&metadata["upscaler"], &metadata["requested_upscaler"]), (&json!(null), &json!("fast")));
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.charged, ledger.upscaled), (1, 1));
    worker.wait_for_log("image not upscaled").await
}

#[tokio::test]
async fn stopping_worker_still_upscales_the_image_in_flight() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let go_on = env.folder().join("go-on");
    env.set("ASSET_WORKER_PAUSE_AT", "before_upscale");
    env.set("ASSET_WORKER_PAUSE_UNTIL", go_on.display().to_string());
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&upscaled_job("A fox", json!({}))).await?;
    worker.wait_for_log("\"point\":\"before_upscale\"").await?;
    worker.signal(Signal::TERM);
    worker.wait_for_log("shutting down; no new image is started").await?;
    std::fs::write(go_on, "")?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["cost_usd"], json!(0.04));
    assert_eq!(only_metadata(&env).await?["upscaler"], "fast");
    worker.wait_for_exit().await?;
    Ok(())
}

#[tokio::test]
async fn worker_killed_after_upscaling_keeps_the_upscaled_image() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("WORKER_LEASE", "3s");
    env.set("ASSET_WORKER_PAUSE_AT", "before_row");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&upscaled_job("A fox", json!({}))).await?;
    worker.wait_for_log("\"point\":\"before_row\"").await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["cost_usd"], json!(0.04));
    assert_eq!(only_metadata(&env).await?["upscaler"], "fast");
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.charged, ledger.upscaled), (1, 1));
    Ok(())
}
