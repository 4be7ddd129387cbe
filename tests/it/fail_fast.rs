//! A job stops spending when its success rate cannot be reached or when every further request would fail.

use std::time::{Duration, Instant};

use anyhow::Result;
use dev_services::wait::wait_until;
use integration_tests::{TestEnv, WAIT_TIMEOUT, assert_files, command, failure_codes};
use serde_json::json;

/// A retry delay that no test waits out. The client starts no wait that ends after its limit of five minutes.
const LONG_RETRY_DELAY: &str = "4m";
/// Half of `LONG_RETRY_DELAY`: a job that takes longer has waited for a retry.
const MAX_ELAPSED: Duration = Duration::from_mins(2);

#[tokio::test]
async fn unreachable_success_rate_stops_further_requests() -> Result<()> {
    let env = TestEnv::new().await?;
    env.sandbox.set_latency(Duration::from_millis(300));
    let descriptions = ["Gore one", "Gore two", "Gore three", "D", "E", "F", "G", "H", "I", "J"];
    let data = env.generate(&command(1, &descriptions, &json!({"max_concurrent": 3}))).await?.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "success_rate_too_low");
    // The refusals arrive one by one, so two other images may be in flight at the third refusal. Those are kept.
    let ledger = env.sandbox.ledger();
    assert!(ledger.charged <= 2, "{ledger:?}");
    assert_eq!(data["succeeded"], ledger.charged);
    assert_eq!(ledger.requests, ledger.charged + 3, "each refused image sent one request");
    Ok(())
}

#[tokio::test]
async fn unreachable_success_rate_ends_waits_for_retries() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_RETRY_DELAYS", LONG_RETRY_DELAY);
    let begun = Instant::now();
    let descriptions = ["A busy one [fault:status=503]", "Gore one", "A", "B"];
    let data = env.generate(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?.expect_data("failed")?;
    assert!(begun.elapsed() < MAX_ELAPSED);
    assert_eq!(data["error"]["code"], "success_rate_too_low");
    assert_eq!(data["failures"][0]["code"], "not_attempted");
    assert_eq!(data["failures"][0]["attempts"], 1);
    assert_eq!(env.sandbox.ledger().prompt_counts("A busy one").requests, 1);
    Ok(())
}

#[tokio::test]
async fn fatal_error_ends_retry_waits_of_other_images() -> Result<()> {
    let begun = Instant::now();
    for (status, code) in [(401, "unauthorized"), (402, "insufficient_credits"), (404, "unknown_engine")] {
        let mut env = TestEnv::new().await?;
        env.set("STABILITY_RETRY_DELAYS", LONG_RETRY_DELAY);
        env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
        let descriptions = ["A busy one [fault:status=503]", &format!("Two [fault:status={status}]"), "Three", "Four"];
        let config = json!({"max_concurrent": 2, "cache": "never"});
        let data = env.generate(&command(1, &descriptions, &config)).await?.expect_data("failed")?;
        assert_eq!(data["error"]["code"], code);
        assert_eq!(failure_codes(&data), ["not_attempted"; 4], "{code}");
        // If the fatal error arrives before the first image's request is sent, that request is never sent.
        assert_eq!(data["failures"][1]["attempts"], 1, "{code}");
        assert!(data["failures"][0]["attempts"].as_u64() <= Some(1), "{code}: {data}");
        assert_eq!(env.sandbox.ledger().charged, 0);
    }
    assert!(begun.elapsed() < MAX_ELAPSED);
    Ok(())
}

/// While the image with the fatal error is paused before its cache lookup, the second image ends and the third gets its
/// turn. If the error arrives before the second image's request is sent, the first and the second image look up the
/// cache at the same time.
#[tokio::test]
async fn fatal_error_stops_requests_before_cache_lookup_ends() -> Result<()> {
    const FAILPOINT: &str = "before_cache_fallback";
    let mut env = TestEnv::new().await?;
    let resume = env.folder().join("resume");
    env.set("ASSET_WORKER_PAUSE_AT", FAILPOINT);
    env.set("ASSET_WORKER_PAUSE_UNTIL", resume.display().to_string());
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A fox [fault:status=404]", "A bear [fault:slow=1000]", "An owl"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    let paused = async || (worker.log().matches(&format!("\"point\":\"{FAILPOINT}\"")).count() == 2).then_some(());
    wait_until("two images to look for a cached image", WAIT_TIMEOUT, paused).await?;
    std::fs::write(resume, "")?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "unknown_engine");
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.prompt_counts("A fox").requests, ledger.prompt_counts("An owl").requests), (1, 0));
    assert_eq!(data["succeeded"], ledger.charged);
    Ok(())
}

#[tokio::test]
async fn fatal_error_cleared_between_attempts_causes_no_double_payment() -> Result<()> {
    let env = TestEnv::new().await?;
    let descriptions = ["One", "Two [fault:status=404 x1]", "Three", "Four"];
    let config = json!({"max_concurrent": 1, "min_success_rate": 1.0});
    let data = env.generate(&command(1, &descriptions, &config)).await?.expect_data("completed")?;
    assert_files(&env, &data, &[1, 2, 3, 4])?;
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged), (5, 4));
    Ok(())
}

#[tokio::test]
async fn two_hundred_descriptions_complete_as_one_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.sandbox.set_sketch(true);
    env.set("STABILITY_MAX_CONCURRENT", "6");
    env.set("IMAGE_WIDTH", "320");
    env.set("IMAGE_HEIGHT", "180");
    let descriptions: Vec<String> = (1..=200).map(|number| format!("Picture number {number}")).collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    let data =
        env.generate(&command(1, &descriptions, &json!({"max_concurrent": 6}))).await?.expect_data("completed")?;
    assert_eq!((&data["total"], &data["succeeded"], &data["cost_usd"]), (&json!(200), &json!(200), &json!(4.0)));
    assert_eq!(data["assets"][199]["file_path"], "projects/1/assets/image_200.png");
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged), (200, 200));
    assert!(ledger.max_in_flight <= 6, "{}", ledger.max_in_flight);
    Ok(())
}
