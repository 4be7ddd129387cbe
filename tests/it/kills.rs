//! The worker is killed at every point between a command and its acknowledgement, and another one goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dev_services::process::Signal;
use integration_tests::{Database, Producer, Worker, World, assert_files, command};
use serde_json::{Value, json};

/// Another worker goes on within this time, the lease of the usual settings included.
const GOES_ON_WITHIN: Duration = Duration::from_secs(20);

/// Kills a worker as soon as it has come to this point.
async fn killed(worker: &mut Worker, point: &str) -> Result<()> {
    worker.has_logged(&format!("\"point\":\"{point}\"")).await?;
    worker.signal(Signal::KILL);
    worker.ended().await?;
    Ok(())
}

/// Kills three workers, one after the other, at a point that each of them comes to with the same command; the next one will not stop there.
async fn killed_three_times(world: &mut World, point: &'static str, order: &Value) -> Result<Producer> {
    world.set("ASSET_WORKER_PAUSE_AT", point);
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    producer.publish(order).await?;
    killed(&mut worker, point).await?;
    for _ in 0..2 {
        killed(&mut world.worker().await?, point).await?;
    }
    world.set("ASSET_WORKER_PAUSE_AT", "");
    Ok(producer)
}

/// Kills the worker at a point, lets another go on, and returns how many pictures were asked for.
async fn killed_at(point: &str, database: Database) -> Result<u32> {
    let mut world = World::with(database).await?;
    world.sandbox.set_sketch(true);
    world.set("ASSET_WORKER_PAUSE_AT", point);
    // The usual one in one test, since it takes its time.
    let lease = if point == "after_claim" { "12s" } else { "3s" };
    world.set("WORKER_LEASE", lease);
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let order = command(7, &["A fox", "A bear", "An owl"], &json!({"max_concurrent": 1}));
    producer.publish(&order).await?;
    killed(&mut worker, point).await?;
    let begun = Instant::now();
    world.set("ASSET_WORKER_PAUSE_AT", "");
    let mut worker = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert!(begun.elapsed() < GOES_ON_WITHIN, "{point}: {:?}", begun.elapsed());
    assert_files(&world, &data, &[1, 2, 3])?;
    assert_eq!(std::fs::read_dir(world.file("projects/7/assets"))?.count(), 3, "{point}: nothing else is left");
    let rows = world.rows("SELECT status FROM assets").await?;
    assert!(rows.len() == 3 && rows.iter().all(|row| row["status"] == "completed"), "{point}: {rows:?}");
    // The command is delivered again until it is acknowledged; its job's one terminal event may be published again.
    worker.signal(Signal::TERM);
    worker.ended().await?;
    for queue in ["assets.generate", "assets.generate.dead"] {
        assert_eq!(producer.ready(queue).await?, 0, "{point}: {queue}");
    }
    let jobs = world.rows("SELECT terminal_event FROM jobs").await?;
    let stored = jobs[0]["terminal_event"].as_str().context("a terminal event")?.to_owned();
    assert_eq!(serde_json::from_str::<Value>(&stored)?["data"], data, "{point}");
    Ok(world.sandbox.ledger().requests)
}

#[tokio::test]
async fn a_worker_killed_before_the_claim_costs_nothing() -> Result<()> {
    assert_eq!(killed_at("before_claim", Database::Sqlite).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_after_the_claim_costs_nothing() -> Result<()> {
    assert_eq!(killed_at("after_claim", Database::Postgres).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_after_the_answer_and_before_the_file_costs_the_picture_in_flight() -> Result<()> {
    assert_eq!(killed_at("before_file", Database::Sqlite).await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_after_the_file_and_before_the_row_costs_nothing_since_the_file_is_adopted() -> Result<()> {
    assert_eq!(killed_at("before_row", Database::Postgres).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_after_the_last_row_and_before_the_event_costs_nothing() -> Result<()> {
    assert_eq!(killed_at("before_event", Database::Sqlite).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_after_the_event_and_before_the_acknowledgement_repeats_it_byte_for_byte() -> Result<()> {
    let mut world = World::new().await?;
    world.set("ASSET_WORKER_PAUSE_AT", "after_event");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    let first = events.until("completed").await?;
    killed(&mut worker, "after_event").await?;
    world.set("ASSET_WORKER_PAUSE_AT", "");
    let mut worker = world.worker().await?;
    let again = events.until("completed").await?;
    assert_eq!(first[first.len() - 1].body, again[again.len() - 1].body);
    assert_eq!(again.len(), 1, "nothing else is told again");
    worker.signal(Signal::TERM);
    worker.ended().await?;
    assert_eq!(producer.ready("assets.generate").await?, 0);
    assert_eq!(world.sandbox.ledger().requests, 1);
    Ok(())
}

/// What a worker leaves behind goes on before the jobs that came later, whether it was killed or told to stop.
async fn left_behind_by(signal: Signal) -> Result<()> {
    let mut world = World::new().await?;
    world.sandbox.set_sketch(true);
    world.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let first = command(7, &["A fox", "A bear [fault:slow=1000]", "An owl"], &json!({"max_concurrent": 1}));
    producer.publish(&first).await?;
    for _ in 0..5 {
        producer.publish(&command(7, &["A cat"], &json!({}))).await?;
    }
    events.until("progress").await?;
    worker.signal(signal);
    worker.ended().await?;
    let _next = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_eq!(data["job_id"], first["job_id"]);
    Ok(())
}

#[tokio::test]
async fn the_job_of_a_killed_worker_goes_on_before_those_that_came_later() -> Result<()> {
    left_behind_by(Signal::KILL).await
}

#[tokio::test]
async fn the_job_of_a_worker_that_was_told_to_stop_goes_on_before_those_that_came_later() -> Result<()> {
    left_behind_by(Signal::TERM).await
}

/// A job that ends its workers is not tried for ever.
#[tokio::test]
async fn a_job_whose_worker_is_lost_three_times_without_progress_has_failed() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_LEASE", "1s");
    let order = command(7, &["A fox"], &json!({}));
    let producer = killed_three_times(&mut world, "after_claim", &order).await?;
    let mut events = producer.events().await?;
    let _worker = world.worker().await?;
    let data = events.data_of("failed").await?;
    assert_eq!(data["error"]["code"], "attempts_exhausted");
    assert_eq!(world.sandbox.ledger().requests, 0);
    let dead = producer.dead_letter().await?;
    assert_eq!(dead.header("x-rejected-reason").as_deref(), Some("attempts_exhausted"));
    Ok(())
}

/// What ends the process before its job is even known is given up by the broker, and its job has failed all the same.
#[tokio::test]
async fn a_command_that_ends_the_process_each_time_it_is_read_is_a_dead_letter_and_its_job_has_failed() -> Result<()> {
    let mut world = World::new().await?;
    let order = command(7, &["A fox"], &json!({}));
    let producer = killed_three_times(&mut world, "before_parse", &order).await?;
    let mut events = producer.events().await?;
    let _worker = world.worker().await?;
    let data = events.data_of("failed").await?;
    assert_eq!((&data["job_id"], &data["error"]["code"]), (&order["job_id"], &json!("attempts_exhausted")));
    assert_eq!(producer.dead_letter().await?.json(), order);
    assert_eq!(world.sandbox.ledger().requests, 0);
    // The same command again is no other one.
    producer.publish(&order).await?;
    assert_eq!(events.data_of("failed").await?, data);
    Ok(())
}

/// The same of a job that is known: it is worked on all the same, and may be tried again like any other.
#[tokio::test]
async fn a_known_job_whose_command_the_broker_gave_up_goes_on() -> Result<()> {
    let mut world = World::new().await?;
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let order = command(7, &["A fox [fault:slow=800]", "A bear [fault:status=503 x4]"], &json!({"max_concurrent": 1}));
    producer.publish(&order).await?;
    let asked = async || (world.sandbox.ledger().requests == 1).then_some(());
    dev_services::wait::until("the first request", integration_tests::LIMIT, asked).await?;
    worker.signal(Signal::TERM);
    worker.ended().await?;
    world.set("ASSET_WORKER_PAUSE_AT", "before_parse");
    for _ in 0..2 {
        killed(&mut world.worker().await?, "before_parse").await?;
    }
    world.set("ASSET_WORKER_PAUSE_AT", "");
    let mut events = producer.events().await?;
    let _worker = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_eq!((&data["job_id"], &data["succeeded"]), (&order["job_id"], &json!(2)));
    assert_eq!(world.sandbox.ledger().requests, 6);
    let letter = producer.dead_letter().await?;
    assert_eq!((letter.json(), letter.header("x-rejected-reason")), (order, None));
    Ok(())
}

/// However long an image takes, its job is nobody else's while its worker lives.
#[tokio::test]
async fn a_job_whose_image_takes_longer_than_a_lease_stays_with_its_worker() -> Result<()> {
    let world = World::with(Database::Postgres).await?;
    let _first = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    // The lease is 3 s.
    let order = command(7, &["A fox [fault:slow=5000]"], &json!({}));
    producer.publish(&order).await?;
    let asked = async || (world.sandbox.ledger().requests == 1).then_some(());
    dev_services::wait::until("the first request", integration_tests::LIMIT, asked).await?;
    let _second = world.worker().await?;
    producer.publish(&order).await?;
    events.data_of("completed").await?;
    assert_eq!(world.sandbox.ledger().requests, 1);
    let jobs = world.rows("SELECT lease_token, attempts FROM jobs").await?;
    assert_eq!(jobs, [json!({"lease_token": 1, "attempts": 0})]);
    Ok(())
}

/// A worker that was stopped for longer than its lease holds has no say any more when it comes back.
#[tokio::test]
async fn a_worker_that_lost_its_lease_spends_nothing_more_and_writes_nothing() -> Result<()> {
    let mut world = World::with(Database::Postgres).await?;
    world.set("WORKER_LEASE", "1s");
    // So that the repeat goes to the other one.
    world.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    world.sandbox.set_latency(Duration::from_millis(1_500));
    let first = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let order = command(7, &["A fox", "A bear", "An owl"], &json!({"max_concurrent": 1}));
    producer.publish(&order).await?;
    let asked = async || (world.sandbox.ledger().requests == 1).then_some(());
    dev_services::wait::until("the first request", integration_tests::LIMIT, asked).await?;
    first.signal(Signal::STOP);
    // The broker still holds the first delivery; a repeat of the command finds the lease run out.
    let _second = world.worker().await?;
    producer.publish(&order).await?;
    let data = events.data_of("completed").await?;
    let requests = world.sandbox.ledger().requests;
    first.signal(Signal::CONT);
    first.has_logged("the job's lease was lost").await?;
    assert_files(&world, &data, &[1, 2, 3])?;
    let rows = world.rows("SELECT terminal_event, lease_token FROM jobs").await?;
    assert_eq!(rows[0]["lease_token"], 2);
    let stored: Value = serde_json::from_str(rows[0]["terminal_event"].as_str().context("an event")?)?;
    assert_eq!(stored["data"], data);
    assert_eq!(world.sandbox.ledger().requests, requests);
    Ok(())
}

#[tokio::test]
async fn generate_goes_on_where_a_killed_one_left_off() -> Result<()> {
    let mut world = World::new().await?;
    world.set("ASSET_WORKER_PAUSE_AT", "before_row");
    let file = world.folder().join("job.json");
    std::fs::write(&file, command(7, &["A fox"], &json!({})).to_string())?;
    let file = file.display().to_string();
    let mut killed = world.asset_worker(&["generate", "--json", "--file", &file])?.kill_on_drop(true).spawn()?;
    let stored = async || world.file("projects/7/assets/image_001.png").exists().then_some(());
    dev_services::wait::until("the picture's file", integration_tests::LIMIT, stored).await?;
    killed.kill().await?;
    world.set("ASSET_WORKER_PAUSE_AT", "");
    let output = world.run(&["generate", "--json", "--file", &file]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("another process works on this job"), "{said}");
    assert_eq!(world.sandbox.ledger().requests, 1, "the file that was there is adopted");
    Ok(())
}
