//! The worker as a process: starts, stops, kills, lost connections, probes.

use std::time::Duration;

use anyhow::Result;
use integration_tests::{LIMIT, Proxy, World, command};
use serde_json::json;
use testbed::process::Signal;
use testbed::wait::{free_address, until};
use url::Url;

/// The broker's address, and the same URL by way of another one.
fn rerouted(amqp_url: &str, by: std::net::SocketAddr) -> Result<(String, String)> {
    let mut url = Url::parse(amqp_url)?;
    let upstream = format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5672));
    url.set_host(Some("127.0.0.1"))?;
    url.set_port(Some(by.port())).map_err(|()| anyhow::anyhow!("the URL takes no port"))?;
    Ok((upstream, url.into()))
}

#[tokio::test]
async fn a_worker_started_before_the_broker_waits_for_it_and_survives_its_loss() -> Result<()> {
    let mut world = World::new().await?;
    let gate = free_address()?;
    let (upstream, by_the_gate) = rerouted(&world.amqp_url, gate)?;
    world.set("AMQP_URL", by_the_gate);
    let mut worker = world.start_worker()?;
    worker.has_logged("waiting for the broker").await?;
    assert_eq!(worker.probe("livez").await?.0, 200);
    let (status, body) = worker.probe("readyz").await?;
    assert_eq!((status, &body["broker"], &body["database"]), (503, &json!("not connected"), &json!("ok")));

    let proxy = Proxy::start(gate, upstream.clone()).await?;
    worker.ready().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.until("completed").await?;

    drop(proxy);
    until("the loss to be noticed", LIMIT, async || {
        worker.probe("readyz").await.ok().filter(|(status, _)| *status == 503)
    })
    .await?;
    producer.publish(&command(1, &["A bear"], &json!({}))).await?;
    let _proxy = Proxy::start(gate, upstream).await?;
    events.until("completed").await?;
    assert!(worker.is_running());
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
    world.sandbox.set_latency(Duration::from_millis(400));
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions = ["Image one", "Image two", "Image three", "Image four", "Image five", "Image six"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 2}))).await?;
    events.until("progress").await?;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await?.code(), Some(0));
    let made = world.rows("SELECT status FROM assets WHERE status = 'completed'").await?.len();
    let charged = world.sandbox.ledger().charged;
    assert_eq!(made, charged as usize, "what was paid for was kept");
    assert!(made < descriptions.len(), "it stopped before the end");
    until("the command on its queue", LIMIT, async || {
        (producer.ready("assets.generate").await.ok()? == 1).then_some(())
    })
    .await?;
    let _next = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_eq!(data["succeeded"], 6);
    assert_eq!(world.sandbox.ledger().charged, 6);
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
        assert!(said.contains(expected), "{said}");
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
    let well = json!({"status": "ok", "broker": "ok", "database": "ok", "storage": "ok"});
    assert_eq!(worker.probe("readyz").await?, (200, well));
    Ok(())
}
