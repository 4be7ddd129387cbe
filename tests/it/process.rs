//! The worker as a process: starts, stops, kills, lost connections, probes.

use std::time::Duration;

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait::until;
use integration_tests::{LIMIT, Proxy, World, command};
use serde_json::json;

/// A world whose programs reach the broker by way of a closed proxy.
async fn world_behind_a_proxy() -> Result<(World, Proxy)> {
    let mut world = World::new().await?;
    let (proxy, url) = Proxy::before(&world.amqp_url, 5672).await?;
    world.set("AMQP_URL", url);
    Ok((world, proxy))
}

#[tokio::test]
async fn a_worker_started_before_the_broker_waits_for_it_and_survives_its_loss() -> Result<()> {
    let (world, proxy) = world_behind_a_proxy().await?;
    proxy.close();
    let mut worker = world.start_worker()?;
    worker.has_logged("waiting for the broker").await?;
    assert_eq!(worker.probe("livez").await?.0, 200);
    let (status, body) = worker.probe("readyz").await?;
    assert_eq!((status, &body["broker"], &body["database"]), (503, &json!("not connected"), &json!("ok")));

    proxy.open();
    worker.ready().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.until("completed").await?;

    proxy.close();
    until("the loss to be noticed", LIMIT, async || {
        worker.probe("readyz").await.ok().filter(|(status, _)| *status == 503)
    })
    .await?;
    producer.publish(&command(1, &["A bear"], &json!({}))).await?;
    proxy.open();
    events.until("completed").await?;
    assert!(worker.is_running());
    Ok(())
}

#[tokio::test]
async fn a_broker_lost_with_every_slot_taken_stops_new_images_and_costs_no_finished_one() -> Result<()> {
    let (mut world, proxy) = world_behind_a_proxy().await?;
    world.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions = ["Image one", "Image two [fault:slow=1500]", "Image three", "Image four"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    events.until("progress").await?;
    until("the second image in flight", LIMIT, async || (world.sandbox.ledger().charged == 2).then_some(())).await?;
    proxy.close();
    worker.has_logged("the broker is lost").await?;
    until("the second image's end", LIMIT, async || (world.sandbox.ledger().in_flight == 0).then_some(())).await?;
    worker.has_logged("image completed").await?;
    assert_eq!(world.sandbox.ledger().charged, 2, "no image was begun without a broker");
    proxy.open();
    let data = events.data_of("completed").await?;
    assert_eq!(data["succeeded"], 4);
    assert_eq!(world.sandbox.ledger().charged, 4, "no image was paid for twice");
    Ok(())
}

#[tokio::test]
async fn a_killed_worker_started_again_goes_on_and_pays_for_no_finished_image_again() -> Result<()> {
    let world = World::new().await?;
    world.sandbox.set_latency(Duration::from_millis(300));
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions = ["Image one", "Image two", "Image three", "Image four"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    events.until("progress").await?;
    worker.signal(Signal::KILL);
    worker.ended().await?;
    let _next = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_eq!(data["succeeded"], 4);
    let ledger = world.sandbox.ledger();
    assert_eq!(ledger.asked("Image one").requests, 1);
    // Only what was in flight at the kill may have been asked for again.
    assert!(ledger.requests <= 5, "{ledger:?}");
    Ok(())
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_leaves_the_rest_to_the_next_worker() -> Result<()> {
    let world = World::new().await?;
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions =
        ["Image one", "Image two [fault:slow=1500]", "Image three [fault:slow=1500]", "Image four", "Image five"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    until("two slow images in flight", LIMIT, async || (world.sandbox.ledger().charged == 3).then_some(())).await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await?.code(), Some(0));
    let made = world.rows("SELECT status FROM assets WHERE status = 'completed'").await?.len();
    assert_eq!(made, 3, "what was paid for was kept");
    assert_eq!(world.sandbox.ledger().charged, 3, "no image was begun after the signal");
    let back = async || (producer.ready("assets.generate").await.ok()? == 1).then_some(());
    until("the command on its queue again", LIMIT, back).await?;
    let _next = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_eq!(data["succeeded"], 5);
    assert_eq!(world.sandbox.ledger().charged, 5);
    Ok(())
}

#[tokio::test]
async fn sigterm_in_the_last_try_of_a_job_does_not_fail_it() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_JOB_MAX_ATTEMPTS", "2");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    // Each meets the fault in all four requests of the first try.
    let descriptions = ["One [fault:status=503 x4]", "Two [fault:status=503 x4]", "Three [fault:status=503 x4]"];
    world.sandbox.set_latency(Duration::from_secs(1));
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    until("the second try", LIMIT, async || (world.sandbox.ledger().charged == 1).then_some(())).await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await?.code(), Some(0));
    let back = async || (producer.ready("assets.generate").await.ok()? == 1).then_some(());
    until("the command on its queue again", LIMIT, back).await?;
    let _next = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_eq!(data["succeeded"], 3);
    assert_eq!(world.sandbox.ledger().charged, 3);
    Ok(())
}

#[tokio::test]
async fn sigterm_before_the_first_image_is_no_try() -> Result<()> {
    let mut world = World::new().await?;
    let released = world.folder().join("released");
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    world.set("ASSET_WORKER_PAUSE_AT", "after_claim");
    world.set("ASSET_WORKER_PAUSE_UNTIL", released.display().to_string());
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(1, &["A fox", "A bear"], &json!({}))).await?;
    worker.has_logged("\"point\":\"after the claim\"").await?;
    worker.signal(Signal::TERM);
    worker.has_logged("stopping: no new image is begun").await?;
    std::fs::write(&released, "")?;
    assert_eq!(worker.ended().await?.code(), Some(0));
    let jobs = world.rows("SELECT status, attempts FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "waiting", "attempts": 0})]);
    let _next = world.worker().await?;
    assert_eq!(events.data_of("completed").await?["succeeded"], 2);
    assert_eq!(world.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn what_is_in_flight_when_the_grace_is_over_is_dropped_and_the_job_goes_on_at_once() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_SHUTDOWN_GRACE", "1s");
    world.set("WORKER_LEASE", "60s");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(1, &["A fox [fault:slow=60000 x1]"], &json!({}))).await?;
    until("the request", LIMIT, async || (world.sandbox.ledger().requests == 1).then_some(())).await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await?.code(), Some(0));
    worker.has_logged("the grace is over; what is in flight is dropped").await?;
    let jobs = world.rows("SELECT status, attempts, lease_losses FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "waiting", "attempts": 0, "lease_losses": 0})]);
    let _next = world.worker().await?;
    events.data_of("completed").await?;
    assert_eq!(world.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() -> Result<()> {
    let world = World::new().await?;
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    producer.publish(&command(1, &["A fox [fault:slow=60000]"], &json!({}))).await?;
    until("the request", LIMIT, async || (world.sandbox.ledger().requests == 1).then_some(())).await?;
    worker.signal(Signal::TERM);
    worker.has_logged("stopping: no new image is begun").await?;
    worker.signal(Signal::INT);
    assert_eq!(worker.ended().await?.code(), Some(1));
    Ok(())
}

#[tokio::test]
async fn an_image_that_takes_longer_than_the_grace_is_kept_where_the_broker_is_lost() -> Result<()> {
    let (mut world, proxy) = world_behind_a_proxy().await?;
    world.set("WORKER_SHUTDOWN_GRACE", "1s");
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(1, &["A fox [fault:slow=3000]"], &json!({}))).await?;
    until("the request", LIMIT, async || (world.sandbox.ledger().requests == 1).then_some(())).await?;
    proxy.close();
    worker.has_logged("the broker is lost").await?;
    worker.has_logged("image completed").await?;
    proxy.open();
    events.data_of("completed").await?;
    assert_eq!(world.sandbox.ledger().requests, 1);
    Ok(())
}

/// The broker does not confirm the progress of the first image; the second one is finished meanwhile.
#[tokio::test]
async fn recording_one_image_does_not_hold_up_the_others() -> Result<()> {
    let (world, proxy) = world_behind_a_proxy().await?;
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions = ["A fox [fault:slow=1000]", "A bear [fault:slow=2000]"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    events.until("started").await?;
    proxy.stall();
    worker.has_logged("image completed").await?;
    let second = world.file("projects/1/assets/image_002.png");
    until("the file of the second image", LIMIT, async || second.exists().then_some(())).await?;
    proxy.open();
    let seen = events.until("completed").await?;
    let progress = seen.iter().filter(|event| event.kind() == "assets.generation.progress").count();
    assert_eq!(progress, 2, "the first event was still waiting for its confirm: {}", worker.log());
    Ok(())
}

#[tokio::test]
async fn a_bad_setting_stops_the_start_with_64_and_a_sentence() -> Result<()> {
    let check = async |name: &'static str, value: &str, expected: &str| -> Result<()> {
        let mut world = World::new().await?;
        world.set(name, value);
        let output = world.run(&["run"]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(expected) && !said.contains("hunter2"), "{said}");
        Ok(())
    };
    check(
        "STABILITY_MAX_CONCURRENT",
        "many",
        "STABILITY_MAX_CONCURRENT: \"many\" is not allowed; a whole number from 1 to 64",
    )
    .await?;
    check("STABILITY_API_KEY", "", "STABILITY_API_KEY: not set; a key of the account at platform.stability.ai").await?;
    check("DATABASE_URL", "mysql://root:hunter2@db/x", "DATABASE_URL: its value is not allowed; a URL: postgres://")
        .await?;
    check("DATABASE_URL", "postgres://u:hunter2/x#y@db/x", "DATABASE_URL: its value is not allowed; a URL").await?;
    check("RUST_LOG", "worker=loud", "RUST_LOG: \"worker=loud\" is not allowed; filter directives").await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    check("HTTP_ADDR", &address, &format!("HTTP_ADDR: {address} cannot be listened on")).await
}

#[tokio::test]
async fn probes_say_what_is_well() -> Result<()> {
    let world = World::new().await?;
    let worker = world.worker().await?;
    assert_eq!(worker.probe("livez").await?, (200, json!({"status": "ok"})));
    let well = json!({"status": "ok", "broker": "ok", "database": "ok", "storage": "ok", "api_key": "ok"});
    assert_eq!(worker.probe("readyz").await?, (200, well));
    Ok(())
}
