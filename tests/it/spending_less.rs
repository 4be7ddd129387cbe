//! No money is spent on what cannot help: jobs that cannot be saved, causes that every request would meet.

use std::time::{Duration, Instant};

use anyhow::Result;
use dev_services::wait::until;
use integration_tests::{LIMIT, World, assert_files, codes, command};
use serde_json::json;

/// A wait for a retry that no test waits out; the client begins none that ends after five minutes.
const LONG: &str = "4m";
/// Less than that, by far.
const SHORT: Duration = Duration::from_mins(2);

#[tokio::test]
async fn a_job_of_ten_whose_first_three_fail_for_good_spends_nothing_on_what_cannot_save_it() -> Result<()> {
    let world = World::new().await?;
    world.sandbox.set_latency(Duration::from_millis(300));
    let descriptions = ["Gore one", "Gore two", "Gore three", "D", "E", "F", "G", "H", "I", "J"];
    let data = world.generate(&command(1, &descriptions, &json!({"max_concurrent": 3}))).await?.data_of("failed")?;
    assert_eq!(data["error"]["code"], "success_rate_too_low");
    // The refusals come one by one, so that two others may be in flight when the third is heard. Those are kept.
    let ledger = world.sandbox.ledger();
    assert!(ledger.charged <= 2, "{ledger:?}");
    assert_eq!(data["succeeded"], ledger.charged);
    assert_eq!(ledger.requests, ledger.charged + 3, "each refusal took one request");
    Ok(())
}

#[tokio::test]
async fn a_job_that_cannot_be_saved_does_not_wait_for_its_retries() -> Result<()> {
    let mut world = World::new().await?;
    world.set("STABILITY_RETRY_DELAYS", LONG);
    let begun = Instant::now();
    let descriptions = ["A busy one [fault:status=503]", "Gore one", "A", "B"];
    let data = world.generate(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?.data_of("failed")?;
    assert!(begun.elapsed() < SHORT);
    assert_eq!(data["error"]["code"], "success_rate_too_low");
    assert_eq!(data["failures"][0]["code"], "not_attempted");
    assert_eq!(data["failures"][0]["attempts"], 1);
    assert_eq!(world.sandbox.ledger().asked("A busy one").requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_cause_that_every_request_would_meet_ends_the_waits_of_the_jobs_other_images() -> Result<()> {
    let mut world = World::new().await?;
    world.set("STABILITY_RETRY_DELAYS", LONG);
    let begun = Instant::now();
    for (status, code) in [(401, "unauthorized"), (402, "insufficient_credits"), (404, "unknown_engine")] {
        let descriptions = ["A busy one [fault:status=503]", &format!("Two [fault:status={status}]"), "Three", "Four"];
        let config = json!({"max_concurrent": 2, "cache": "never"});
        let data = world.generate(&command(1, &descriptions, &config)).await?.data_of("failed")?;
        assert_eq!(data["error"]["code"], code);
        assert_eq!(codes(&data), ["not_attempted"; 4], "{code}");
        // The job was tried three times, and each attempt ended at once. The first image may lose the race with the refusal, and send nothing.
        assert_eq!(data["failures"][1]["attempts"], 3, "{code}");
        assert!(data["failures"][0]["attempts"].as_u64() <= Some(3), "{code}: {data}");
    }
    assert!(begun.elapsed() < SHORT);
    assert_eq!(world.sandbox.ledger().charged, 0);
    Ok(())
}

/// While the image that met the cause looks for a stand-in, a second one ends and a third one has its turn. Where the refusal comes before the second one
/// has sent its request, the two look for a stand-in together.
#[tokio::test]
async fn fatal_cause_stops_requests_before_a_stand_in_is_found() -> Result<()> {
    const POINT: &str = "before_cache_fallback";
    let mut world = World::new().await?;
    let resume = world.folder().join("resume");
    world.set("ASSET_WORKER_PAUSE_AT", POINT);
    world.set("ASSET_WORKER_PAUSE_UNTIL", resume.display().to_string());
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions = ["A fox [fault:status=402]", "A bear [fault:slow=1000]", "An owl"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    let paused = async || (worker.log().matches(&format!("\"point\":\"{POINT}\"")).count() == 2).then_some(());
    until("two images to look for a stand-in", LIMIT, paused).await?;
    std::fs::write(resume, "")?;
    let data = events.data_of("failed").await?;
    assert_eq!(data["error"]["code"], "insufficient_credits");
    let ledger = world.sandbox.ledger();
    assert_eq!((ledger.asked("A fox").requests, ledger.asked("An owl").requests), (1, 0));
    assert_eq!(data["succeeded"], ledger.charged);
    Ok(())
}

#[tokio::test]
async fn a_cause_that_passes_between_two_tries_costs_nothing_twice() -> Result<()> {
    let world = World::new().await?;
    let descriptions = ["One", "Two [fault:status=402 x1]", "Three", "Four"];
    let config = json!({"max_concurrent": 1, "min_success_rate": 1.0});
    let data = world.generate(&command(1, &descriptions, &config)).await?.data_of("completed")?;
    assert_files(&world, &data, &[1, 2, 3, 4])?;
    let ledger = world.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged), (5, 4));
    Ok(())
}

#[tokio::test]
async fn two_hundred_descriptions_are_one_job() -> Result<()> {
    let mut world = World::new().await?;
    world.sandbox.set_sketch(true);
    world.set("STABILITY_MAX_CONCURRENT", "6");
    world.set("IMAGE_WIDTH", "320");
    world.set("IMAGE_HEIGHT", "180");
    let descriptions: Vec<String> = (1..=200).map(|number| format!("Picture number {number}")).collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    let data = world.generate(&command(1, &descriptions, &json!({"max_concurrent": 6}))).await?.data_of("completed")?;
    assert_eq!((&data["total"], &data["succeeded"], &data["cost_usd"]), (&json!(200), &json!(200), &json!(4.0)));
    assert_eq!(data["assets"][199]["file_path"], "projects/1/assets/image_200.png");
    let ledger = world.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged), (200, 200));
    assert!(ledger.max_in_flight <= 6, "{}", ledger.max_in_flight);
    Ok(())
}
