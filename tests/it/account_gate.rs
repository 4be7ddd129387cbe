//! The account gate: while it is closed, commands wait on the queue and nothing is paid for.

use std::time::Duration;

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, backlog_size, command};
use serde_json::{Value, json};

const CLOSED: &str = "account gate closed; commands stay on the queue";
const OPENED: &str = "account gate opened";

async fn pause(env: &TestEnv, reason: &str) -> Result<()> {
    let output = env.run(&["pause", "--reason", reason]).await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn resume(env: &TestEnv) -> Result<()> {
    let output = env.run(&["resume"]).await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn paused_workers_leave_commands_on_the_queue_until_resumed() -> Result<()> {
    let env = TestEnv::with_database(Database::Postgres).await?;
    let workers = [env.start_ready_worker().await?, env.start_ready_worker().await?];
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    pause(&env, "invoice overdue").await?;
    for worker in &workers {
        worker.wait_for_log(CLOSED).await?;
        let (status, body) = worker.probe("readyz").await?;
        assert_eq!((status, &body["status"]), (200, &json!("ok")), "a rollout must be able to repair a closed gate");
        let reason = body["gate_closed"][0].as_str().unwrap_or_default();
        assert!(reason.starts_with("paused since 20") && reason.ends_with(": invoice overdue"), "{body}");
        let closed = worker.metrics().await?.value("asset_worker_gate_closed", &[("reason", "paused")]);
        assert_eq!(closed, Some(1.0));
    }
    for project in 1..=3 {
        producer.publish(&command(project, &["A fox", "A bear"], &json!({"cache": "never"}))).await?;
    }
    producer.wait_for_waiting_commands(3).await?;
    assert_eq!(env.sandbox.ledger().requests, 0);
    resume(&env).await?;
    for _ in 1..=3 {
        assert_eq!(events.wait_for_data("completed").await?["succeeded"], 2);
    }
    for worker in &workers {
        worker.wait_for_log(OPENED).await?;
        let closed = worker.metrics().await?.value("asset_worker_gate_closed", &[("reason", "paused")]);
        assert_eq!(closed, Some(0.0));
    }
    assert_eq!(env.sandbox.ledger().requests, 6);
    Ok(())
}

#[tokio::test]
async fn pause_within_a_job_returns_it_uncounted_on_sqlite() -> Result<()> {
    pause_within_a_job_returns_it_uncounted(Database::Sqlite).await
}

#[tokio::test]
async fn pause_within_a_job_returns_it_uncounted_on_postgres() -> Result<()> {
    pause_within_a_job_returns_it_uncounted(Database::Postgres).await
}

async fn pause_within_a_job_returns_it_uncounted(database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    env.set("STABILITY_MAX_CONCURRENT", "1");
    env.sandbox.set_latency(Duration::from_millis(700));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions: Vec<String> = (1..=12).map(|number| format!("Animal {number}")).collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    producer.publish(&command(1, &descriptions, &json!({}))).await?;
    env.wait_for_requests(1).await?;
    pause(&env, "test").await?;
    producer.wait_for_waiting_commands(1).await?;
    let requests = env.sandbox.ledger().requests;
    assert!(requests < 12, "the job was not interrupted");
    let jobs = env.query_rows("SELECT status, attempts, lease_losses FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "waiting", "attempts": 0, "lease_losses": 0})]);
    let kept = env.query_rows("SELECT id FROM assets WHERE status = 'completed'").await?;
    assert_eq!(kept.len(), usize::try_from(requests)?, "requests in flight have finished");
    worker.wait_for_log("account gate closed; moving the command to the end of the queue").await?;
    resume(&env).await?;
    assert_eq!(events.wait_for_data("completed").await?["succeeded"], 12);
    let requests: Vec<u32> = env.sandbox.ledger().by_prompt.values().map(|counts| counts.requests).collect();
    assert_eq!(requests, [1; 12], "each image is paid for once");
    assert_eq!(producer.ready_count("assets.generate.dead").await?, 0);
    Ok(())
}

#[tokio::test]
async fn job_that_needs_no_further_payment_ends_while_paused() -> Result<()> {
    let env = TestEnv::new().await?;
    env.sandbox.set_latency(Duration::from_secs(6));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear"], &json!({}))).await?;
    env.wait_for_requests(2).await?;
    pause(&env, "test").await?;
    worker.wait_for_log(CLOSED).await?;
    assert_eq!(events.wait_for_data("completed").await?["succeeded"], 2);
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

/// A new consumer's prefetch count does not include the messages of the former one.
#[tokio::test]
async fn reopened_worker_runs_no_more_jobs_than_allowed() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    // Longer than it usually takes to notice the pause and its end.
    env.sandbox.set_latency(Duration::from_secs(12));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    for project in 1..=2 {
        producer.publish(&command(project, &["A fox"], &json!({"cache": "never"}))).await?;
    }
    env.wait_for_requests(1).await?;
    pause(&env, "test").await?;
    worker.wait_for_log(CLOSED).await?;
    resume(&env).await?;
    worker.wait_for_log(OPENED).await?;
    env.sandbox.set_latency(Duration::ZERO);
    for _ in 1..=2 {
        events.wait_for_data("completed").await?;
    }
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.max_in_flight), (2, 1));
    Ok(())
}

/// The pause is set in the database while the workers have not read it yet, so their payments meet it.
#[tokio::test]
async fn no_payment_follows_a_pause() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("STABILITY_MAX_CONCURRENT", "1");
    env.sandbox.set_latency(Duration::from_millis(100));
    let _workers = (env.start_ready_worker().await?, env.start_ready_worker().await?);
    let producer = env.connect_broker().await?;
    for project in 1..=4 {
        let descriptions: Vec<String> = (1..=50).map(|number| format!("Animal {number}")).collect();
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(project, &descriptions, &json!({"cache": "never"}))).await?;
    }
    env.wait_for_requests(4).await?;
    pause(&env, "test").await?;
    // At most the requests whose payment came before the pause are still sent: one for each worker.
    let paid = env.query_rows("SELECT requests FROM spending").await?[0]["requests"].clone();
    producer.wait_for_waiting_commands(4).await?;
    assert_eq!(env.query_rows("SELECT requests FROM spending").await?[0]["requests"], paid);
    assert!(json!(env.sandbox.ledger().requests).as_i64() <= paid.as_i64());
    Ok(())
}

#[tokio::test]
async fn job_of_a_worker_killed_while_paused_is_completed_after_resume() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("STABILITY_MAX_CONCURRENT", "1");
    env.sandbox.set_latency(Duration::from_secs(5));
    let mut killed = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear", "An owl"], &json!({"min_success_rate": 1.0}))).await?;
    env.wait_for_requests(1).await?;
    pause(&env, "test").await?;
    killed.wait_for_log(CLOSED).await?;
    killed.signal(Signal::KILL);
    killed.wait_for_exit().await?;
    let _other = env.start_ready_worker().await?;
    producer.wait_for_waiting_commands(1).await?;
    env.sandbox.set_latency(Duration::ZERO);
    resume(&env).await?;
    assert_eq!(events.wait_for_data("completed").await?["succeeded"], 3);
    assert!(env.sandbox.ledger().requests <= 4, "only the request in flight at the kill is repeated");
    Ok(())
}

/// Operators pause and resume in the middle of many jobs.
#[tokio::test]
async fn backlog_waits_while_paused() -> Result<()> {
    let jobs = backlog_size(12);
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.sandbox.set_credits(100_000.0);
    env.sandbox.set_latency(Duration::from_millis(20));
    let workers = [env.start_ready_worker().await?, env.start_ready_worker().await?];
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    for number in 1..=jobs {
        let descriptions = [1, 2, 3].map(|image| format!("Animal {number}-{image}"));
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(i64::from(number % 7 + 1), &descriptions, &json!({"max_concurrent": 1}))).await?;
    }
    let mut requests = 0;
    for quarter in 1..=3 {
        while requests < jobs * 3 * quarter / 4 {
            requests = (requests + 100).min(jobs * 3 * quarter / 4);
            env.wait_for_requests(requests).await?;
        }
        pause(&env, "test").await?;
        let times = usize::try_from(quarter)?;
        let logged =
            |text: &str| workers.iter().all(|worker| worker.log().matches(text).count() == times).then_some(());
        wait::wait_until("the gate to close", WAIT_TIMEOUT, async || logged(CLOSED)).await?;
        resume(&env).await?;
        wait::wait_until("the gate to open", WAIT_TIMEOUT, async || logged(OPENED)).await?;
    }
    for _ in 0..jobs {
        assert_eq!(events.wait_for_data("completed").await?["succeeded"], 3);
    }
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger.charged, 3 * jobs);
    assert!(ledger.by_prompt.values().all(|counts| counts.requests == 1), "each image is paid for once");
    assert_eq!(env.query_rows("SELECT id FROM jobs WHERE attempts > 0").await?.len(), 0);
    assert_eq!(producer.ready_count("assets.generate.dead").await?, 0);
    Ok(())
}

#[tokio::test]
async fn commands_report_a_pause() -> Result<()> {
    let env = TestEnv::new().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // No database file exists yet, and `submit` creates none.
    let submitted = env.run(&["submit", "A fox"]).await?;
    assert!(submitted.status.success() && !env.folder().join("data").exists(), "{}", text(&submitted.stderr));
    let refused = env.run(&["pause"]).await?;
    assert_eq!(refused.status.code(), Some(69), "a new database would be that of no worker");
    assert!(text(&refused.stderr).contains("DATABASE_URL: there is no database"), "{}", text(&refused.stderr));
    assert!(env.run(&["migrate"]).await?.status.success());
    let paused = env.run(&["pause", "--json"]).await?;
    assert_eq!(serde_json::from_slice::<Value>(&paused.stdout)?, json!({"paused": true, "reason": null}));
    pause(&env, "invoice overdue").await?;
    let submitted = env.run(&["submit", "A fox"]).await?;
    let note = text(&submitted.stderr);
    assert!(submitted.status.success() && note.contains("the account gate is closed: paused since"), "{note}");
    assert!(note.contains("invoice overdue; the command waits on the queue"), "{note}");
    let generated = env.run(&["generate", "A fox"]).await?;
    let error = text(&generated.stderr);
    assert_eq!(generated.status.code(), Some(1), "{error}");
    assert!(error.contains("the account gate is closed: paused since") && error.contains("invoice overdue"), "{error}");
    let doctor = text(&env.run(&["doctor"]).await?.stdout);
    assert!(doctor.contains("closed: paused since"), "{doctor}");
    for reason in ["", "two\nlines", &"x".repeat(201)] {
        let refused = env.run(&["pause", "--reason", reason]).await?;
        assert_eq!(refused.status.code(), Some(64), "{reason:?}");
        assert!(text(&refused.stderr).contains("1 to 200 printable characters are allowed"));
    }
    let resumed = env.run(&["resume", "--json"]).await?;
    assert_eq!(serde_json::from_slice::<Value>(&resumed.stdout)?, json!({"paused": false, "was_paused": true}));
    assert_eq!(text(&env.run(&["resume"]).await?.stdout), "the workers were not paused\n");
    assert_eq!(env.sandbox.ledger().requests, 0);
    Ok(())
}
