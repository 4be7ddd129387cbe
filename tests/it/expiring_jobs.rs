//! Jobs with `expires_at`: nothing is paid for from then on, wherever the job is.

use std::time::Duration;

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Database, EventStream, Message, TestEnv, WAIT_TIMEOUT, command, failure_codes};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A config that expires after this time.
fn expiring_in(duration: Duration, config: &Value) -> Value {
    let mut config = config.clone();
    let at = (OffsetDateTime::now_utc() + duration).format(&Rfc3339).expect("a UTC time");
    config["expires_at"] = json!(at);
    config
}

async fn wait_for_expired(events: &mut EventStream, job: &Value) -> Result<Value> {
    let data = events.wait_for_data("failed").await?;
    assert_eq!((&data["job_id"], &data["error"]["code"]), (&job["job_id"], &json!("expired")), "{data}");
    Ok(data)
}

/// Neither started nor translated: the second text has no translation.
#[tokio::test]
async fn job_that_has_expired_before_it_arrives_ends_at_once() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let env = TestEnv::with_database(database).await?;
        let (_worker, producer, mut events) = env.start_worker_and_events().await?;
        let job = command(1, &["A fox", "一隻熊"], &json!({"expires_at": "2026-01-01T12:00:00+08:00"}));
        producer.publish(&job).await?;
        let seen = events.wait_for("failed").await?;
        let types: Vec<_> = seen.iter().map(Message::event_type).collect();
        assert!(!types.iter().any(|kind| kind == "assets.generation.started"), "{types:?}");
        let data = seen.last().map(|event| event.json()["data"].clone()).unwrap_or_default();
        assert_eq!(data["error"], json!({"code": "expired", "message": "the job expired at 2026-01-01T04:00:00Z"}));
        assert_eq!(failure_codes(&data), ["not_attempted"; 2]);
        assert_eq!(env.sandbox.ledger().requests, 0);
    }
    Ok(())
}

#[tokio::test]
async fn running_job_completes_if_its_success_rate_is_reached() -> Result<()> {
    for (rate, kind) in [(0.05, "completed"), (0.9, "failed")] {
        let mut env = TestEnv::new().await?;
        env.make_images_small();
        env.sandbox.set_latency(Duration::from_millis(400));
        let (_worker, producer, mut events) = env.start_worker_and_events().await?;
        let descriptions: Vec<String> = (1..=100).map(|number| format!("Fox {number}")).collect();
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        let config = json!({"max_concurrent": 2, "min_success_rate": rate});
        let job = command(1, &descriptions, &expiring_in(Duration::from_secs(4), &config));
        producer.publish(&job).await?;
        let data = events.wait_for_data(kind).await?;
        assert_eq!(data["succeeded"], json!(env.sandbox.ledger().charged), "each paid image is kept");
        assert!(data["succeeded"].as_u64().is_some_and(|count| (5..100).contains(&count)), "{data}");
        assert!(failure_codes(&data).iter().all(|code| code == "not_attempted"), "{data}");
        if kind == "failed" {
            assert_eq!(data["error"]["code"], "expired");
        }
    }
    Ok(())
}

#[tokio::test]
async fn wait_for_a_retry_ends_when_the_job_expires() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_RETRY_DELAYS", "4m");
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox [fault:status=500]"], &expiring_in(Duration::from_secs(3), &json!({})));
    producer.publish(&job).await?;
    env.wait_for_requests(1).await?;
    let data = wait_for_expired(&mut events, &job).await?;
    assert_eq!(failure_codes(&data), ["not_attempted"]);
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}

#[tokio::test]
async fn job_in_a_retry_queue_expires_without_its_message() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.set("STABILITY_RETRY_DELAYS", "0s");
    env.set("WORKER_JOB_RETRY_DELAYS", "10m");
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let config = json!({"min_success_rate": 1.0, "cache": "never"});
    let job = command(1, &["A fox", "A bear [fault:status=500]"], &expiring_in(Duration::from_secs(4), &config));
    producer.publish(&job).await?;
    let data = wait_for_expired(&mut events, &job).await?;
    assert_eq!((&data["succeeded"], failure_codes(&data)), (&json!(1), vec!["provider_unavailable".to_owned()]));
    assert_eq!(env.sandbox.ledger().requests, 3, "one request for the first image, two for the other");
    Ok(())
}

#[tokio::test]
async fn known_job_expires_behind_a_closed_gate() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.sandbox.set_latency(Duration::from_millis(500));
    let (worker, producer, mut events) = env.start_worker_and_events().await?;
    let config = expiring_in(Duration::from_secs(7), &json!({"max_concurrent": 1}));
    let job = command(1, &["A fox", "A bear", "An owl", "A cat", "A dog", "An ox", "A hen", "A yak"], &config);
    producer.publish(&job).await?;
    env.wait_for_requests(1).await?;
    env.run(&["pause"]).await?;
    worker.wait_for_log("account gate closed; moving the command").await?;
    let requests = env.sandbox.ledger().requests;
    let data = wait_for_expired(&mut events, &job).await?;
    assert_eq!(data["succeeded"], json!(requests));
    assert_eq!(env.sandbox.ledger().requests, requests);
    Ok(())
}

#[tokio::test]
async fn job_of_a_lost_worker_expires() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("WORKER_LEASE", "3s");
    env.set("ASSET_WORKER_PAUSE_AT", "before_row");
    let (mut worker, producer, mut events) = env.start_worker_and_events().await?;
    let config = expiring_in(Duration::from_secs(5), &json!({"max_concurrent": 1}));
    let job = command(1, &["A fox", "A bear"], &config);
    producer.publish(&job).await?;
    worker.wait_for_log("\"point\":\"before_row\"").await?;
    env.run(&["pause"]).await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _worker = env.start_ready_worker().await?;
    let data = wait_for_expired(&mut events, &job).await?;
    assert_eq!(data["succeeded"], 1, "its stored file is adopted");
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}

#[tokio::test]
async fn cancelled_job_that_has_expired_counts_as_cancelled() -> Result<()> {
    let env = TestEnv::new().await?;
    let job = command(1, &["A fox"], &json!({"expires_at": "2026-01-01T00:00:00Z"}));
    env.run(&["migrate"]).await?;
    env.run(&["jobs", "cancel", job["job_id"].as_str().unwrap_or_default()]).await?;
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    producer.publish(&job).await?;
    assert_eq!(events.wait_for_data("failed").await?["error"]["code"], "cancelled");
    Ok(())
}

#[tokio::test]
async fn submit_sets_the_time_of_expiry() -> Result<()> {
    let env = TestEnv::new().await?;
    let before = OffsetDateTime::now_utc();
    let output = env.run(&["submit", "--expires-in", "30m", "A fox"]).await?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let _worker = env.start_ready_worker().await?;
    let stored = async || {
        let rows = env.query_rows("SELECT expires_at_ms FROM jobs").await.ok()?;
        rows.first()?["expires_at_ms"].as_i64()
    };
    let at = wait::wait_until("the job", WAIT_TIMEOUT, stored).await?;
    let due = before.unix_timestamp() + 30 * 60;
    assert!((due - 1..due + 60).contains(&(at / 1_000)), "{at}");
    Ok(())
}
