//! Dead letters, unroutable events, time slices, and outages of the database.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::wait::wait_until;
use integration_tests::{BrokerClient, Database, TestEnv, WAIT_TIMEOUT, assert_files, command};
use lapin::BasicProperties;
use serde_json::{Value, json};

#[track_caller]
fn expect_exit_code(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

async fn list_dead_letters(env: &TestEnv, more: &[&str]) -> Result<Vec<Value>> {
    let output = env.run(&[&["dead-letters", "list", "--json"], more].concat()).await?;
    serde_json::from_slice(&output.stdout).with_context(|| expect_exit_code(&output, 0))
}

/// Waits until the dead-letter queue holds this many messages.
async fn wait_for_dead_letters(producer: &BrokerClient, count: u32) -> Result<()> {
    let there = async || (producer.ready_count("assets.generate.dead").await.ok()? == count).then_some(());
    wait_until(&format!("{count} dead letters"), WAIT_TIMEOUT, there).await
}

#[tokio::test]
async fn dead_letters_are_listed_shown_replayed_and_discarded() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let first = command(7, &["A fox"], &json!({"max_concurrent": 1}));
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&first).await?;
    events.wait_for("completed").await?;
    // Three dead letters: invalid JSON, an invalid command, and another command with the id of a known job.
    producer.publish_bytes(b"no JSON", None).await?;
    let bad = command(7, &["A fox"], &json!({"steps": 5}));
    producer
        .publish_bytes(bad.to_string().as_bytes(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
        .await?;
    let mut conflict = first.clone();
    conflict["image_descriptions"] = json!(["A bear"]);
    producer.publish(&conflict).await?;
    wait_for_dead_letters(&producer, 3).await?;
    drop(worker);

    let all = list_dead_letters(&env, &[]).await?;
    let reasons: Vec<_> = all.iter().map(|letter| letter["reason"].as_str().unwrap_or_default().to_owned()).collect();
    assert!(
        reasons[0].starts_with("invalid_request: body: not JSON") && reasons[2] == "job_id_conflict",
        "{reasons:?}"
    );
    assert!(all.iter().all(|letter| letter["rejected_at"].as_str().is_some_and(|at| at.ends_with('Z'))), "{all:?}");
    assert_eq!((&all[0]["job_id"], &all[1]["job_id"]), (&json!(null), &bad["job_id"]));
    assert_eq!(list_dead_letters(&env, &["--reason", "job_id_conflict"]).await?.len(), 1);
    assert_eq!(
        list_dead_letters(&env, &["--job", bad["job_id"].as_str().context("job_id is missing")?]).await?.len(),
        1
    );
    // Listing does not change the queue, however often it is done.
    for _ in 0..3 {
        assert_eq!(list_dead_letters(&env, &[]).await?, all);
    }
    let id = all[1]["id"].as_str().context("the dead letter has no id")?;
    let shown = expect_exit_code(&env.run(&["dead-letters", "show", id]).await?, 0);
    assert!(shown.contains("config.steps: 5 is not allowed") && shown.contains("traceparent"), "{shown}");
    assert!(expect_exit_code(&env.run(&["dead-letters", "list"]).await?, 0).contains("job_id_conflict"));

    // Invalid arguments are refused, and nothing is done without a selection.
    expect_exit_code(&env.run(&["dead-letters", "replay"]).await?, 64);
    expect_exit_code(&env.run(&["dead-letters", "discard", "--id", "none"]).await?, 64);
    assert_eq!(
        expect_exit_code(&env.run(&["dead-letters", "discard", "--reason", "job_id"]).await?, 0).trim(),
        "discarded: 1"
    );
    assert_eq!(expect_exit_code(&env.run(&["dead-letters", "replay", "--id", id]).await?, 0).trim(), "replayed: 1");
    assert_eq!(list_dead_letters(&env, &[]).await?.len(), 1);
    // The replayed command is rejected again; it keeps its headers and has the earlier reason and the time of the
    // replay.
    let _worker = env.start_ready_worker().await?;
    wait_for_dead_letters(&producer, 2).await?;
    let again = list_dead_letters(&env, &["--job", bad["job_id"].as_str().context("job_id is missing")?]).await?;
    let id = again[0]["id"].as_str().context("the dead letter has no id")?;
    let shown: Value = serde_json::from_slice(&env.run(&["dead-letters", "show", id, "--json"]).await?.stdout)?;
    let header = |name: &str| {
        let headers = shown["headers"].as_array().map(Vec::as_slice).unwrap_or_default();
        headers.iter().find(|pair| pair[0] == name).map(|pair| pair[1].to_string()).unwrap_or_default()
    };
    assert!(header("traceparent").contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{shown}");
    assert!(header("x-replayed-reason").contains("steps: 5") && header("x-replayed-at").contains('T'), "{shown}");
    assert_eq!(shown["body"], bad);
    assert_eq!(expect_exit_code(&env.run(&["dead-letters", "discard", "--all"]).await?, 0).trim(), "discarded: 2");
    assert!(expect_exit_code(&env.run(&["dead-letters", "list"]).await?, 0).contains("no dead letters"));
    Ok(())
}

#[tokio::test]
async fn unsupported_content_type_or_encoding_is_refused() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let order = command(7, &["A fox"], &json!({}));
    let plain = BasicProperties::default().with_delivery_mode(2);
    let xml = plain.clone().with_content_type("application/xml".into());
    producer.publish_raw(order.to_string().as_bytes(), xml).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "invalid_request");
    assert_eq!(data["error"]["message"], "content_type: \"application/xml\" is not allowed; application/json");
    producer.take_dead_letter().await?;
    let zipped = plain.clone().with_content_type("application/json".into()).with_content_encoding("gzip".into());
    producer.publish_raw(b"\x1f\x8b\x08", zipped).await?;
    let reason = producer.take_dead_letter().await?.header("x-rejected-reason").unwrap_or_default();
    assert!(reason.starts_with("invalid_request: content_encoding: \"gzip\" is not allowed; none"), "{reason}");
    // A duplicate key is ambiguous.
    producer.publish_bytes(br#"{"job_id": "a", "job_id": "b"}"#, None).await?;
    let reason = producer.take_dead_letter().await?.header("x-rejected-reason").unwrap_or_default();
    assert!(reason.contains("duplicate key \"job_id\""), "{reason}");
    // A charset parameter does not change the type, and a message without a content type is treated as JSON.
    for content_type in [Some("application/json; charset=utf-8"), None] {
        let properties = content_type.map_or(plain.clone(), |kind| plain.clone().with_content_type(kind.into()));
        producer.publish_raw(command(7, &["A fox"], &json!({})).to_string().as_bytes(), properties).await?;
        events.wait_for_data("completed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn unroutable_terminal_event_is_republished_on_request() -> Result<()> {
    let env = TestEnv::new().await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let order = command(7, &["A fox"], &json!({}));
    producer.publish(&order).await?;
    worker.wait_for_log("no queue is bound for the job's terminal event").await?;
    let job_id = order["job_id"].as_str().context("job_id is missing")?;
    assert!(
        expect_exit_code(&env.run(&["jobs", "republish", job_id]).await?, 1)
            .contains("no queue is bound for 1 of 1 messages")
    );
    let mut events = producer.subscribe_to_events().await?;
    assert_eq!(expect_exit_code(&env.run(&["jobs", "republish", "--all"]).await?, 0).trim(), "sent: 1");
    let event = events.wait_for("completed").await?.remove(0);
    let rows = env.query_rows("SELECT terminal_event FROM jobs").await?;
    assert_eq!(rows[0]["terminal_event"].as_str().map(str::as_bytes), Some(&event.body[..]));
    // The event is now known to be delivered, so it is sent again only when its job is named.
    assert_eq!(expect_exit_code(&env.run(&["jobs", "republish", "--all"]).await?, 0).trim(), "sent: 0");
    assert_eq!(expect_exit_code(&env.run(&["jobs", "republish", job_id]).await?, 0).trim(), "sent: 1");
    assert_eq!(events.wait_for("completed").await?[0].body, event.body);
    expect_exit_code(&env.run(&["jobs", "republish", "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10"]).await?, 64);
    Ok(())
}

#[tokio::test]
async fn preempted_job_lets_waiting_jobs_run_without_extra_cost() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_SLICE", "1s");
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    env.sandbox.set_sketch(true);
    env.sandbox.set_latency(Duration::from_millis(700));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let one_by_one = json!({"max_concurrent": 1});
    let long = command(1, &["A", "B", "C", "D", "E", "F"], &one_by_one);
    let short = command(2, &["A fox"], &one_by_one);
    producer.publish(&long).await?;
    producer.publish(&short).await?;
    let mut ended = Vec::new();
    let mut started = 0;
    while ended.len() < 2 {
        let event = events.next().await?;
        match event.event_type().as_str() {
            "assets.generation.started" => started += 1,
            "assets.generation.completed" => ended.push(event.json()["data"].clone()),
            _ => {}
        }
    }
    assert_eq!(started, 2, "`started` is published once, however many time slices the job has");
    assert_eq!(
        (&ended[0]["project_id"], &ended[1]["project_id"]),
        (&json!(2), &json!(1)),
        "the short job ran between the slices of the long one"
    );
    assert_files(&env, &ended[1], &[1, 2, 3, 4, 5, 6])?;
    assert_eq!(env.sandbox.ledger().requests, 7);
    assert!(worker.log().contains("the job's time slice is over"), "{}", worker.log());
    let rows = env.query_rows("SELECT attempts FROM jobs").await?;
    assert!(rows.iter().all(|row| row["attempts"] == 0), "a time slice with progress counts no attempt: {rows:?}");
    Ok(())
}

#[tokio::test]
async fn time_slices_without_progress_count_as_attempts() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_SLICE", "1s");
    // Every time slice ends while the image waits for its retry.
    env.set("STABILITY_RETRY_DELAYS", "4m");
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox [fault:status=503]"], &json!({}))).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "attempts_exhausted");
    assert_eq!(env.sandbox.ledger().requests, 3);
    Ok(())
}

/// The image in flight at the database outage is kept until the database is back; no other is paid for meanwhile.
#[tokio::test]
async fn database_outage_loses_no_image_and_no_event() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    let database = env.start_database_proxy().await?;
    env.sandbox.set_sketch(true);
    env.sandbox.set_latency(Duration::from_secs(1));
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(7, &["A fox", "A bear", "An owl"], &json!({"max_concurrent": 1}))).await?;
    let second = async || (env.sandbox.ledger().requests == 2).then_some(());
    wait_until("the second request", WAIT_TIMEOUT, second).await?;
    database.close();
    worker.wait_for_log("database unavailable; retrying").await?;
    assert_eq!(env.sandbox.ledger().requests, 2, "nothing is paid for without a database");
    let unready = async || worker.probe("readyz").await.ok().filter(|(status, _)| *status == 503);
    wait_until("/readyz to answer 503", WAIT_TIMEOUT, unready).await?;
    database.open();
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1, 2, 3])?;
    assert_eq!(env.sandbox.ledger().requests, 3, "no image was paid for twice");
    assert!(worker.is_running());
    Ok(())
}

/// The finished file is removed between the attempts, as a consumer that moves the file away would do.
#[tokio::test]
async fn finished_image_is_not_requested_again_by_the_next_attempt() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_RETRY_DELAYS", "1s");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A fox", "A bear [fault:status=503 x4]"];
    producer.publish(&command(1, &descriptions, &json!({"min_success_rate": 1.0}))).await?;
    worker.wait_for_log("job will be retried after a delay").await?;
    std::fs::remove_file(env.stored_path("projects/1/assets/image_001.png"))?;
    let seen = events.wait_for("completed").await?;
    let reports = seen.iter().filter(|event| event.json()["data"]["index"] == 1).count();
    assert_eq!(reports, 1, "progress of the finished image is published once");
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.prompt_counts("A fox").requests, ledger.prompt_counts("A bear").requests), (1, 5));
    Ok(())
}
