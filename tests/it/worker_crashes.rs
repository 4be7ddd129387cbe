//! The worker is killed at each point between delivery and acknowledgement; another worker continues the job.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dev_services::process::Signal;
use integration_tests::{BrokerClient, Database, TestEnv, assert_files, command};
use serde_json::{Value, json};

use crate::api::{new_env, submit};

/// Bound within which another worker continues the job, including the default lease.
const RESUME_TIMEOUT: Duration = Duration::from_secs(20);

/// Kills three workers in turn at a failpoint that each reaches with the same command; later workers do not pause
/// there.
async fn kill_three_workers(env: &mut TestEnv, point: &'static str, order: &Value) -> Result<BrokerClient> {
    env.set("ASSET_WORKER_PAUSE_AT", point);
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    producer.publish(order).await?;
    worker.kill_at_failpoint(point).await?;
    for _ in 0..2 {
        env.start_ready_worker().await?.kill_at_failpoint(point).await?;
    }
    env.set("ASSET_WORKER_PAUSE_AT", "");
    Ok(producer)
}

/// Kills the worker at a failpoint, lets another worker continue, and returns the number of API requests.
async fn requests_after_kill_at(point: &str, database: Database) -> Result<u32> {
    let mut env = TestEnv::with_database(database).await?;
    env.sandbox.set_sketch(true);
    env.set("ASSET_WORKER_PAUSE_AT", point);
    // The default lease is used in one test only, because waiting for its end takes long.
    let lease = if point == "after_claim" { "12s" } else { "3s" };
    env.set("WORKER_LEASE", lease);
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let order = command(7, &["A fox", "A bear", "An owl"], &json!({"max_concurrent": 1}));
    producer.publish(&order).await?;
    worker.kill_at_failpoint(point).await?;
    let begun = Instant::now();
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let mut worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert!(begun.elapsed() < RESUME_TIMEOUT, "{point}: {:?}", begun.elapsed());
    assert_files(&env, &data, &[1, 2, 3])?;
    assert_eq!(std::fs::read_dir(env.stored_path("projects/7/assets"))?.count(), 3, "{point}: no other file is left");
    let rows = env.query_rows("SELECT status FROM assets").await?;
    assert!(rows.len() == 3 && rows.iter().all(|row| row["status"] == "completed"), "{point}: {rows:?}");
    // The command is redelivered until it is acknowledged; the job's only terminal event may be published again.
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    for queue in ["assets.generate", "assets.generate.dead"] {
        assert_eq!(producer.ready_count(queue).await?, 0, "{point}: {queue}");
    }
    let jobs = env.query_rows("SELECT terminal_event FROM jobs").await?;
    let stored = jobs[0]["terminal_event"].as_str().context("terminal_event is missing")?.to_owned();
    assert_eq!(serde_json::from_str::<Value>(&stored)?["data"], data, "{point}");
    Ok(env.sandbox.ledger().requests)
}

#[tokio::test]
async fn worker_killed_before_claim_causes_no_extra_request() -> Result<()> {
    assert_eq!(requests_after_kill_at("before_claim", Database::Sqlite).await?, 3);
    Ok(())
}

#[tokio::test]
async fn worker_killed_after_claim_causes_no_extra_request() -> Result<()> {
    assert_eq!(requests_after_kill_at("after_claim", Database::Postgres).await?, 3);
    Ok(())
}

#[tokio::test]
async fn worker_killed_before_storing_file_repeats_one_request() -> Result<()> {
    assert_eq!(requests_after_kill_at("before_file", Database::Sqlite).await?, 4);
    Ok(())
}

#[tokio::test]
async fn file_stored_before_worker_was_killed_is_adopted() -> Result<()> {
    assert_eq!(requests_after_kill_at("before_row", Database::Postgres).await?, 3);
    Ok(())
}

#[tokio::test]
async fn worker_killed_before_terminal_event_causes_no_extra_request() -> Result<()> {
    assert_eq!(requests_after_kill_at("before_event", Database::Sqlite).await?, 3);
    Ok(())
}

#[tokio::test]
async fn worker_killed_before_acknowledgement_repeats_identical_terminal_event() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "after_event");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    let first = events.wait_for("completed").await?;
    worker.kill_at_failpoint("after_event").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let mut worker = env.start_ready_worker().await?;
    let again = events.wait_for("completed").await?;
    assert_eq!(first[first.len() - 1].body, again[again.len() - 1].body);
    assert_eq!(again.len(), 1, "no other event is published again");
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(producer.ready_count("assets.generate").await?, 0);
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}

/// A job whose workers are killed or stopped one after the other continues before jobs that were queued later.
async fn check_job_resumes_first(signals: &[Signal]) -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.sandbox.set_sketch(true);
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let slow = ["A bear [fault:slow=1000]", "An owl [fault:slow=1000]", "A cow [fault:slow=1000]"];
    let descriptions = [&["A fox"], &slow[..], &["A hen"]].concat();
    let first = command(7, &descriptions, &json!({"max_concurrent": 1}));
    producer.publish(&first).await?;
    for _ in 0..5 {
        producer.publish(&command(7, &["A cat"], &json!({}))).await?;
    }
    for (requests, signal) in (2..).zip(signals) {
        // Each worker is interrupted during a slow image.
        env.wait_for_requests(requests).await?;
        worker.signal(*signal);
        worker.wait_for_exit().await?;
        worker = env.start_ready_worker().await?;
    }
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["job_id"], first["job_id"]);
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(producer.ready_count("assets.generate.dead").await?, 0);
    Ok(())
}

#[tokio::test]
async fn job_of_killed_worker_resumes_before_later_jobs() -> Result<()> {
    check_job_resumes_first(&[Signal::KILL]).await
}

/// As in a rolling update that reaches the job's next worker too.
#[tokio::test]
async fn job_of_two_stopped_workers_resumes_before_later_jobs() -> Result<()> {
    check_job_resumes_first(&[Signal::TERM, Signal::TERM]).await
}

/// A job that crashes its workers is not retried forever.
#[tokio::test]
async fn job_fails_after_three_lost_workers_without_progress() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_LEASE", "1s");
    let order = command(7, &["A fox"], &json!({}));
    let producer = kill_three_workers(&mut env, "after_claim", &order).await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "attempts_exhausted");
    assert_eq!(env.sandbox.ledger().requests, 0);
    let dead = producer.take_dead_letter().await?;
    assert_eq!(dead.header("x-rejected-reason").as_deref(), Some("attempts_exhausted"));
    Ok(())
}

/// Lost workers count only until the job completes an image.
#[tokio::test]
async fn completed_image_clears_the_count_of_lost_workers() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.sandbox.set_sketch(true);
    env.set("WORKER_LEASE", "1s");
    env.set("ASSET_WORKER_PAUSE_AT", "after_claim");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    worker.kill_at_failpoint("after_claim").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _worker = env.start_ready_worker().await?;
    events.wait_for_data("completed").await?;
    let jobs = env.query_rows("SELECT lease_token, lease_losses FROM jobs").await?;
    assert_eq!(jobs, [json!({"lease_token": 2, "lease_losses": 0})]);
    Ok(())
}

/// A command that crashes the process before its job is known exceeds the delivery limit; its job still fails.
#[tokio::test]
async fn crashing_command_is_dead_lettered_and_its_job_fails() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let order = command(7, &["A fox"], &json!({}));
    let producer = kill_three_workers(&mut env, "before_parse", &order).await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!((&data["job_id"], &data["error"]["code"]), (&order["job_id"], &json!("attempts_exhausted")));
    assert_eq!(producer.take_dead_letter().await?.json(), order);
    assert_eq!(env.sandbox.ledger().requests, 0);
    // The same command again is no conflict: the terminal event is repeated.
    producer.publish(&order).await?;
    assert_eq!(events.wait_for_data("failed").await?, data);
    Ok(())
}

/// The same for a job whose rows were written before its command was published: until its first claim it is not known.
#[tokio::test]
async fn submitted_job_fails_if_its_command_crashes_the_workers() -> Result<()> {
    let mut env = new_env(Database::Postgres).await?;
    let api = env.start_api().await?;
    let id = submit(&api, &["A fox"], json!({})).await?;
    env.set("ASSET_WORKER_PAUSE_AT", "before_parse");
    for _ in 0..3 {
        env.start_ready_worker().await?.kill_at_failpoint("before_parse").await?;
    }
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!((&data["job_id"], &data["error"]["code"]), (&json!(id), &json!("attempts_exhausted")));
    assert_eq!(producer.take_dead_letter().await?.json()["job_id"], id);
    assert_eq!(env.sandbox.ledger().requests, 0);
    Ok(())
}

/// The same for a known job: it continues, and its images can be retried as usual.
#[tokio::test]
async fn known_job_continues_after_delivery_limit_is_exceeded() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "after_claim");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let order = command(7, &["A fox", "A bear [fault:status=503 x4]"], &json!({"max_concurrent": 1}));
    producer.publish(&order).await?;
    worker.kill_at_failpoint("after_claim").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "before_parse");
    for _ in 0..2 {
        env.start_ready_worker().await?.kill_at_failpoint("before_parse").await?;
    }
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!((&data["job_id"], &data["succeeded"]), (&order["job_id"], &json!(2)));
    assert_eq!(env.sandbox.ledger().requests, 6);
    let letter = producer.take_dead_letter().await?;
    assert_eq!((letter.json(), letter.header("x-rejected-reason")), (order, None));
    Ok(())
}

/// A living worker keeps the lease of its job, however long an image takes.
#[tokio::test]
async fn job_with_image_slower_than_lease_keeps_its_worker() -> Result<()> {
    let env = TestEnv::with_database(Database::Postgres).await?;
    let _first = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    // The lease is 3 s.
    let order = command(7, &["A fox [fault:slow=5000]"], &json!({}));
    producer.publish(&order).await?;
    let asked = async || (env.sandbox.ledger().requests == 1).then_some(());
    dev_services::wait::wait_until("the first request", integration_tests::WAIT_TIMEOUT, asked).await?;
    let _second = env.start_ready_worker().await?;
    producer.publish(&order).await?;
    events.wait_for_data("completed").await?;
    assert_eq!(env.sandbox.ledger().requests, 1);
    let jobs = env.query_rows("SELECT lease_token, attempts FROM jobs").await?;
    assert_eq!(jobs, [json!({"lease_token": 1, "attempts": 0})]);
    Ok(())
}

/// A worker suspended for longer than its lease must not write or spend anything after it resumes.
#[tokio::test]
async fn worker_with_lost_lease_neither_spends_nor_writes() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("WORKER_LEASE", "1s");
    // With one job per worker, the broker delivers the repeated command to the other worker.
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    env.sandbox.set_latency(Duration::from_millis(1_500));
    let first = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let order = command(7, &["A fox", "A bear", "An owl"], &json!({"max_concurrent": 1}));
    producer.publish(&order).await?;
    let asked = async || (env.sandbox.ledger().requests == 1).then_some(());
    dev_services::wait::wait_until("the first request", integration_tests::WAIT_TIMEOUT, asked).await?;
    first.signal(Signal::STOP);
    // The broker still holds the first delivery; the repeated command finds the lease expired.
    let _second = env.start_ready_worker().await?;
    producer.publish(&order).await?;
    let data = events.wait_for_data("completed").await?;
    let requests = env.sandbox.ledger().requests;
    first.signal(Signal::CONT);
    first.wait_for_log("job lease lost").await?;
    assert_files(&env, &data, &[1, 2, 3])?;
    let rows = env.query_rows("SELECT terminal_event, lease_token FROM jobs").await?;
    assert_eq!(rows[0]["lease_token"], 2);
    let stored: Value = serde_json::from_str(rows[0]["terminal_event"].as_str().context("terminal_event is missing")?)?;
    assert_eq!(stored["data"], data);
    assert_eq!(env.sandbox.ledger().requests, requests);
    Ok(())
}

#[tokio::test]
async fn generate_resumes_the_job_of_a_killed_generate() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "before_row");
    let file = env.folder().join("job.json");
    std::fs::write(&file, command(7, &["A fox"], &json!({})).to_string())?;
    let file = file.display().to_string();
    let mut killed = env.asset_worker_command(&["generate", "--json", "--file", &file])?.kill_on_drop(true).spawn()?;
    let stored = async || env.stored_path("projects/7/assets/image_001.png").exists().then_some(());
    dev_services::wait::wait_until("the image file", integration_tests::WAIT_TIMEOUT, stored).await?;
    killed.kill().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let output = env.run(&["generate", "--json", "--file", &file]).await?;
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("another process holds the lease of this job"), "{printed}");
    assert_eq!(env.sandbox.ledger().requests, 1, "the existing file is adopted");
    Ok(())
}
