//! Cancelling jobs: by message and by command line, in every state, and by workers that are killed meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Database, EventStream, TestEnv, WAIT_TIMEOUT, backlog_size, command, failure_codes};
use serde_json::{Value, json};

async fn cancel(env: &TestEnv, arguments: &[&str]) -> Result<Value> {
    let output = env.run(&[&["jobs", "cancel", "--json"], arguments].concat()).await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn job_id(job: &Value) -> &str {
    job["job_id"].as_str().unwrap_or_default()
}

/// Waits for the only terminal event of a job, which failed because it was cancelled.
async fn wait_for_cancelled(events: &mut EventStream, job: &Value) -> Result<Value> {
    let data = events.wait_for_data("failed").await?;
    assert_eq!((&data["job_id"], &data["error"]["code"]), (&job["job_id"], &json!("cancelled")), "{data}");
    Ok(data)
}

/// Images in flight are kept; the others are not attempted, and nothing more is paid for.
async fn running_job_keeps_its_images(database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    env.make_images_small();
    env.sandbox.set_latency(Duration::from_millis(600));
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let descriptions: Vec<String> = (1..=30).map(|number| format!("Fox {number}")).collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    let job = command(1, &descriptions, &json!({"max_concurrent": 2}));
    producer.publish(&job).await?;
    env.wait_for_requests(3).await?;
    let body = json!({"job_id": job["job_id"], "reason": "wrong style"});
    producer.publish_cancel(body.to_string().as_bytes()).await?;
    let recorded = async || {
        let rows = env.query_rows("SELECT 1 AS one FROM jobs WHERE cancelled_at IS NOT NULL").await.ok()?;
        (rows.len() == 1).then(|| env.sandbox.ledger().requests)
    };
    let requests = wait::wait_until("the cancellation", WAIT_TIMEOUT, recorded).await?;
    let data = wait_for_cancelled(&mut events, &job).await?;
    assert_eq!(data["error"]["message"], "the job was cancelled: wrong style");
    let ledger = env.sandbox.ledger();
    // A payment that was under way when the cancellation was recorded is a request in flight.
    assert!(ledger.requests <= requests + 2, "{requests} and then {}", ledger.requests);
    assert_eq!(data["succeeded"], json!(ledger.charged), "each paid image is kept");
    assert!(failure_codes(&data).iter().all(|code| code == "not_attempted"), "{data}");
    // Cancelling again, also by several operators, changes nothing.
    let id = [job_id(&job)];
    let again = futures_util::future::join_all((0..3).map(|_| cancel(&env, &id))).await;
    for result in again {
        assert_eq!(result?, json!({"cancelled": 0, "remembered": 0, "unchanged": 1}));
    }
    Ok(())
}

#[tokio::test]
async fn running_job_keeps_its_images_on_sqlite() -> Result<()> {
    running_job_keeps_its_images(Database::Sqlite).await
}

#[tokio::test]
async fn running_job_keeps_its_images_on_postgres() -> Result<()> {
    running_job_keeps_its_images(Database::Postgres).await
}

#[tokio::test]
async fn waits_of_a_cancelled_job_end_at_once() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    // All images wait for their second request.
    env.set("STABILITY_RETRY_DELAYS", "4m");
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox [fault:status=500]", "A bear [fault:status=500]"], &json!({}));
    producer.publish(&job).await?;
    env.wait_for_requests(2).await?;
    cancel(&env, &[job_id(&job)]).await?;
    let data = wait_for_cancelled(&mut events, &job).await?;
    assert_eq!(failure_codes(&data), ["not_attempted"; 2]);
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn job_in_a_retry_queue_ends_without_its_message() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("STABILITY_RETRY_DELAYS", "0s");
    env.set("WORKER_JOB_RETRY_DELAYS", "10m");
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox", "A bear [fault:status=500]"], &json!({"min_success_rate": 1.0}));
    producer.publish(&job).await?;
    let waiting = async || {
        let rows = env.query_rows("SELECT status FROM jobs").await.ok()?;
        (rows.first()?["status"] == "waiting").then_some(())
    };
    wait::wait_until("the job to wait for its next attempt", WAIT_TIMEOUT, waiting).await?;
    assert_eq!(cancel(&env, &[job_id(&job), "--reason", "too late"]).await?["cancelled"], 1);
    let data = wait_for_cancelled(&mut events, &job).await?;
    assert_eq!((&data["succeeded"], &data["cost_usd"]), (&json!(1), &json!(0.02)));
    assert_eq!(failure_codes(&data), ["provider_unavailable"]);
    let rows = env.query_rows("SELECT status, error_code FROM jobs").await?;
    assert_eq!((&rows[0]["status"], &rows[0]["error_code"]), (&json!("failed"), &json!("cancelled")));
    Ok(())
}

#[tokio::test]
async fn known_job_ends_behind_a_closed_gate() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.sandbox.set_latency(Duration::from_millis(500));
    let (worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox", "A bear", "An owl", "A cat"], &json!({"max_concurrent": 1}));
    producer.publish(&job).await?;
    env.wait_for_requests(1).await?;
    env.run(&["pause"]).await?;
    worker.wait_for_log("account gate closed; moving the command").await?;
    let requests = env.sandbox.ledger().requests;
    producer.publish_cancel(json!({"job_id": job["job_id"]}).to_string().as_bytes()).await?;
    let data = wait_for_cancelled(&mut events, &job).await?;
    assert_eq!(data["succeeded"], json!(requests));
    assert_eq!(env.sandbox.ledger().requests, requests);
    // The command is still on the queue. When it is delivered, the same event is sent again.
    env.run(&["resume"]).await?;
    wait_for_cancelled(&mut events, &job).await?;
    assert_eq!(env.sandbox.ledger().requests, requests);
    Ok(())
}

#[tokio::test]
async fn job_cancelled_before_its_command_ends_on_arrival() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let env = TestEnv::with_database(database).await?;
        let (_worker, producer, mut events) = env.start_worker_and_events().await?;
        let job = command(7, &["A fox", "一隻熊"], &json!({"cache": "prefer"}));
        assert_eq!(cancel(&env, &[job_id(&job)]).await?, json!({"cancelled": 0, "remembered": 1, "unchanged": 0}));
        assert!(String::from_utf8(env.run(&["jobs", "list"]).await?.stderr)?.contains("no such jobs"));
        producer.publish(&job).await?;
        let seen = events.wait_for("failed").await?;
        let types: Vec<_> = seen.iter().map(integration_tests::Message::event_type).collect();
        assert!(!types.iter().any(|kind| kind == "assets.generation.started"), "{types:?}");
        let data = &seen.last().context("an event")?.json()["data"];
        assert_eq!((&data["project_id"], &data["error"]["code"]), (&json!(7), &json!("cancelled")));
        assert_eq!(failure_codes(data), ["not_attempted"; 2]);
        assert_eq!(env.sandbox.ledger().requests, 0);
        // An invalid command fails as such.
        let mut invalid = command(7, &["A fox"], &json!({"steps": 1}));
        cancel(&env, &[job_id(&invalid)]).await?;
        producer.publish(&invalid).await?;
        assert_eq!(events.wait_for_data("failed").await?["error"]["code"], "invalid_request");
        invalid["config"] = json!({});
    }
    Ok(())
}

#[tokio::test]
async fn ended_job_is_not_changed() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let job = command(1, &["A fox"], &json!({}));
    env.generate(&job).await?.expect_data("completed")?;
    assert_eq!(cancel(&env, &[job_id(&job)]).await?, json!({"cancelled": 0, "remembered": 0, "unchanged": 1}));
    assert_eq!(env.query_rows("SELECT status FROM jobs").await?[0]["status"], "completed");
    Ok(())
}

/// What is recorded first wins: all images are done, but the job's end is not stored yet.
#[tokio::test]
async fn cancellation_before_the_end_is_stored_wins() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    let go_on = env.folder().join("go-on");
    env.set("ASSET_WORKER_PAUSE_AT", "before_finish");
    env.set("ASSET_WORKER_PAUSE_UNTIL", go_on.display().to_string());
    let (worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox"], &json!({}));
    producer.publish(&job).await?;
    worker.wait_for_log("\"point\":\"before_finish\"").await?;
    assert_eq!(cancel(&env, &[job_id(&job)]).await?["cancelled"], 1);
    std::fs::write(go_on, "")?;
    let data = wait_for_cancelled(&mut events, &job).await?;
    assert_eq!(data["succeeded"], 1);
    Ok(())
}

#[tokio::test]
async fn invalid_cancellation_is_dead_lettered_and_replayed_with_its_key() -> Result<()> {
    let env = TestEnv::new().await?;
    let (worker, producer, _events) = env.start_worker_and_events().await?;
    producer.publish_cancel(b"{\"job_id\": 7}").await?;
    worker.wait_for_log("not a valid request to cancel").await?;
    let list = async || {
        let output = env.run(&["dead-letters", "list", "--json"]).await.ok()?;
        let letters: Value = serde_json::from_slice(&output.stdout).ok()?;
        letters.as_array().filter(|letters| !letters.is_empty()).cloned()
    };
    let letters = wait::wait_until("a dead letter", WAIT_TIMEOUT, list).await?;
    let reason = letters[0]["reason"].as_str().context("a reason")?;
    assert!(reason.starts_with("invalid_cancel: job_id: 7 is not allowed; a UUID"), "{reason}");
    env.run(&["dead-letters", "replay", "--all"]).await?;
    // Replayed to the queue of cancellations, whose consumer refuses it again.
    let refused = async || {
        let log = worker.log();
        (log.matches("not a valid request to cancel").count() == 2).then_some(log)
    };
    let log = wait::wait_until("the second refusal", WAIT_TIMEOUT, refused).await?;
    assert!(!log.contains("not a valid command"), "{log}");
    Ok(())
}

/// Kills the worker of a job at a failpoint, cancels the job, and returns its terminal event.
async fn cancel_after_kill_at(point: &'static str) -> Result<(Value, u32)> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("WORKER_LEASE", "3s");
    env.set("ASSET_WORKER_PAUSE_AT", point);
    let (mut worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox", "A bear"], &json!({"max_concurrent": 1}));
    producer.publish(&job).await?;
    worker.wait_for_log(&format!("\"point\":\"{point}\"")).await?;
    // No worker takes the command again before the cancellation is recorded.
    env.run(&["pause"]).await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    assert_eq!(cancel(&env, &[job_id(&job)]).await?["cancelled"], 1);
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _worker = env.start_ready_worker().await?;
    let data = wait_for_cancelled(&mut events, &job).await?;
    Ok((data, env.sandbox.ledger().charged))
}

#[tokio::test]
async fn job_of_a_lost_worker_is_ended_by_another_one() -> Result<()> {
    for (point, succeeded, charged) in [("after_claim", 0, 0), ("before_file", 0, 1), ("before_row", 1, 1)] {
        let (data, requests) = cancel_after_kill_at(point).await?;
        assert_eq!((&data["succeeded"], requests), (&json!(succeeded), charged), "{point}");
    }
    Ok(())
}

/// The sweeping worker is killed before it ends a batch, before it publishes, and after it has published.
#[tokio::test]
async fn killed_sweep_is_repeated_by_another_worker() -> Result<()> {
    for point in ["before_sweep", "before_swept_events", "after_swept_events"] {
        let mut env = TestEnv::new().await?;
        env.make_images_small();
        env.set("STABILITY_RETRY_DELAYS", "0s");
        env.set("WORKER_JOB_RETRY_DELAYS", "10m");
        env.set("ASSET_WORKER_PAUSE_AT", point);
        let (mut worker, producer, mut events) = env.start_worker_and_events().await?;
        let job = command(1, &["A fox [fault:status=500]"], &json!({}));
        producer.publish(&job).await?;
        worker.wait_for_log("job will be retried after a delay").await?;
        cancel(&env, &[job_id(&job)]).await?;
        worker.wait_for_log(&format!("\"point\":\"{point}\"")).await?;
        worker.signal(Signal::KILL);
        worker.wait_for_exit().await?;
        env.set("ASSET_WORKER_PAUSE_AT", "");
        let _worker = env.start_ready_worker().await?;
        let data = wait_for_cancelled(&mut events, &job).await?;
        if point == "after_swept_events" {
            let repeated = wait_for_cancelled(&mut events, &job).await?;
            assert_eq!(repeated, data, "at least once, byte for byte");
        }
        let published = async || {
            let rows = env.query_rows("SELECT published_at FROM jobs WHERE publish_due_at IS NULL").await.ok()?;
            (!rows.first()?["published_at"].is_null()).then_some(())
        };
        wait::wait_until("the event to be recorded as published", WAIT_TIMEOUT, published).await?;
    }
    Ok(())
}

/// With `BACKLOG_JOBS=10000`: a project of known jobs that wait.
#[tokio::test]
async fn cancelled_backlog_ends_in_batches() -> Result<()> {
    let jobs = backlog_size(400);
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    producer.bind_event_queue("terminal").await?;
    let body = command(9, &["A fox", "A bear"], &json!({}));
    let row = |number: u32| {
        let mut body = body.clone();
        let id = uuid::Uuid::from_u128(u128::from(number) + 1);
        body["job_id"] = json!(id);
        format!("('{id}', 9, 'waiting', 'digest-{number}', '{body}', 2, 0, 0, now(), now())")
    };
    for first in (0..jobs).step_by(200) {
        let rows: Vec<String> = (first..jobs.min(first + 200)).map(row).collect();
        env.execute(&format!(
            "INSERT INTO jobs (id, project_id, status, digest, command, total, attempts, cost_usd, created_at, updated_at) \
             VALUES {}",
            rows.join(", ")
        ))
        .await?;
    }
    let started = std::time::Instant::now();
    assert_eq!(cancel(&env, &["--project", "9"]).await?["cancelled"], jobs);
    let ended = async || {
        let rows = env.query_rows("SELECT count(*) AS count FROM jobs WHERE published_at IS NOT NULL").await.ok()?;
        (rows[0]["count"] == jobs).then_some(())
    };
    wait::wait_until("all events to be published", Duration::from_mins(2), ended).await?;
    println!("{jobs} jobs: {:?}", started.elapsed());
    assert_eq!(producer.ready_count("terminal").await?, jobs);
    let swept = worker.metrics().await?.value("asset_worker_jobs_total", &[("outcome", "cancelled")]);
    assert_eq!(swept, Some(f64::from(jobs)));
    Ok(())
}
