//! The worker as a process: start, shutdown, kills, lost connections, health endpoints.

use std::time::Duration;

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait::wait_until;
use integration_tests::{Proxy, TestEnv, WAIT_TIMEOUT, command};
use serde_json::json;

/// Creates an environment whose programs reach the broker through a proxy, which is open at first.
async fn env_behind_broker_proxy() -> Result<(TestEnv, Proxy)> {
    let mut env = TestEnv::new().await?;
    let (proxy, url) = Proxy::in_front_of(&env.amqp_url, 5672).await?;
    env.set("AMQP_URL", url);
    Ok((env, proxy))
}

#[tokio::test]
async fn worker_waits_for_broker_at_start_and_after_loss() -> Result<()> {
    let (env, proxy) = env_behind_broker_proxy().await?;
    proxy.close();
    let mut worker = env.start_worker()?;
    worker.wait_for_log("cannot reach the broker; retrying").await?;
    assert_eq!(worker.probe("livez").await?.0, 200);
    let (status, body) = worker.probe("readyz").await?;
    assert_eq!((status, &body["broker"], &body["database"]), (503, &json!("not connected"), &json!("ok")));

    proxy.open();
    worker.wait_until_ready().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;

    proxy.close();
    wait_until("the worker to notice the broker loss", WAIT_TIMEOUT, async || {
        worker.probe("readyz").await.ok().filter(|(status, _)| *status == 503)
    })
    .await?;
    producer.publish(&command(1, &["A bear"], &json!({}))).await?;
    proxy.open();
    events.wait_for("completed").await?;
    assert!(worker.is_running());
    Ok(())
}

#[tokio::test]
async fn broker_loss_pauses_new_images_and_keeps_finished_ones() -> Result<()> {
    let (mut env, proxy) = env_behind_broker_proxy().await?;
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["Image one", "Image two [fault:slow=1500]", "Image three", "Image four"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    events.wait_for("progress").await?;
    wait_until("the second image in flight", WAIT_TIMEOUT, async || (env.sandbox.ledger().charged == 2).then_some(()))
        .await?;
    proxy.close();
    worker.wait_for_log("broker connection lost; images in flight are finished").await?;
    wait_until("the end of the second image", WAIT_TIMEOUT, async || {
        (env.sandbox.ledger().in_flight == 0).then_some(())
    })
    .await?;
    worker.wait_for_log("image completed").await?;
    assert_eq!(env.sandbox.ledger().charged, 2, "no image was started without a broker");
    proxy.open();
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["succeeded"], 4);
    assert_eq!(env.sandbox.ledger().charged, 4, "no image was paid for twice");
    Ok(())
}

#[tokio::test]
async fn restarted_worker_does_not_pay_again_for_finished_images() -> Result<()> {
    let env = TestEnv::new().await?;
    env.sandbox.set_latency(Duration::from_millis(300));
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["Image one", "Image two", "Image three", "Image four"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    events.wait_for("progress").await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    let _next = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["succeeded"], 4);
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger.prompt_counts("Image one").requests, 1);
    // Only requests that were in flight at the kill may have been repeated.
    assert!(ledger.requests <= 5, "{ledger:?}");
    Ok(())
}

#[tokio::test]
async fn sigterm_finishes_requests_in_flight_and_requeues_the_command() -> Result<()> {
    let env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions =
        ["Image one", "Image two [fault:slow=1500]", "Image three [fault:slow=1500]", "Image four", "Image five"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    wait_until("two slow images in flight", WAIT_TIMEOUT, async || (env.sandbox.ledger().charged == 3).then_some(()))
        .await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait_for_exit().await?.code(), Some(0));
    let made = env.query_rows("SELECT status FROM assets WHERE status = 'completed'").await?.len();
    assert_eq!(made, 3, "every paid image is kept");
    assert_eq!(env.sandbox.ledger().charged, 3, "no image was started after the signal");
    let back = async || (producer.ready_count("assets.generate").await.ok()? == 1).then_some(());
    wait_until("the requeued command", WAIT_TIMEOUT, back).await?;
    let _next = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["succeeded"], 5);
    assert_eq!(env.sandbox.ledger().charged, 5);
    Ok(())
}

#[tokio::test]
async fn sigterm_in_the_last_attempt_does_not_fail_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "2");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    // The fault applies to all four requests that the first attempt sends for an image.
    let descriptions = ["One [fault:status=503 x4]", "Two [fault:status=503 x4]", "Three [fault:status=503 x4]"];
    env.sandbox.set_latency(Duration::from_secs(1));
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    wait_until("the second attempt", WAIT_TIMEOUT, async || (env.sandbox.ledger().charged == 1).then_some(())).await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait_for_exit().await?.code(), Some(0));
    let back = async || (producer.ready_count("assets.generate").await.ok()? == 1).then_some(());
    wait_until("the requeued command", WAIT_TIMEOUT, back).await?;
    let _next = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["succeeded"], 3);
    assert_eq!(env.sandbox.ledger().charged, 3);
    Ok(())
}

#[tokio::test]
async fn sigterm_before_the_first_image_counts_no_attempt() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let released = env.folder().join("released");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    env.set("ASSET_WORKER_PAUSE_AT", "after_claim");
    env.set("ASSET_WORKER_PAUSE_UNTIL", released.display().to_string());
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear"], &json!({}))).await?;
    worker.wait_for_log("\"point\":\"after_claim\"").await?;
    worker.signal(Signal::TERM);
    worker.wait_for_log("shutting down; no new image is started").await?;
    std::fs::write(&released, "")?;
    assert_eq!(worker.wait_for_exit().await?.code(), Some(0));
    let jobs = env.query_rows("SELECT status, attempts FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "waiting", "attempts": 0})]);
    let _next = env.start_ready_worker().await?;
    assert_eq!(events.wait_for_data("completed").await?["succeeded"], 2);
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn expired_shutdown_grace_drops_requests_and_releases_the_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_SHUTDOWN_GRACE", "1s");
    env.set("WORKER_LEASE", "60s");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox [fault:slow=60000 x1]"], &json!({}))).await?;
    wait_until("the request", WAIT_TIMEOUT, async || (env.sandbox.ledger().requests == 1).then_some(())).await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait_for_exit().await?.code(), Some(0));
    worker.wait_for_log("grace period over; aborting the remaining jobs").await?;
    let jobs = env.query_rows("SELECT status, attempts, lease_losses FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "waiting", "attempts": 0, "lease_losses": 0})]);
    let _next = env.start_ready_worker().await?;
    events.wait_for_data("completed").await?;
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn second_signal_exits_immediately() -> Result<()> {
    let env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    producer.publish(&command(1, &["A fox [fault:slow=60000]"], &json!({}))).await?;
    wait_until("the request", WAIT_TIMEOUT, async || (env.sandbox.ledger().requests == 1).then_some(())).await?;
    worker.signal(Signal::TERM);
    worker.wait_for_log("shutting down; no new image is started").await?;
    worker.signal(Signal::INT);
    assert_eq!(worker.wait_for_exit().await?.code(), Some(1));
    Ok(())
}

#[tokio::test]
async fn image_slower_than_grace_is_kept_after_broker_loss() -> Result<()> {
    let (mut env, proxy) = env_behind_broker_proxy().await?;
    env.set("WORKER_SHUTDOWN_GRACE", "1s");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox [fault:slow=3000]"], &json!({}))).await?;
    wait_until("the request", WAIT_TIMEOUT, async || (env.sandbox.ledger().requests == 1).then_some(())).await?;
    proxy.close();
    worker.wait_for_log("broker connection lost; images in flight are finished").await?;
    worker.wait_for_log("image completed").await?;
    proxy.open();
    events.wait_for_data("completed").await?;
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}

/// The broker does not confirm the progress event of the first image; meanwhile the second image is finished.
#[tokio::test]
async fn recording_one_image_does_not_block_the_others() -> Result<()> {
    let (env, proxy) = env_behind_broker_proxy().await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A fox [fault:slow=1000]", "A bear [fault:slow=2000]"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    events.wait_for("started").await?;
    proxy.stall();
    worker.wait_for_log("image completed").await?;
    let second = env.stored_path("projects/1/assets/image_002.png");
    wait_until("the file of the second image", WAIT_TIMEOUT, async || second.exists().then_some(())).await?;
    proxy.open();
    let seen = events.wait_for("completed").await?;
    let progress = seen.iter().filter(|event| event.event_type() == "assets.generation.progress").count();
    assert_eq!(progress, 2, "both progress events arrive after the stall: {}", worker.log());
    Ok(())
}

/// The session ends because a command cannot be published to its retry queue, which is missing. While the session waits
/// for its other job, the broker pushes no messages to it: they would count as delivered.
#[tokio::test]
async fn failed_session_takes_no_further_messages() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_RETRY_DELAYS", "none");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let cache = json!({"cache": "never"});
    producer.publish(&command(1, &["A fox [fault:slow=20000]"], &cache)).await?;
    let requested = async || (env.sandbox.ledger().requests == 1).then_some(());
    wait_until("a request", WAIT_TIMEOUT, requested).await?;
    producer.delete_queue("assets.generate.retry.200ms").await?;
    producer.publish(&command(2, &["A bear [fault:status=503 x1]"], &cache)).await?;
    worker.wait_for_log("broker connection lost; images in flight").await?;
    producer.publish(&command(3, &["An owl"], &cache)).await?;
    // Both are ready until the slow job has ended and the worker has connected again.
    producer.wait_for_waiting_commands(2).await?;
    assert!(!worker.log().contains("\"image completed\""), "the slow job is still running");
    for _ in 1..=3 {
        events.wait_for_data("completed").await?;
    }
    Ok(())
}

/// The broker cancels a consumer when its queue is deleted, and since RabbitMQ 4.3 also when a delivery is held too long.
#[tokio::test]
async fn worker_whose_consumer_is_cancelled_connects_again() -> Result<()> {
    let env = TestEnv::new().await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.delete_queue("assets.generate").await?;
    worker.wait_for_log("\"cause\":\"consumer cancelled\"").await?;
    // Declared, and bound.
    let reconnected = async || (worker.log().matches("connected to the broker").count() == 2).then_some(());
    wait_until("the second connection", WAIT_TIMEOUT, reconnected).await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    Ok(())
}

/// A broker that vanishes closes no connection. With the heartbeat that it would propose, the worker would notice it only
/// after two minutes.
#[tokio::test]
async fn vanished_broker_is_noticed_by_heartbeats() -> Result<()> {
    let (env, proxy) = env_behind_broker_proxy().await?;
    let worker = env.start_ready_worker().await?;
    proxy.stall();
    worker.wait_for_log("broker connection lost; images in flight").await?;
    proxy.open();
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    Ok(())
}

#[tokio::test]
async fn invalid_setting_exits_with_code_64_and_an_explanation() -> Result<()> {
    let check = async |name: &'static str, value: &str, expected: &str| -> Result<()> {
        let mut env = TestEnv::new().await?;
        env.set(name, value);
        let output = env.run(&["run"]).await?;
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{printed}");
        assert!(printed.contains(expected) && !printed.contains("hunter2"), "{printed}");
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
    check("HTTP_ADDR", &address, &format!("HTTP_ADDR: cannot listen on {address}")).await
}

#[tokio::test]
async fn probes_report_component_health() -> Result<()> {
    let env = TestEnv::new().await?;
    let worker = env.start_ready_worker().await?;
    assert_eq!(worker.probe("livez").await?, (200, json!({"status": "ok"})));
    let parts =
        json!({"status": "ok", "broker": "ok", "database": "ok", "storage": "ok", "api_key": "ok", "gate_closed": []});
    assert_eq!(worker.probe("readyz").await?, (200, parts));
    Ok(())
}
